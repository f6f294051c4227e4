"""Write folders that appear only when they are complete, and leave nothing after an error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bksdm.engines.errors import ExportError
from bksdm.storage.files import clear_abandoned, staged


def refuse_existing(target: Path) -> None:
    """Check that a folder can be made under a name.

    Raises
    ------
    ExportError
        The name is taken, or the file system does not allow it.
    """
    try:
        os.lstat(target)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot write {target}: {_told(error)}") from error
    raise ExportError(f"{target} exists already; name a folder that does not")


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yield a new folder that becomes ``target`` when the block ends without an error.

    What processes that were killed have left beside it is removed first, and so are the folders
    above it that were made for it, if the block does not end well.

    Raises
    ------
    ExportError
        Something cannot be written, or there is a ``target`` by then.
    """
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_abandoned(target.parent)
        with staged(target) as folder:
            yield folder
    except OSError as error:
        raise ExportError(f"cannot write {target}: {_told(error)}") from error
    finally:
        for folder in missing:
            # Of one that holds the target, or what somebody else has put there, nothing is removed.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _told(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
