"""``bksdm batch`` with processes: every picture is there once, whatever happens to them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from bksdm import EngineError, TextToImage
from bksdm.batch.drawer import Drawer, Setup
from bksdm.batch.job import Job
from bksdm.batch.processes import draw_with_processes
from bksdm.batch.throughput import throughput
from bksdm.models import EMOJI
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.images import read_parameters
from bksdm.storage.files import PARTIAL

ROWS = [
    {"prompt": "a dog", "steps": 2},
    {"prompt": "a cat", "steps": 3, "count": 2},
    {"prompt": "a fox", "seed": 40, "size": "72x64"},
    {"prompt": ["a bee", "a pig"], "negative": "fog"},
]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture
def batch(run, tiny_bundle):
    """Run ``bksdm batch`` on the tiny bundle."""

    def call(path, place, *words):
        return run("batch", path, "--model", tiny_bundle, "-s", 1, "-o", place, *words)

    return call


def listed(folder, name="prompts"):
    rows = (folder / f"{name}.manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row) for row in rows]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_are_those_of_generate_under_names_of_their_own(batch, run, lines, tmp_path):
    folder = tmp_path / "out"
    code, out, err = batch(lines, folder, "--processes", 2, "--seed", 5)
    assert code == 0
    assert err.splitlines()[-1] == "6 drawn, 0 already there"
    assert "6 pictures in" in err
    found = listed(folder)
    assert sorted(out.split()) == sorted(str(folder / entry["file"]) for entry in found)
    assert set(contents(folder)) == {*(e["file"] for e in found), "prompts.manifest.jsonl"}
    assert [(e["line"], e["index"]) for e in found] == [
        *((1, 0), (2, 0), (2, 1)),
        *((3, 0), (4, 0), (4, 1)),
    ]
    assert [e["options"]["seed"] for e in found] == [5, 6, 6, 40, 8, 8]
    plain = tmp_path / "plain"
    words = ["--prompts", lines, "-s", 1, "--seed", 5, "--model", run.model, "-o", plain]
    assert run("generate", *words)[0] == 0
    for entry in found:
        number = f"-{entry['index'] + 1}" if entry["index"] else ""
        assert (folder / entry["file"]).read_bytes() == (
            plain / f"{entry['line']:05}{number}.png"
        ).read_bytes()


@pytest.fixture
def run(run, tiny_bundle):
    run.model = tiny_bundle
    return run


def test_what_is_there_is_not_drawn_again(batch, lines, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    assert batch(lines, folder, "--processes", 1)[0] == 0
    before = contents(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert batch(lines, folder, "--processes", 2)[2].endswith("0 drawn, 6 already there\n")
    gone = listed(folder)[2]["file"]
    (folder / gone).unlink()
    assert batch(lines, folder, "--processes", 1)[2].endswith("1 drawn, 5 already there\n")
    assert contents(folder) == before
    del times[folder / gone]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    # Whatever makes another picture makes another name.
    for words in (["--guidance", 2], ["--format", "jpeg"], ["--seed", 1], ["--sampler", "ddim"]):
        drawn = batch(lines, folder, "--processes", 1, *words)[2].splitlines()[-1]
        # One line has a seed of its own.
        assert drawn.startswith("5 drawn" if words == ["--seed", 1] else "6 drawn")
    assert len(list(folder.glob("*.png"))) == 6 + 6 + 5 + 6


def test_rows_of_parquet_are_lines(batch, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed; extra parquet")
    from pyarrow import parquet

    rows = {"prompt": ["a dog", "a cat"], "cfg_scale": [2.0, None], "seed": [None, 9]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "x.parquet")
    assert batch(tmp_path / "x.parquet", tmp_path / "out", "--processes", 1)[0] == 0
    found = [entry["options"] for entry in listed(tmp_path / "out", "x")]
    assert [(o["prompt"], o["guidance_scale"], o["seed"]) for o in found] == [
        ("a dog", 2.0, 0),
        ("a cat", 7.5, 9),
    ]
    parquet.write_table(pyarrow.table({"prompt": ["a"], "stepps": [1]}), tmp_path / "x.parquet")
    err = batch(tmp_path / "x.parquet", tmp_path / "out")[2]
    assert "x.parquet: line 1: unknown option 'stepps'; did you mean steps?" in err
    (tmp_path / "x.parquet").write_bytes(b"no table")
    assert "x.parquet: not Parquet (" in batch(tmp_path / "x.parquet", tmp_path / "out")[2]


def test_bad_lines_and_places_are_refused_before_the_work(batch, lines, tmp_path, monkeypatch):
    monkeypatch.delattr(TextToImage, "load")
    (tmp_path / "x").write_text("")
    refused = [
        (["--format", "gif"], "--format: unknown 'gif'"),
        (["--quality", 3], "--quality is for JPEG and WebP"),
        (["--processes", 0], "--processes: must be a whole number from 1"),
        (["--precision", "bfloat16"], "precision bfloat16 is not for the engine onnxruntime"),
        (["--engine", "none"], "unknown engine 'none'"),
    ]
    for words, told in refused:
        code, _, err = batch(lines, tmp_path / "out", *words)
        assert (code, told in err) == (2, True), err
    assert f"cannot make {tmp_path / 'x'}" in batch(lines, tmp_path / "x")[2]
    lines.write_text('{"prompt": "a", "steps": 0}\n')
    assert "line 1: num_inference_steps must be" in batch(lines, tmp_path / "out")[2]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "words", "extra"), [("ray", ["--ray", "auto"], "ray"), ("pyarrow", [], "parquet")]
)
def test_a_missing_package_is_named(batch, tmp_path, monkeypatch, package, words, extra):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = batch(tmp_path / "x.parquet", tmp_path / "out", *words)
    told = f"needs {package}; run: pip install 'bksdm-runtime[{extra}]'"
    assert (code, err) == (2, f"bksdm: error: this command {told}\n")


def jobs(count, steps=1):
    config = GenerationConfig("a dog", num_inference_steps=steps)
    found = []
    for number in range(1, count + 1):
        given = GenerationConfig.from_dict({**config.to_dict(), "seed": number})
        found.append(Job(number, given, (1, 4, 8, 8), steps))
    return found


def test_a_process_that_is_killed_is_replaced(tiny_bundle, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    work = jobs(12, 40)
    expected = [Drawer(Setup.of(whole, tiny_bundle), "one").draw(j.line, j.config) for j in work]
    told = []
    for outcome in draw_with_processes(Setup.of(killed, tiny_bundle, threads=1), work, 2):
        told.append(outcome)
        if len(told) in (1, 5):
            # Which has been given another line meanwhile.
            os.kill(int(outcome.worker.removeprefix("process ")), signal.SIGKILL)
    assert sorted(outcome.line for outcome in told) == list(range(1, 13))
    by_line = {outcome.line: outcome for outcome in told}
    assert [by_line[o.line].sha256 for o in expected] == [o.sha256 for o in expected]
    drawn = {name for name in contents(killed) if not name.startswith(PARTIAL)}
    assert drawn == set(contents(whole))
    assert len({outcome.worker for outcome in told}) >= 3
    assert not multiprocessing.active_children()
    assert f"{sum(o.drawn for o in told)} pictures in 2.0 s" in throughput(told, 2.0)[0]


def test_a_line_that_ends_its_process_twice_is_named(tiny_bundle, tmp_path):
    ended = threading.Event()

    def kill():
        while not ended.is_set():
            for child in multiprocessing.active_children():
                child.kill()
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    told = r"line 1: the process that drew it ended by SIGKILL, and so did one before; where"
    try:
        with pytest.raises(EngineError, match=told):
            list(draw_with_processes(Setup.of(tmp_path, tiny_bundle), jobs(1), 1))
    finally:
        ended.set()
        killer.join()
    assert not multiprocessing.active_children()


def alive_after(group, seconds):
    """Return whether processes of a group are there after some time, in which they may end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def under_way(tiny_bundle, tmp_path):
    """Start ``bksdm batch`` with two processes; return it, its folder, and the command."""
    rows = [{"prompt": "a dog", "seed": seed, "steps": 100} for seed in range(40)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["batch", "x.jsonl", "--model", str(tiny_bundle), "--processes", "2", "-o", "out"]
    command = [sys.executable, "-m", "bksdm.cli", *words]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process, tmp_path / "out", command


unix = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


@unix
def test_an_interrupt_ends_all_processes(under_way):
    process, folder, _ = under_way
    # As a terminal does: to every process.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "bksdm: interrupted\n")
    assert not alive_after(process.pid, 5)
    drawn = list(folder.iterdir())
    assert 1 <= len(drawn) < 40
    for path in drawn:
        with Image.open(path) as picture:
            assert np.asarray(picture).shape == (64, 64, 3)
        assert read_parameters(path)["prompt"] == "a dog"


@unix
def test_a_run_that_is_killed_leaves_no_processes_and_goes_on(under_way):
    process, folder, command = under_way
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    assert not alive_after(process.pid, 10)
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True)
    told = done.stderr.splitlines()[-1]
    assert " 0 already there" not in told
    assert sum(map(int, re.findall(r"\d+", told))) == 40
    assert len(list(folder.glob("[0-9a-f]*.png"))) == 40
    assert not list(folder.glob(f"{PARTIAL}*"))


