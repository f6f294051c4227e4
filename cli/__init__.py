"""The ``bksdm`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 and 1 are the command's own, 2 is for anything the user can put right, 70 for a fault of the
    program, and 128 + n for the end by signal n (130 interrupted, 141 nobody reads the output, 143
    terminated).
    """
    try:
        # Here, for an interrupt may come while modules are loaded.
        from bksdm.cli.commands import run

        return run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("bksdm: interrupted", file=sys.stderr)
        return 130
