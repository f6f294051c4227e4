"""Read configurations of a checkpoint, with messages that help to correct them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bksdm.engines.errors import BundleError, ExportError
from bksdm.runtime import bundle
from bksdm.storage.files import open_regular

_LFS = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ExportError
        The file is missing, unreadable, no regular file, not JSON or not an object; names it.
    """
    try:
        return bundle.read_json(path)
    except BundleError as error:
        raise ExportError(str(error)) from error


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is only a pointer of Git LFS to the real one.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with open_regular(path) as file:
        return file.read(len(_LFS)) == _LFS
