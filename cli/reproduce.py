"""The command that draws a picture again, from what the picture says of how it was made."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path

from bksdm.cli.outputs import numbered
from bksdm.cli.text import UNSEEN
from bksdm.engines.errors import BksdmError
from bksdm.models import bundle_folder
from bksdm.runtime.a1111 import A1111Text
from bksdm.runtime.a1111_options import options_of
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import DEFAULTS, FAST_LEVELS, INPUTS, OPTIONS
from bksdm.runtime.images import open_picture
from bksdm.runtime.picture_formats import FORMATS
from bksdm.runtime.recorded import numbered_key, pixel_digest, spelled
from bksdm.storage.precision import BFLOAT16


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes
    ----------
    words : sequence of str
        As the shell hands them over.
    notes : sequence of str
        What has to be known or done for the picture to be the same.
    """

    words: Sequence[str]
    notes: Sequence[str]

    def __str__(self) -> str:
        return " ".join(map(shell_quoted, self.words))


def command_for(own: Mapping[str, str], picture: Path) -> Command | None:
    """Return the command that drew a picture of ours; None if it has no prompt.

    Parameters
    ----------
    own : mapping
        The picture's record.
    picture : Path
        Its file; pictures that it was started from are looked for beside it too.
    """
    if "prompt" not in own:
        return None
    notes: list[str] = []
    prompts = _batch(own)
    words = [*_drawn(own, prompts), *_named("--model", own.get("model"))]
    notes += _about_model(own)
    for name in ("image", "mask", "control_image"):
        flag = INPUTS[name].flag
        for key in takewhile(own.__contains__, map(partial(numbered_key, name), count())):
            path, told = _input(own, key, flag, picture)
            words += _named(flag, path)
            notes += told
    for use in filter(None, own.get("loras", "").split(",")):
        called, _, digest = (*use.split(":"), "", "")[:3]
        notes.append(f"--lora: name the file of the LoRA {called}, of SHA-256 {digest}")
    engine = own.get("engine", "onnxruntime")
    if ":" in engine and " " in engine:
        notes.append(f"it was drawn by several engines: {engine}")
        engine = "auto"
    words += _named("--engine", engine) if engine != "onnxruntime" else []
    # Every other type is the model's own.
    words += _named("--precision", BFLOAT16) if own.get("precision") == BFLOAT16 else []
    words += ["--no-safety-checker"] if own.get("safety_checker") == "off" else []
    words += _named("--quality", own.get("quality"))
    words += ["--lossless"] if "lossless" in own else []
    output = Path(f"again{_extension(own, picture)}")
    index = int(own["index"]) if re.fullmatch("[0-9]{1,6}", own.get("index", "")) else 0
    if index:
        notes.append(f"the picture is the one that it writes to {numbered(output, index)}")
    if "seed" not in own:
        notes.append("the picture does not say its seed")
    return Command([*words, "-o", str(output)], notes)


def nearest_command(text: A1111Text) -> Command:
    """Return the command that comes nearest to what A1111's text says."""
    options, lost = options_of(text)
    values = {name: spelled(name, value) for name, value in options.items()}
    words = _drawn(values, [values["prompt"]])
    model = text.settings.get("Model")
    notes = [f"not carried over: {what}" for what in lost]
    notes += [f"--lora: name the file of the LoRA {use.name}" for use in options.get("loras", ())]
    if not model:
        notes.append("--model: name the bundle to draw with")
    elif not bundle_folder(model).is_dir():
        notes.append(f"--model: {model} has to be exported with `bksdm export` first")
    return Command([*words, *_named("--model", model or None), "-o", "again.png"], notes)


def shell_quoted(word: str) -> str:
    r"""Return a word as a shell reads it; control characters as ``$'\x1b'``, which bash and zsh do.

    So nothing of a picture's reaches the terminal as an order.
    """
    if not UNSEEN.search(word):
        return shlex.quote(word)
    escaped = word.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{UNSEEN.sub(lambda found: _escaped(found[0]), escaped)}'"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def _batch(own: Mapping[str, str]) -> list[str]:
    """Return the prompts of the batch."""
    try:
        found = json.loads(own.get("batch", "null"))
    except (ValueError, RecursionError):  # not as we wrote it
        found = None
    whole = isinstance(found, list) and found and all(isinstance(text, str) for text in found)
    return found if whole else [own["prompt"]]


def _drawn(values: Mapping[str, str], prompts: list[str]) -> list[str]:
    """Return the command's beginning: the prompts, and every option that is not its default."""
    flagged = any(prompt.startswith("-") for prompt in prompts)
    words = ["bksdm", "generate"]
    words += [f"--prompt={prompt}" for prompt in prompts] if flagged else prompts
    defaults = {name: spelled(name, value) for name, value in DEFAULTS.items()}
    fast = values.get("fast", "0")
    level = FAST_LEVELS[int(fast)] if fast in map(str, range(len(FAST_LEVELS))) else FAST_LEVELS[0]
    defaults |= {
        "negative_prompt": "",
        "clip_skip": "0",
        "guidance_interval": spelled("guidance_interval", (0.0, level.guided_until)),
    }
    size = "width" in values and "height" in values
    for name, option in OPTIONS.items():
        value = values.get(name)
        if name == "loras" and value:
            # The digest is said in a note.
            for use in value.split(","):
                words += _named(option.flag, ":".join(use.split(":")[:2]))
            continue
        if value is None or value == defaults[name] or not option.flag:
            continue
        if name == "width" and size:
            words += _named("--size", f"{value}x{values['height']}")
        elif name != "height" or not size:
            words += [option.flag] if value == "True" else _named(option.flag, value)
    return words


def _named(flag: str, value: str | None) -> list[str]:
    """Return a flag and its value; in one word where the value would be taken for a flag."""
    if value is None:
        return []
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _about_model(own: Mapping[str, str]) -> list[str]:
    """Return what is to be said of the bundle: it is not here, or it is another."""
    model, digest = own.get("model"), own.get("model_digest")
    if model is None or digest is None:
        return []
    folder = bundle_folder(model)
    if not folder.is_dir():
        return [f"--model: name the folder of the bundle {model}, of digest {digest[:12]}"]
    try:
        same = Bundle.open(folder).digest() == digest
    except BksdmError:
        same = False
    return [] if same else [f"--model: {model} is another bundle than the picture was drawn with"]


def _input(own: Mapping[str, str], name: str, flag: str, picture: Path) -> tuple[str, list[str]]:
    """Return the path of a picture that was started from, and what is to be said of it."""
    file = own[name]
    found = [path for path in (Path(file), picture.parent / file) if path.is_file()]
    if not found:
        return file, [f"{flag}: name the file {file}"]
    digest = own.get(f"{name}_digest")
    for path in found:
        with suppress(BksdmError):
            if digest is None or pixel_digest(open_picture(path)) == digest:
                return str(path), []
    return str(found[0]), [f"{flag}: {found[0]} is another picture than it was started from"]


def _extension(own: Mapping[str, str], picture: Path) -> str:
    if picture.suffix.lower() in FORMATS:
        return picture.suffix.lower()
    return ".webp" if "lossless" in own else ".jpg" if "quality" in own else ".png"
