"""The ``bksdm`` command: one file per verb, each imported when it runs."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from bksdm.engines.errors import BksdmError

COMMANDS = {
    "generate": "make pictures from a prompt",
    "export": "turn a diffusers checkpoint into a bundle",
    "build": "compile a bundle for a GPU, or tune it to this CPU",
    "info": "show what a bundle, or a picture made here, holds",
    "verify": "compare a bundle with diffusers",
    "samplers": "list the samplers",
    "bench": "measure latency, compare records, set a bound",
    "calibrate": "show how much of the range of float16 a model uses",
    "dummy": "write a checkpoint with random weights",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (2 for anything the user can put right)."""
    parser = argparse.ArgumentParser(
        prog="bksdm", description="Run BK-SDM: export once, then a prompt becomes a picture."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary.capitalize() + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        if name in arguments[:1]:
            module = import_module(f"bksdm.cli.{name}")
            module.configure(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return int(options.run(options))
    except BksdmError as error:
        print(f"bksdm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bksdm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the place in our code that it comes from."""
    print(f"bksdm: warning: {message}", file=sys.stderr)
