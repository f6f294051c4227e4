"""Write the pictures of a result to files, each with its record."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from bksdm.cli.arguments import options_named
from bksdm.cli.outputs import is_replaced, numbered
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.images import to_pil
from bksdm.runtime.picture_formats import (
    FORMATS,
    PictureFormat,
    encode_picture,
    format_of,
    save_picture,
)
from bksdm.runtime.recorded import Recorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bksdm.runtime.result import Result


def chosen_format(path: Path, quality: int | None, lossless: bool) -> PictureFormat:
    """Return the format that a file's name and the flags ask for; a pipe's or device's is PNG.

    Raises
    ------
    RequestError
        They ask for none that there is.
    """
    with options_named(quality="--quality", lossless="--lossless"):
        named = is_replaced(path) or path.suffix.lower() in FORMATS
        return PictureFormat(format_of(path) if named else "PNG", quality, lossless)


def check_record(recorder: Recorder, config: GenerationConfig, chosen: PictureFormat) -> None:
    """Check that a picture can hold its record, before it is drawn.

    Raises
    ------
    RequestError
        It cannot.
    """
    encode_picture(Image.new("RGB", (8, 8)), recorder.record(config, config.images - 1), chosen)


def write_pictures(
    result: Result, recorder: Recorder, path: Path, chosen: PictureFormat
) -> Iterator[Path]:
    """Write the pictures that the safety checker left, and return each one's path when it is there.

    Parameters
    ----------
    result : Result
        One batch.
    recorder : Recorder
        Says what they carry.
    path : Path
        Of the first; the others are numbered.
    chosen : PictureFormat
        What they are written as.
    """
    unfit = result.nsfw_content_detected or [False] * result.config.images
    for index, image in enumerate(to_pil(result.pixels)):
        file = numbered(path, index)
        if unfit[index]:
            warnings.warn(
                f"{file} is not written: the safety checker found the picture unfit; take another "
                "seed or prompt, or --no-safety-checker",
                stacklevel=1,
            )
            continue
        save_picture(image, file, recorder.record(result.config, index, result), chosen)
        yield file
