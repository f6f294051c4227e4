"""Progress: a bar for a terminal, and few plain lines for a file."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from bksdm.cli import progress as module
from bksdm.cli.progress import PlainProgress, progress


@pytest.fixture
def clock(monkeypatch):
    """Time that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_few_and_plain(capsys, clock):
    with progress("draw", "step", 1000) as bar:
        for _ in range(1000):
            clock[0] += 5.0
            bar.update()
            bar.clear()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"draw: {n} of 1000 steps" for n in range(100, 1001, 100)]


def test_quick_work_writes_nothing(capsys, clock):
    with progress("draw", "step", 10) as bar:
        for _ in range(10):
            clock[0] += module.FIRST_SECONDS / 11
            bar.update()
    assert capsys.readouterr().err == ""


def test_work_of_unknown_extent_is_told_ever_less_often(capsys, clock):
    bar = PlainProgress("", "file", None)
    for _ in range(1000):
        clock[0] += 100.0
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{2**n} files" for n in range(10)]


def test_an_extent_may_become_known_later(capsys, clock):
    bar = PlainProgress("draw", "step", None)
    bar.total = 4
    clock[0] += 20
    bar.update(2)
    assert capsys.readouterr().err == "draw: 2 of 4 steps\n"


def test_a_terminal_has_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress("draw", "step", 2, delay=0) as bar:
        assert not isinstance(bar, PlainProgress)
        bar.update()
        bar.update()
    assert "\rdraw: " in sys.stderr.getvalue()


def test_a_log_file_has_no_control_characters(tiny_bundle, tmp_path):
    log = tmp_path / "log"
    command = [
        sys.executable,
        "-m",
        "bksdm.cli",
        "generate",
        "a dog",
        "--model",
        str(tiny_bundle),
        "--steps",
        "30",
        "--seed",
        "1",
        "-o",
        str(tmp_path / "x.png"),
    ]
    with log.open("wb") as stream:
        subprocess.run(command, check=True, stderr=stream, stdout=subprocess.DEVNULL)
    assert log.read_bytes() == b"seed: 1" + os.linesep.encode()
