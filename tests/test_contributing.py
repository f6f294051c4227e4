"""The examples of CONTRIBUTING.md: one new file each, and nothing else is touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bksdm

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(heading):
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def packaged_with(folder, package, name, code):
    """Link the installed package into a folder, with one more file in one of its packages."""
    source, target = Path(bksdm.__file__).parent, folder / "bksdm"
    for part in (*package.split("/"), None):
        target.mkdir(parents=True)
        for entry in source.iterdir():
            if entry.name != part and not entry.name.startswith("."):
                (target / entry.name).symlink_to(entry.resolve())
        if part is not None:
            source, target = source / part, target / part
    (target / f"{name}.py").write_text(code, encoding="utf-8")


def run(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.parametrize(
    ("heading", "package", "name", "words"),
    [
        ("Add a sampler", "runtime/samplers", "restart", ["--sampler", "restart", "--steps", "2"]),
        (
            "Add an engine",
            "engines",
            "reference",
            ["--engine", "reference", "--steps", "1", "--size", "64x64"],
        ),
    ],
)
def test_one_file_is_enough(tmp_path, heading, package, name, words):
    command = ["-m", "bksdm.cli", "generate", "a red apple", "-o", "apple.png", *words]
    without = run(tmp_path, *command)
    assert without.returncode == 2
    assert re.search(rf"unknown (sampler|engine) '{name}'", without.stderr)
    packaged_with(tmp_path, package, name, example(heading))
    found = run(tmp_path, *command)
    assert (found.returncode, found.stdout) == (0, "apple.png\n"), found.stderr
    assert (tmp_path / "apple.png").stat().st_size > 1000
