"""Run a command, one file each, imported only when needed, and turn its end into an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TextIO

from bksdm.cli.arguments import HelpFormatter, Parser, ShowVersion
from bksdm.cli.process import Stopped, drop_output, open_streams, stop_signals
from bksdm.cli.text import one_line, printable
from bksdm.engines.errors import BksdmError, RequestError

COMMANDS = {
    "generate": "make pictures from prompts",
    "export": "turn a diffusers checkpoint into a bundle",
    "batch": "draw a file of prompts with several processes, or with a Ray cluster",
    "serve": "draw pictures for others over HTTP, with a web page",
    "triton": "write a model repository of Triton Inference Server",
    "build": "compile a bundle for a GPU, or tune it to this CPU",
    "info": "describe a bundle, or how a picture was made",
    "verify": "compare a bundle with diffusers, or with its checksums",
    "samplers": "list the samplers",
    "doctor": "say which engines can be used here, and what the others lack",
    "cache": "list or remove what was stored to start faster",
    "evaluate": "score the pictures that a bundle draws",
    "bench": "measure speed, compare measurements and other programs",
    "quantize": "make a bundle in int8 of one in float32",
    "calibrate": "check whether a model fits into float16",
    "dummy": "write a checkpoint with random weights, for tests",
}
REFUSED, FAULT, UNREAD = 2, 70, 141
"""Exit codes: an error the user can correct, a fault of the program, and as after SIGPIPE."""


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; errors are printed as one line."""
    try:
        open_streams()
        with stop_signals(), warnings.catch_warnings(), _hints():
            warnings.showwarning = _warn
            # An error follows that says so.
            warnings.filterwarnings("ignore", ".*decompression bomb")
            code = _run(arguments)
            _flush()
            return code
    except (Exception, KeyboardInterrupt, Stopped) as error:
        if "--debug" in arguments:
            _say(printable("".join(traceback.format_exception(error)), kept="\n"))
        return _end(error)


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="bksdm", description="Run BK-SDM: export once, then a prompt becomes a picture."
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = parser.options
    wanted = next((word for word in arguments if word.partition("=")[0] not in known), None)
    if wanted is not None and wanted.startswith("-"):
        parser.refuse(wanted)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=HelpFormatter,
        )
        if name == wanted:
            module = import_module(f"bksdm.cli.{name}")
            module.configure(command)
            command.set_defaults(run=module.run)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:  # --help has been printed
        return int(stop.code or 0)
    return int(options.run(options))


def _end(error: BaseException) -> int:
    """Print in one line why a command has ended, and return its exit code."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        drop_output()
    if isinstance(error, BrokenPipeError):
        return UNREAD
    line, code = _reason(error)
    _say(f"bksdm: {one_line(line)}")
    return code


def _interrupt_behind(error: BaseException) -> BaseException:
    """Return the interrupt that an error comes of, or the error.

    A package whose import is interrupted raises an ImportError of its own, as if it were broken.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, (KeyboardInterrupt, Stopped)):
            return behind
        behind = behind.__cause__ or behind.__context__
    return error


def _reason(error: BaseException) -> tuple[str, int]:
    error = _interrupt_behind(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    if isinstance(error, Stopped):
        return f"ended by {error}", 128 + error.number
    if isinstance(error, MemoryError):
        return "error: not enough memory; ask for fewer or smaller pictures", REFUSED
    if isinstance(error, (BksdmError, OSError)):
        told = str(error)
        if isinstance(error, OSError) and error.strerror:
            told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if not _has_working_directory():
            told += "; the working directory is gone, change to an existing one"
        return f"error: {told}", REFUSED
    return (
        f"error: {type(error).__name__}: {error}; this is a fault of the program: please report "
        "it, with what the same command says with --debug",
        FAULT,
    )


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _flush() -> None:
    """Flush standard output; a failure at the end of the process would go unnoticed."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RequestError(f"cannot write standard output: {error.strerror}") from error


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads standard error
        print(line, file=sys.stderr, flush=True)


class _Hints(logging.Handler):
    """Prints what the package logs, each line once: it is the same for several networks."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = one_line(record.getMessage())
        if line not in self._said:
            self._said.add(line)
            _say(f"bksdm: {line}")


@contextmanager
def _hints() -> Iterator[None]:
    logger, handler = logging.getLogger("bksdm"), _Hints()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without its place in the code."""
    _say(f"bksdm: warning: {one_line(str(message))}")
