"""``bksdm doctor``: print what is installed, which engines can be used, and what others lack."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from bksdm.cli.text import as_json, printable

EXAMPLES = """examples:
  bksdm doctor
  bksdm doctor --json
"""
WIDTH = 18


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print it; exit with 1 if no engine can be used."""
    from bksdm.cli.diagnosis import can_draw, diagnose

    found = diagnose()
    print(as_json(found) if options.json else printable("\n".join(_lines(found)), kept="\n"))
    return 0 if can_draw(found) else 1


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    for name in ("bksdm", "python", "system"):
        yield _row(name, found[name])
    yield _row("processor", _told(found["processor"], _processor))
    yield _row("memory", _told(found["memory"], _memory))
    yield _row("cache", _told(found["cache"], lambda cache: f"{cache['folder']}, {_size(cache)}"))
    yield from ("", "packages")
    yield from _section(found["packages"], lambda version: [version or "–"])
    yield from ("", "NVIDIA GPUs")
    yield from _gpus(found["driver"])
    yield from ("", "engines")
    yield from _section(found["engines"], _engine)


def _row(name: str, text: str) -> str:
    return f"{name:<{WIDTH}} {text}"


def _told(value: Any, describe: Any) -> str:
    return str(value.get("problem") or describe(value))


def _section(found: Mapping[str, Any], describe: Any) -> Iterator[str]:
    """Yield a row for each entry, and further lines of it below."""
    if "problem" in found:
        yield f"  {found['problem']}"
        return
    for name, value in found.items():
        first, *rest = describe(value)
        yield "  " + _row(name, first)
        yield from ("  " + _row("", line) for line in rest)


def _processor(found: Mapping[str, Any]) -> str:
    extensions = " ".join(found["extensions"])
    return f"{found['name']} ({extensions})" if extensions else str(found["name"])


def _memory(found: Mapping[str, Any]) -> str:
    if found["total"] is None or found["free"] is None:
        return "unknown"
    return f"{found['total'] / 1e9:.1f} GB, {found['free'] / 1e9:.1f} GB free"


def _size(found: Mapping[str, Any]) -> str:
    return f"{found['bytes'] / 1e6:.1f} MB"


def _gpus(driver: Mapping[str, Any]) -> Iterator[str]:
    if "problem" in driver:
        yield f"  {driver['problem']}"
        return
    yield "  " + _row("driver", f"{driver['version'] or 'unknown'}, for CUDA {driver['cuda']}")
    for index, gpu in enumerate(driver["gpus"]):
        memory = f"{gpu['memory'] / 1e9:.1f} GB"
        told = f"{gpu['name']}, compute capability {gpu['capability']}, {memory}"
        yield "  " + _row(f"GPU {index}", told)


def _engine(found: Mapping[str, Any]) -> list[str]:
    usable = ", ".join(filter(None, ("can be used", found["version"])))
    return [str(found.get("problem", usable)), *(f"note: {note}" for note in found["notes"])]
