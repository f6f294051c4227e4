"""Parse and validate command-line arguments, with one line for each error."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bksdm.engines.errors import RequestError, SamplerError
from bksdm.models import bundle_folder
from bksdm.runtime.user_files import STDIN, STDOUT
from bksdm.runtime.validation import MAX_THREADS, shown

if TYPE_CHECKING:
    from bksdm.export.prepared import Parts

SIZE = {"height": "--size", "width": "--size"}
"""For :func:`options_named`, in commands that take height and width as ``--size``."""
CONTROLNET_NAME = re.compile("[a-z0-9][a-z0-9_-]*")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Writes every spelling of an option in one line, and its value once."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class ShowVersion(argparse.Action):
    """Prints the version and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> NoReturn:
        """Print it."""
        # Not before: it takes a while to look up.
        from importlib.metadata import version

        print(f"bksdm {version('bksdm-runtime')}")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser that raises errors as a :class:`RequestError` of one line, with a suggestion."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show where in the program an error comes from",
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and refuse unknown words while the options of this parser are at hand."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown[0])
        return found, unknown

    def refuse(self, word: str) -> NoReturn:
        """Refuse a word that is neither an option nor an argument.

        Raises
        ------
        RequestError
            Always.
        """
        if not word.startswith("-"):
            self.error(f"unexpected argument {shown(word)}")
        option = word.partition("=")[0]
        self.error(f"unknown option {shown(option)}{nearest(option, self.options)}")

    @property
    def options(self) -> list[str]:
        """The options, as ``-o`` and ``--output``."""
        return list(self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = nearest(str(value), known)
            raise argparse.ArgumentError(
                action, f"unknown {shown(value)}{hint or '; known: ' + ', '.join(known)}"
            )

    def error(self, message: str) -> NoReturn:
        """Raise the error that ``main`` prints.

        Raises
        ------
        RequestError
            Always.
        """
        # Of an option that is spelled in several ways, the first way.
        told = re.sub(r"^argument (--[\w-]+)(/[\w/-]+)", r"\1", message).removeprefix("argument ")
        option, lacking, _ = told.partition(": expected one argument")
        if lacking:
            long = option.rpartition("/")[2]
            told = f"{option} needs a value; one that begins with a dash is written {long}=VALUE"
        told = told.replace(": ignored explicit argument", " takes no value, such as")
        raise RequestError(f"{told} (see `{self.prog} --help`)")


def refuse_beside(options: argparse.Namespace, main: str, names: Iterable[str]) -> None:
    """Check that no option is given that does nothing beside another.

    Parameters
    ----------
    options : Namespace
        Whose options are None, False or empty where they are not given.
    main : str
        The flag that leaves no use for them.
    names : iterable of str
        Of the options, as their flags without dashes.

    Raises
    ------
    RequestError
        One of them is given.
    """
    for name in names:
        if getattr(options, name.replace("-", "_")) not in (None, False, []):
            raise RequestError(f"--{name} does nothing with {main}; leave one of them out")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that suggests the known word closest to a mistyped one.

    A word that is only cut short is closest to the shortest that it begins.
    """
    words = list(known)
    begun = sorted((name for name in words if len(word) > 3 and name.startswith(word)), key=len)
    found = begun or difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def integer(text: str) -> int:
    """Return a whole number in decimal digits."""
    if re.fullmatch(r"[+-]?[0-9]{1,4000}", text) is None:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {shown(text)}")
    return int(text)


def threads(text: str) -> int:
    """Return a number of threads."""
    found = integer(text)
    if not 1 <= found <= MAX_THREADS:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to {MAX_THREADS}, not {shown(found)}"
        )
    return found


def ordinal(text: str) -> int:
    """Return a number that counts from 0."""
    found = integer(text)
    if found < 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not {shown(found)}")
    return found


def real(text: str) -> float:
    """Return a number; the command validates its range."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, not {shown(text)}") from error


def duration(text: str) -> float:
    """Return a time in seconds, of ``90``, ``90s``, ``1.5m`` or ``2h``."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text)
    seconds = 0.0 if found is None else float(found[1]) * {"m": 60, "h": 3600}.get(found[2], 1)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 60s or 5m, not {shown(text)}")
    return seconds


def named_path(text: str) -> Path:
    """Return the path of a file or folder."""
    return Path(checkpoint(text))


def bundle_path(text: str) -> Path:
    """Return the folder of a bundle, which may be given by a built-in model's name."""
    return bundle_folder(checkpoint(text))


def checkpoint(text: str) -> str:
    """Return a folder's path or a model id of the hub."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def lora_file(text: str) -> str:
    """Return ``FILE`` or ``FILE:SCALE``; the export validates the scale."""
    name, colon, scale = checkpoint(text).rpartition(":")
    if colon and not (name and scale) and not os.path.isfile(text):
        lacking = "scale after" if name else "file before"
        raise argparse.ArgumentTypeError(
            f"must be FILE or FILE:SCALE; {shown(text)} has no {lacking} the colon"
        )
    return text


def controlnet(text: str) -> tuple[str, str]:
    """Return name and source of ``NAME=FOLDER``."""
    name, equals, source = text.partition("=")
    if not equals or not source or CONTROLNET_NAME.fullmatch(name) is None:
        raise argparse.ArgumentTypeError(
            f"must look like canny=FOLDER, with a name of small letters, digits, - and _, not "
            f"{shown(text)}"
        )
    return name, checkpoint(source)


def input_file(text: str) -> Path:
    """Return a file's path; ``-`` is standard input."""
    return STDIN if text == "-" else named_path(text)


