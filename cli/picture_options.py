"""Make the flags of a picture's options, and their reference page, from the list of options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_args, get_type_hints

from bksdm.cli.arguments import control_image, input_file, integer, lora_file, real
from bksdm.cli.lora_files import lora_files
from bksdm.engines.errors import RequestError
from bksdm.runtime.generation_config import DEFAULTS, INPUTS, OPTIONS, GenerationConfig
from bksdm.runtime.validation import shown

CONTROL_IMAGE = "control_image"
METAVARS = {
    "height": "PIXELS",
    "width": "PIXELS",
    "seed": "N[,N…]",
    "timesteps": "N,N…",
    "sigmas": "X,X…",
    "fast": "LEVEL",
    "vae": "DECODER",
    "guidance_interval": "FROM:TO",
    "sampler": "NAME",
    "negative_prompt": "TEXT",
    "guidance_scale": "SCALE",
    "controlnet": "NAME[,NAME…]",
    "controlnet_conditioning_scale": "X[,X…]",
    "control_guidance_start": "X[,X…]",
    "control_guidance_end": "X[,X…]",
}
BY_TYPE: dict[type, Callable[[str], Any]] = {int: integer, float: real, str: str}


def one_or_several(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return what reads a value, or several with commas between them."""

    def read(text: str) -> Any:
        first, *others = map(parse, text.split(","))
        return (first, *others) if others else first

    return read


BY_NAME: dict[str, Callable[[str], Any]] = {
    "controlnet": one_or_several(str),
    "controlnet_conditioning_scale": one_or_several(real),
    "control_guidance_start": one_or_several(real),
    "control_guidance_end": one_or_several(real),
    "seed": str,
    "guidance_interval": str,
    "timesteps": lambda text: tuple(map(integer, text.split(","))),
    "sigmas": lambda text: tuple(map(real, text.split(","))),
}


def flags(name: str) -> tuple[str, ...]:
    """Return every flag of an option, the one that it is called by first."""
    option = OPTIONS[name]
    own = f"--{name.replace('_', '-')}"
    return tuple(dict.fromkeys(filter(None, (option.flag, *option.also, own))))


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add the prompt, as an argument and as a flag."""
    positional = parser.add_argument(
        "prompt", nargs="+", default=[], metavar="PROMPT", help=OPTIONS["prompt"].help
    )
    # With "*", one that stands behind an option is not found.
    positional.required = False
    parser.add_argument(
        *flags("prompt"),
        dest="more_prompts",
        action="append",
        default=[],
        metavar="PROMPT",
        help="the same as a flag, for a prompt that begins with a dash; may be repeated",
    )


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option of a picture but the prompt, and for what it starts from."""
    add_option_flags(parser)
    for name, option in INPUTS.items():
        if name == CONTROL_IMAGE:
            parser.add_argument(
                option.flag,
                dest=name,
                type=control_image,
                action="append",
                default=[],
                metavar="[NAME=]FILE",
                help=f"{option.help}; NAME is that of the ControlNet; may be repeated, once per "
                "ControlNet; - for standard input",
            )
        elif option.flag:
            parser.add_argument(
                option.flag,
                dest=name,
                type=input_file,
                metavar="FILE",
                help=f"{option.help}; - for standard input",
            )


def add_option_flags(
    parser: argparse.ArgumentParser,
    left_out: Collection[str] = (),
    defaults: Mapping[str, Any] = DEFAULTS,
) -> None:
    """Add a flag for every option of a picture that has one.

    Parameters
    ----------
    parser : ArgumentParser
        Of the command.
    left_out : collection of str
        Options that the command has no use for, which keep their defaults.
    defaults : mapping
        The command's own, by the options' names.
    """
    hints = get_type_hints(GenerationConfig)
    parser.set_defaults(**{name: DEFAULTS[name] for name in left_out})
    for name, option in OPTIONS.items():
        if not option.flag or name in left_out:
            continue
        if name == "loras":
            parser.add_argument(
                *flags(name),
                dest=name,
                type=lora_file,
                action="append",
                metavar="FILE[:SCALE]",
                help="LoRA file, or folder that peft wrote, to draw with, at a scale (default: 1); "
                "may be repeated",
            )
            continue
        kind = next((kind for kind in get_args(hints[name]) or (hints[name],)), str)
        default = defaults[name]
        if kind is bool:
            parser.add_argument(*flags(name), dest=name, action="store_true", help=option.help)
            continue
        parse = BY_NAME.get(name, BY_TYPE.get(kind, str))
        parser.add_argument(
            *flags(name),
            dest=name,
            type=parse,
            default=default,
            metavar=METAVARS.get(name, "N" if kind is int else "X"),
            help=f"{option.help} ({option.values}"
            f"{'' if default is None else f'; default: {default}'})",
        )
    parser.add_argument("--size", metavar="WxH", help="--width and --height in one, as 512x512")