def test_memory_is_looked_at_once_for_each_size(batch, tmp_path, monkeypatch):
    """It reads whole graphs: for thousands of lines, that took minutes."""
    rows = [{"prompt": "a", "size": size} for size in ("64x64", "72x64")] * 50
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    looked = []
    monkeypatch.setattr(
        "bksdm.cli.checked_prompts.require_memory", lambda *words: looked.append(words[1])
    )
    monkeypatch.setattr("bksdm.cli.batch_run.draw_with_processes", lambda *words: (x for x in ()))
    batch(tmp_path / "x.jsonl", tmp_path / "out")
    assert looked == [(1, 4, 8, 8), (1, 4, 8, 9)]


def test_an_error_of_a_process_is_one_line(batch, lines, tmp_path):
    folder = tmp_path / "out"
    code, _, err = batch(lines, folder, "--device", 1)
    assert code == 2
    assert err.startswith("bksdm: error: device chooses a GPU")
    assert err.count("\n") == 1
    assert not folder.exists()
    # As where the disk is full.
    folder.write_text("")
    with pytest.raises(NotADirectoryError):
        list(draw_with_processes(Setup.of(folder / "x", EMOJI), jobs(1), 1))


def test_as_many_processes_start_as_there_is_memory_for(batch, lines, tmp_path, monkeypatch):
    found = []

    def draw(setup, jobs, count):
        found.append((count, setup.loading["threads"]))
        yield from ()

    monkeypatch.setattr("bksdm.cli.batch_run.draw_with_processes", draw)
    monkeypatch.setattr("bksdm.cli.batch_run.usable_processors", lambda: 8)
    monkeypatch.setattr("bksdm.cli.batch_run.needed_bytes", lambda *words, **named: 10)
    for free, words in ((None, []), (25, []), (5, []), (None, ["--threads", 3])):
        monkeypatch.setattr("bksdm.cli.batch_run.free_bytes", lambda free=free: free)
        batch(lines, tmp_path / "out", "--force", *words)
    # There are four lines.
    assert found == [(4, 2), (2, 4), (1, 8), (2, 3)]
