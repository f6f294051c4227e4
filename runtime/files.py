"""Files that are there in full or not at all."""

from __future__ import annotations

from pathlib import Path

from bksdm.engines.errors import RequestError


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8; beside the target first, then renamed.

    Raises
    ------
    RequestError
        It cannot be written.
    """
    beside = path.with_name(f".partial-{path.name}")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error