def picture_options(options: argparse.Namespace) -> GenerationConfig:
    """Return the parsed prompts of :func:`add_prompts` and options of :func:`add_picture_options`.

    Raises
    ------
    RequestError, SamplerError
        There is no prompt, or an option has another form or a wrong value.
    """
    prompts = [*options.prompt, *options.more_prompts]
    if not prompts:
        raise RequestError('a prompt is needed, as in: bksdm generate "a red apple"')
    return GenerationConfig(
        prompts[0] if len(prompts) == 1 else tuple(prompts), **shared_options(options)
    )


def shared_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the parsed options of :func:`add_picture_options` by name.

    Raises
    ------
    RequestError
        An option has another form.
    """
    given = {name: getattr(options, name) for name in OPTIONS if name != "prompt"}
    if options.size is not None:
        if options.width is not None or options.height is not None:
            raise RequestError("--size sets width and height; do not give --width or --height too")
        given["width"], given["height"] = parse_size(options.size)
    if options.loras is not None:
        given["loras"] = [(name, scale) for name, (_, scale) in lora_files(options).items()]
    if options.seed is not None:
        given["seed"] = parse_seed(options.seed)
    if options.guidance_interval is not None:
        given["guidance_interval"] = parse_interval(options.guidance_interval)
    if names := [name for name, _ in options.control_image if name]:
        if given["controlnet"] is not None or len(names) < len(options.control_image):
            raise RequestError(
                "--control-image NAME=FILE names ControlNets: give every one a NAME, or none and "
                "--controlnet"
            )
        given["controlnet"] = names[0] if len(names) == 1 else tuple(names)
    return given


def options_page() -> str:
    """Return the reference page of the options, ``docs/options.md``."""
    hints = get_type_hints(GenerationConfig)
    lines = [
        "# Options of a picture",
        "",
        "The same options are arguments of `TextToImage.__call__`, fields of `GenerationConfig`,",
        "flags of `bksdm generate`, entries of the record in a picture, and keys in a line of",
        "`--prompts FILE.jsonl`, which also takes the flags' names, as `cfg_scale`. In Python,",
        "`on_step` is called after every step; returning False stops the run.",
        "",
        "| option | flag | values | default | what it does |",
        "|---|---|---|---|---|",
    ]
    for name, option in {**OPTIONS, **INPUTS}.items():
        spelled = flags(name) if name in OPTIONS else filter(None, (option.flag,))
        flag = ", ".join(f"`{flag}`" for flag in spelled) or "–"
        if name == "prompt":
            flag = f"positional, {flag}"
        if name in ("height", "width"):
            flag += ", `--size WxH`"
        default = DEFAULTS.get(name)
        shown = "required" if name == "prompt" else "–" if default is None else f"`{default}`"
        if hints.get(name) is bool:
            flag += " (takes no value)"
        lines.append(f"| `{name}` | {flag} | {option.values} | {shown} | {option.help} |")
    return "\n".join(lines) + "\n"


def parse_seed(text: str) -> int | tuple[int, ...]:
    """Return the number, or the numbers of ``N,N``.

    Raises
    ------
    RequestError
        The text has another form.
    """
    if re.fullmatch(r"-?[0-9]{1,99}(,-?[0-9]{1,99})*", text) is None:
        raise RequestError(f"--seed must look like 7 or 7,8,9, not {shown(text)}")
    first, *others = (int(part) for part in text.split(","))
    return (first, *others) if others else first


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of ``WxH``.

    Raises
    ------
    RequestError
        The text has another form.
    """
    match = re.fullmatch(r"([0-9]{1,99})[xX]([0-9]{1,99})", text)
    if match is None:
        raise RequestError(f"--size must look like 512x512, not {shown(text)}")
    return int(match[1]), int(match[2])


def parse_interval(text: str) -> tuple[float, float]:
    """Return the two numbers of ``FROM:TO``.

    Raises
    ------
    RequestError
        The text has another form.
    """
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise RequestError(
            f"--guidance-interval must look like 0:0.8, not {shown(text)}"
        ) from error
    return start, end
