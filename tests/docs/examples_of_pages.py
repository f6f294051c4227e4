"""Read the examples of a page in Markdown, and run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("sh", "console", "python")
# Those of C++ are compiled by tests/cpp/test_docs.py.
SHOWN = ("text", "cmake", "cpp", "dockerfile", "mermaid")
SHOWN += ("{commands}", "{eval-rst}", "{include} ", "{toctree}")
NOTE = re.compile(r"<!-- (not run|slow|stand-in): (.+) -->")


@dataclass(frozen=True)
class Example:
    """A fenced block, and the comments right before it.

    Attributes
    ----------
    page, line : str, int
        Where it begins.
    language : str
        What follows the fence.
    code : str
        Its lines.
    notes : dict
        Of the comments ``<!-- not run: … -->`` and ``<!-- slow: … -->``.
    """

    page: str
    line: int
    language: str
    code: str
    notes: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def examples(path):
    """Return all fenced blocks of a page."""
    found, notes, lines = [], {}, path.read_text(encoding="utf-8").split("\n")
    rows = iter(enumerate(lines, 1))
    for number, row in rows:
        if note := NOTE.fullmatch(row):
            notes[note[1]] = note[2]
        elif row.startswith("```"):
            code = []
            for _, inner in rows:
                if inner == "```":
                    break
                code.append(inner)
            page = str(path.relative_to(ROOT))
            found.append(Example(page, number, row[3:], "\n".join(code) + "\n", notes))
            notes = {}
        else:
            notes = {}
    return found


def stand_ins(path):
    """Return what the page says of folders that its examples find."""
    return [
        note[2] for note in NOTE.finditer(path.read_text(encoding="utf-8")) if note[1] == "stand-in"
    ]


def bash(script, folder):
    """Run a script as a user of this environment would, and return its process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_shell(example, folder):
    """Run a block; every line has to succeed."""
    done = bash(f"set -euo pipefail\n{example.code}", folder)
    assert done.returncode == 0, f"{example.name}\n{done.stdout}{done.stderr}"


def run_console(example, folder):
    """Run what follows ``$``, and compare all that is printed with the lines between."""
    parts = re.split(r"^\$ (.+)\n", example.code, flags=re.MULTILINE)[1:]
    # A mark after each command that leaves $? alone.
    mark = "s=$?; echo '--- mark'; (exit $s)"
    done = bash("exec 2>&1\n" + "\n".join(f"{line}\n{mark}" for line in parts[::2]), folder)
    assert done.stdout.split("--- mark\n") == [*parts[1::2], ""], example.name


def run_python(example, names):
    """Run a block among the names that those before it have left."""
    # Padded, for a traceback to show the line of the page.
    exec(compile("\n" * example.line + example.code, example.page, "exec"), names)
