"""Which room may import which, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bksdm

ROOT = Path(bksdm.__file__).parent
ROOMS = {
    "models": set(),
    "cmake": set(),
    "storage": {"engines"},
    "engines": {"storage", "optimize"},
    "optimize": {"engines", "storage", "runtime"},
    "runtime": {"engines", "storage", "optimize", "models"},
    "export": {"runtime", "optimize", "engines", "storage"},
    "batch": {"runtime", "engines", "storage", "models"},
    "serve": {"runtime", "engines", "models", "storage"},
    "evaluate": {"runtime", "engines", "storage", "models"},
    "benchmarks": {
        *("evaluate", "serve", "cli", "export"),
        *("runtime", "optimize", "engines", "storage", "models"),
    },
    "cli": {
        *("batch", "serve", "evaluate", "benchmarks", "export"),
        *("runtime", "optimize", "engines", "storage", "models"),
    },
}
SHARED = ("bksdm.engines.errors", "bksdm.engines.protocol", "bksdm.engines.profile")
# What engines and runtime may know of optimize/: its values, and what they ask it to do.
ASKED = ("rules", "tuned", "preparing", "compose")
WITHOUT_ONNX = ("models", "storage", "engines", "runtime")
WHOLE_BUNDLES = ("building.py", "tuning.py", "prepare_bundle.py", "quantizing.py", "saving.py")
# Scripts beside a room's modules.
SCRIPTS = ("peers", "tools")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (f"bksdm.{alias.name}" for alias in node.names)
            yield from names if node.module == "bksdm" else (node.module,)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(room):
    files = [p for p in sorted((ROOT / room).rglob("*.py")) if not {*SCRIPTS} & {*p.parts}]
    assert files
    for path in files:
        for module in imports(path):
            top, *parts = module.split(".")
            if room in WITHOUT_ONNX:
                assert top != "onnx", path.name
            if top != "bksdm" or parts[:1] == [room]:
                continue
            assert parts[0] in ROOMS[room], (path.name, module)
            if room == "storage":
                assert module in SHARED, (path.name, module)
            if parts[0] == "optimize" and room in WITHOUT_ONNX:
                assert parts[1] in ASKED, (path.name, module)
            if (room, parts[0]) == ("optimize", "runtime"):
                assert path.name in WHOLE_BUNDLES, (path.name, module)


def test_every_room_is_installed():
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == set(ROOMS)
