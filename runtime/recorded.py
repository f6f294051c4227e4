"""The record that a picture is written with: every option, the model, and what it started from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from bksdm.runtime.a1111_options import a1111_text
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.control_options import CONTROL_OPTIONS
from bksdm.runtime.generation_config import OPTIONS, GenerationConfig
from bksdm.runtime.picture_formats import PictureFormat
from bksdm.runtime.picture_record import PictureRecord

if TYPE_CHECKING:
    from bksdm.runtime.result import Result

DRAWN = ("engine", "precision", "safety_checker", "version")
"""Entries that say what drew a picture, not which picture it is."""


class Recorder:
    """Makes the records of pictures.

    Parameters
    ----------
    bundle : Bundle
        The model.
    paths : mapping
        By ``image``, ``mask`` and ``control_image``, the files of these pictures, or None; a list
        for what may be several.
    inputs : mapping
        By the same names, what they hold.
    chosen : PictureFormat
        Of the files that are written.
    digest : str, optional
        The bundle's, where it is known; computing it looks at every file.
    """

    def __init__(
        self,
        bundle: Bundle,
        paths: Mapping[str, Path | Sequence[Path] | None],
        inputs: Mapping[str, Any],
        chosen: PictureFormat,
        digest: str | None = None,
    ) -> None:
        stated: dict[str, Any] = {"scheduler": bundle.scheduler.get("_class_name")}
        for name, path in paths.items():
            if path is None or inputs[name] is None:
                continue
            files = path if isinstance(path, Sequence) else [path]
            pictures = inputs[name] if isinstance(path, Sequence) else [inputs[name]]
            for number, (file, picture) in enumerate(zip(files, pictures, strict=True)):
                key = numbered_key(name, number)
                stated |= {key: file.name, f"{key}_digest": pixel_digest(picture)}
        stated |= {
            "model": bundle.path.resolve().name,
            "model_digest": bundle.digest() if digest is None else digest,
            "version": version("bksdm-runtime"),
            "quality": chosen.quality,
            "lossless": chosen.lossless or None,
        }
        self._bundle = bundle
        self._stated = {name: str(value) for name, value in stated.items() if value is not None}

    def record(
        self, config: GenerationConfig, index: int, result: Result | None = None
    ) -> PictureRecord:
        """Return the record of an image of a batch.

        Parameters
        ----------
        config : GenerationConfig
            As it is carried out.
        index : int
            Of the image in the batch.
        result : Result, optional
            The batch; without it, :data:`DRAWN` is left out as far as that would say it.
        """
        # Which noise an image has depends on those beside it.
        batch = {"batch": json.dumps(config.prompts)} if len(config.prompts) > 1 else {}
        drawn = {} if result is None else self._drawn(result)
        own = {**recorded(config, index), **batch, **self._stated, **drawn, "index": str(index)}
        model, program = self._stated["model"], self._stated["version"]
        text = a1111_text(config, index, self._bundle.scheduler, model, program)
        return PictureRecord(own, text)

    def _drawn(self, result: Result) -> dict[str, str]:
        engines = dict.fromkeys(result.engines.values())
        checked = "off" if self._bundle.has_safety_checker else "the model has none"
        return {
            "safety_checker": checked if result.nsfw_content_detected is None else "passed",
            "precision": result.precision,
            "engine": ", ".join(
                engines
                if len(engines) == 1
                else (f"{network}: {engine}" for network, engine in result.engines.items())
            ),
        }


def recorded(config: GenerationConfig, index: int) -> dict[str, str]:
    """Return the options of an image of a batch as text, as the flags accept them.

    Those of ControlNets are left out where none is shown anything: pictures without are then what
    they were before there were ControlNets, whatever else names them.
    """
    which = index // config.num_images_per_prompt
    values: dict[str, Any] = {
        **{name: getattr(config, name) for name in OPTIONS},
        "prompt": config.prompts[which],
        "negative_prompt": config.negative_prompts[which],
    }
    if config.controlnet is None:
        values = {name: value for name, value in values.items() if name not in CONTROL_OPTIONS}
    return {name: spelled(name, value) for name, value in values.items() if value not in (None, ())}


def numbered_key(name: str, number: int) -> str:
    """Return the key of one of several pictures, counted from 0: image, image_2, image_3 …."""
    return f"{name}_{number + 1}" if number else name


def spelled(name: str, value: Any) -> str:
    """Return the value of an option as its flag accepts it."""
    if isinstance(value, tuple):
        return (":" if name == "guidance_interval" else ",").join(map(str, value))
    return str(value)


def pixel_digest(picture: Image.Image) -> str:
    """Return the SHA-256 of a picture's size and pixels, hexadecimal."""
    size = f"{picture.width}x{picture.height} {picture.mode}\n"
    return hashlib.sha256(size.encode() + picture.tobytes()).hexdigest()