def control_image(text: str) -> tuple[str, Path]:
    """Return name and file of ``NAME=FILE``; an empty name where there is only a file."""
    name, equals, file = text.partition("=")
    if equals and CONTROLNET_NAME.fullmatch(name) and not os.path.lexists(text):
        return name, input_file(file)
    return "", input_file(text)


def output_file(text: str) -> Path:
    """Return a file's path; ``-`` is standard output."""
    if text.endswith(("/", "/.", "/..")):
        raise argparse.ArgumentTypeError(f"must name a file, not the folder {shown(text)}")
    return STDOUT if text == "-" else named_path(text)


def output_target(text: str) -> str:
    """Return the name of a file, or with ``--prompts`` of a folder or a pattern."""
    return checkpoint(text)


def shard(text: str) -> tuple[int, int]:
    """Return the two numbers of ``I/N``."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(
            f"must look like 3/8, the third of eight parts, not {shown(text)}"
        )
    return int(match[1]), int(match[2])


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Add the options by which a checkpoint is found and read, named as diffusers has them."""
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--variant", help="variant of the weight files, such as fp16")
    parser.add_argument("--token", help="access token, for a hub model that is not public")


def add_threads_option(parser: argparse.ArgumentParser, where: str = "") -> None:
    """Add the number of CPU threads; ``where`` says with what it goes."""
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help=f"{where}CPU threads (default: physical cores)",
    )


def add_new_folder_option(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Add the folder that a command writes."""
    parser.add_argument(
        "-o",
        "--output",
        type=named_path,
        required=True,
        metavar=metavar,
        help="folder to write, which must not exist yet",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add what the networks of a bundle run on but for its threads, and in what they compute."""
    parser.add_argument(
        "--engine",
        default="onnxruntime",
        help="onnxruntime or openvino (CPU), onnxruntime-cuda, tensorrt-rtx or tensorrt after "
        "`bksdm build`, or auto: a GPU for a float16 bundle where one can be used, otherwise the "
        "fastest by `bksdm build --tune` (default: onnxruntime)",
    )
    parser.add_argument(
        "--device",
        type=ordinal,
        metavar="N",
        help="which GPU runs tensorrt-rtx or tensorrt, counted from 0 (default: 0)",
    )
    add_engine_cache_option(parser)
    add_precision_option(parser)


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """Add the choice of what networks compute in."""
    parser.add_argument(
        "--precision",
        metavar="TYPE",
        help="what the UNet and the VAE compute in: bfloat16 for a float32 model and the engine "
        "openvino, on processors that have it (default: the model's own type)",
    )


def add_engine_cache_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for where optimised graphs are stored."""
    parser.add_argument(
        "--engine-cache",
        type=named_path,
        metavar="DIR",
        help="where the graphs that the first start optimises are stored (default: "
        "in the bundle, or in the user's cache if the bundle cannot be "
        "written)",
    )


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is given beside a checkpoint."""
    parser.add_argument(
        "--vae",
        type=named_path,
        metavar="FILE|FOLDER",
        help="VAE in place of the checkpoint's: a single file, or a diffusers folder",
    )
    parser.add_argument(
        "--tiny-vae",
        type=named_path,
        metavar="FOLDER",
        help="diffusers folder of an AutoencoderTiny (TAESD), whose decoder goes beside the VAE's: "
        "pictures take it by --vae tiny",
    )
    parser.add_argument(
        "--embedding",
        type=checkpoint,
        action="append",
        default=[],
        metavar="FILE[:TOKEN]",
        help="textual inversion, and what stands for it in prompts where the file "
        "does not say; may be repeated",
    )
    parser.add_argument(
        "--controlnet",
        type=controlnet,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="ControlNet in diffusers' format, a folder or model id of the hub, and the name that "
        "pictures ask for it by, as canny=lllyasviel/sd-controlnet-canny; may be repeated",
    )
    one_file = parser.add_argument_group("for a checkpoint in one file")
    one_file.add_argument(
        "--config",
        type=named_path,
        metavar="FOLDER",
        help="diffusers folder whose configurations and tokenizer are used "
        "(default: read off the tensors)",
    )
    one_file.add_argument(
        "--tokenizer",
        type=named_path,
        metavar="FOLDER",
        help="folder with vocab.json and merges.txt (default: CLIP's, from the hub's cache)",
    )
    one_file.add_argument(
        "--ema", action="store_true", help="take the averaged weights of the UNet"
    )


def parts_of(options: argparse.Namespace) -> Parts:
    """Return what :func:`add_part_options` has read."""
    from bksdm.export.embedding import split_token
    from bksdm.export.prepared import Parts

    return Parts(
        options.config,
        options.tokenizer,
        options.ema,
        options.vae,
        [split_token(text) for text in options.embedding],
        options.tiny_vae,
        _by_name(options.controlnet),
    )


def _by_name(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return what ``--controlnet`` gives, by name."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"--controlnet {twice[0]} is given twice; name them differently")
    return dict(pairs)


@contextmanager
def options_named(**others: str) -> Iterator[None]:
    """Put the option's flag before a message that begins with the name of its argument.

    Parameters
    ----------
    others : str
        Flags that the command uses instead of those of a picture's options.
    """
    from bksdm.runtime.generation_config import INPUTS, OPTIONS

    flags = {name: option.flag for name, option in {**OPTIONS, **INPUTS}.items() if option.flag}
    try:
        yield
    except (RequestError, SamplerError) as error:
        name, space, rest = str(error).partition(" ")
        option = {**flags, "threads": "--threads", "device": "--device", **others}.get(name)
        if option is None:
            raise
        same = option == "--" + name.replace("_", "-")
        raise type(error)(f"{option}{'' if same else f': {name}'}{space}{rest}") from error
