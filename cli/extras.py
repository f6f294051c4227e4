"""Check for optional dependencies of a command."""

from __future__ import annotations

import os
from importlib.util import find_spec

from bksdm.engines.errors import BksdmError


def require(module: str, extra: str) -> None:
    """Check that an optional dependency is there.

    Raises
    ------
    BksdmError
        It is missing; names the extra that installs it.
    OSError
        The working directory is gone, where torch's libraries would end the process.
    """
    if find_spec(module) is None:
        raise BksdmError(f"this command needs {module}; run: pip install 'bksdm-runtime[{extra}]'")
    if extra == "export":
        os.getcwd()
