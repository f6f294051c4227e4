"""Check a command's output files before its work, and name and print them."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from bksdm.cli.text import printable
from bksdm.engines.errors import RequestError
from bksdm.runtime.user_files import STDOUT, is_stdout
from bksdm.storage.files import clear_abandoned, names_open_file


def check_outputs(paths: Sequence[Path | None], text: bool = False) -> None:
    """Check that files can be written, and remove remains of killed runs beside them.

    Parameters
    ----------
    paths : sequence of Path or None
        None is a file that is not asked for.
    text : bool
        Whether a terminal can show what is written.

    Raises
    ------
    RequestError
        One cannot be written, or two are the same.
    """
    wanted = [path for path in paths if path is not None]
    for path in wanted:
        try:
            obstacle = _obstacle(path, text)
        except OSError as error:
            obstacle = error.strerror or str(error)
        if obstacle is not None:
            raise RequestError(f"cannot write {path}: {obstacle}")
    places = [_target(path) for path in wanted if is_stdout(path) or is_replaced(path)]
    if len(set(places)) < len(places):
        raise RequestError(f"{wanted[0]} is named for two files; give each file its own name")
    for path in wanted:
        if is_replaced(path):
            clear_abandoned(_target(path).parent)


def check_folder(path: Path) -> None:
    """Check that a folder can be made or written to.

    Raises
    ------
    RequestError
        It cannot be.
    """
    try:
        there = Path(os.path.realpath(path))
        while not there.exists():
            there = there.parent
        obstacle = None if _writable(there) else f"no writable folder {there}"
    except OSError as error:
        obstacle = error.strerror or str(error)
    if obstacle is not None:
        raise RequestError(f"cannot make {path}: {obstacle}")


def is_replaced(path: Path) -> bool:
    """Return whether writing makes or replaces a regular file, rather than a device or pipe."""
    if is_stdout(path) or names_open_file(path):
        return False
    return not path.exists() or path.is_file()


def numbered(path: Path, index: int) -> Path:
    """Return the path of an image beside the first: ``a.png``, ``a-2.png`` …."""
    return path.with_name(f"{path.stem}-{index + 1}{path.suffix}") if index else path


def check_numbered(paths: Sequence[Path | None], count: int) -> None:
    """Check that a number of pictures can be written, each to a file of its own.

    Raises
    ------
    RequestError
        They cannot.
    """
    for path in paths if count > 1 else ():
        if path is not None and not is_replaced(path):
            raise RequestError(
                f"cannot write {count} pictures to {path}, which is no ordinary file; ask for one, "
                "or name a file"
            )
    # The last has the longest name.
    check_outputs([None if path is None else numbered(path, count - 1) for path in paths])


def results(paths: Sequence[Path | None]) -> TextIO:
    """Return the stream for messages: standard error if a file goes to standard output."""
    written = any(path is not None and is_stdout(path) for path in paths)
    return sys.stderr if written else sys.stdout


def print_path(path: Path, stream: TextIO) -> None:
    """Print a path: unchanged for programs, without control characters on a terminal."""
    print(printable(str(path)) if stream.isatty() else path, file=stream)


def _target(path: Path) -> Path:
    return STDOUT if is_stdout(path) else Path(os.path.realpath(path))


def _writable(folder: Path) -> bool:
    """Return whether a file can be made in a folder; in ``/proc``, permissions do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _obstacle(path: Path, text: bool) -> str | None:
    """Return why a file cannot be written."""
    if is_stdout(path):
        if getattr(sys.stdout, "name", None) == os.devnull:
            return "standard output is closed"
        if sys.stdout.isatty() and not text:
            return "a terminal shows no such file; send it to a file or to another program"
        return None
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    else:
        if stat.S_ISDIR(mode):
            return "it is a folder"
        if stat.S_ISSOCK(mode):
            return "it is a socket"
        if not os.access(path, os.W_OK):
            return "it is not writable"
    folder = _target(path).parent
    if stat.S_ISREG(mode) and not names_open_file(path) and not _writable(folder):
        return f"no writable folder {folder}"
    return None
