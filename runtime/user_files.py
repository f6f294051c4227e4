"""Files that a user has named, and standard input and output in their place."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from bksdm.engines.errors import RequestError
from bksdm.storage.files import names_open_file, write_file

STDIN, STDOUT = Path("/dev/stdin"), Path("/dev/stdout")
"""Stand for standard input and output, also where the system has no such files."""
MOST_BYTES = 2**29
"""Of a file that is read; more than a picture of the largest size that Pillow reads."""


def read_input(path: Path) -> bytes:
    """Return what a regular file holds, or what comes out of a pipe that this process was given.

    Anything else is refused: a device may have no end, and a named pipe no writer.

    Raises
    ------
    RequestError
        There is no such file, it cannot be read, or it is larger than :data:`MOST_BYTES`.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise RequestError(f"{path}: a folder, not a file")
        pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        if not stat.S_ISREG(mode) and not (pipe and names_open_file(path)):
            raise RequestError(f"{path}: a device or a named pipe, not a regular file")
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RequestError(f"{path}: no such file") from error
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > MOST_BYTES:
        raise RequestError(f"{path}: larger than {MOST_BYTES >> 20} MiB")
    return content


def is_stdout(path: Path) -> bool:
    """Whether what is written to a path comes out of this process's standard output.

    So it does under the names that the system has for open files, and where standard output is the
    pipe that has this name; not where it is redirected to a regular file, which is replaced.
    """
    if path == STDOUT:
        return True
    try:
        ours = os.fstat(sys.stdout.fileno())
        same = os.path.samestat(path.stat(), ours)
    except (OSError, ValueError):  # no such file, or standard output is no file
        return False
    return same and (names_open_file(path) or not stat.S_ISREG(ours.st_mode))


def write_output(path: Path, content: bytes) -> None:
    """Write a file at once, or through a device, a pipe or standard output.

    Raises
    ------
    RequestError
        It cannot be written; says why.
    BrokenPipeError
        Nobody reads standard output any more.
    """
    through = is_stdout(path)
    try:
        if through:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            write_file(path, content)
    except OSError as error:
        if through and isinstance(error, BrokenPipeError):
            raise
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8 as :func:`write_output` does."""
    write_output(path, text.encode())
