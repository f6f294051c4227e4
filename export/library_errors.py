"""Turn errors of diffusers, transformers, torch and the hub's client into one line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from bksdm.engines.errors import BksdmError, ExportError

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn any exception of a library into an `ExportError`, the exception being its cause.

    Parameters
    ----------
    what
        Action that failed, for the beginning of the message.

    Raises
    ------
    ExportError
        Of ``what`` and the first line of the reason. Errors of ours pass as they are.
    OSError
        There is no room to write, which is no fault of what is read.
    """
    try:
        yield
    except BksdmError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        raise ExportError(f"{what} ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """Return the type of an exception and the first line of its text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A heading says nothing without what follows.
    first = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    name = type(error).__name__
    return f"{name}: {first}" if first else name
