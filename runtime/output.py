"""Files that a user has named, and standard output in place of one."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path

from bksdm.engines.errors import RequestError
from bksdm.engines.files import write_file

STDIN, STDOUT = Path("/dev/stdin"), Path("/dev/stdout")
"""Stand for standard input and output, also where the system has no such files."""
_OPEN_FILE = re.compile(r"/dev/(std(in|out|err)|fd/\d+)|/proc/(self|\d+)/fd/\d+")


def names_open_file(path: Path) -> bool:
    """Whether a path is the system's name for a file that a process has open."""
    return _OPEN_FILE.fullmatch(str(path)) is not None


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
