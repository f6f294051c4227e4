"""``bksdm cache``: what is stored for later starts, and how it goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bksdm.cli import main
from bksdm.models import EMOJI
from bksdm.optimize import preparing
from bksdm.storage.files import PARTIAL, in_use

DAY = 24 * 3600


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "bksdm" / "engines"


def store(root, days, network="unet", number="0123456789abcdef"):
    folder = root / "graphs-onnxruntime-1.32.0-12345678" / f"{network}-{number}"
    folder.mkdir(parents=True)
    (folder / "model.onnx.data").write_bytes(bytes(2_000_000))
    then = time.time() - days * DAY
    os.utime(folder, (then, then))
    return folder


def run(capsys, *arguments):
    code = main(["cache", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_a_list_says_model_network_size_age_and_place(capsys, home):
    folder = store(home / "small-123456789abc", 3, "vae_decoder")
    code, (line,), err = run(capsys)
    assert code == 0
    assert line.split() == ["small", "vae_decoder", "2.0", "MB", "3", "days", str(folder)]
    assert err == "2.0 MB in all\n"


def test_nothing_is_stored(capsys, home):
    assert run(capsys) == (0, [], f"nothing is stored in {home}\n")
    assert run(capsys, "prune", "--all") == (0, [], "nothing was removed\n")


@pytest.mark.parametrize(
    ("options", "left"), [([], [3, 13]), (["--older-than", "2"], []), (["--all"], [])]
)
def test_prune(capsys, home, options, left):
    folders = {days: store(home / f"small-{days:012x}", days) for days in (3, 13, 15)}
    code, lines, _ = run(capsys, "prune", *options)
    assert code == 0
    assert [days for days, folder in folders.items() if folder.exists()] == left
    assert len(lines) == 3 - len(left)
    # Nothing is left of a bundle that has no graphs any more.
    assert len(list(home.glob("*"))) == len(left)


@pytest.mark.parametrize("folder", ["", "engines"])
def test_graphs_of_a_bundle(capsys, tmp_path, folder):
    graph = store(tmp_path / "small" / "engines", 1)
    where = ("--engine-cache", tmp_path / "small" / folder)
    assert run(capsys, *where)[1][0].split()[:2] == ["small", "unet"]
    assert len(run(capsys, "prune", "--all", *where)[1]) == 1
    assert not graph.exists()


def test_other_files_of_a_bundle_stay(capsys, tmp_path):
    bundle = tmp_path / "small"
    store(bundle / "engines", 1)
    files = [
        bundle / "model_index.json",
        bundle / "engines" / "tuned-1" / "engine.json",
        bundle / "unet" / "model.onnx",
    ]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    run(capsys, "prune", "--all", "--engine-cache", bundle)
    assert all(file.exists() for file in files)


PROGRAM = """
import sys
from pathlib import Path
from bksdm.storage.files import in_use
with in_use(Path(sys.argv[1])):
    print("in use", flush=True)
    sys.stdin.read()
"""


def test_what_a_process_reads_stays(capsys, home):
    folder = store(home / "small-123456789abc", 20)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"in use\n"
    code, lines, err = run(capsys, "prune", "--all")
    assert (code, lines) == (0, [])
    assert f"{folder}: in use, not removed" in err
    process.communicate(b"")
    assert len(run(capsys, "prune", "--all")[1]) == 1


def test_remains_of_killed_processes_go(capsys, home):
    folder = store(home / "small-123456789abc", 1)
    for number in (1, 2):
        folder.with_name(f"{PARTIAL}{number}").mkdir()
    with in_use(folder.with_name(f"{PARTIAL}2")):
        run(capsys, "prune")
    assert sorted(path.name for path in folder.parent.iterdir()) == [f"{PARTIAL}2", folder.name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all"], "--all and --older-than are for `bksdm cache prune`"),
        (["prune", "--all", "--older-than", "1"], "exclude each other"),
        (["prune", "--older-than", "-1"], "--older-than must be a number of days"),
        (["prune", "--older-than", "nan"], "--older-than must be a number of days"),
        (["--engine-cache", "nowhere"], "nowhere: no such folder"),
        (["--engine-cache", __file__], f"{__file__}: a file, not a folder"),
        (["purge"], "did you mean prune"),
    ],
)
def test_refused(capsys, arguments, said):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err


@pytest.mark.parametrize("given", [False, True])
def test_the_first_start_says_where_it_stores_what(capsys, tmp_path, home, monkeypatch, given):
    monkeypatch.setattr(preparing, "SLOW_FROM_BYTES", 0)
    place = ["--engine-cache", str(tmp_path / "given")] if given else []
    picture = ["generate", "a red apple", "--steps", "1", "-o", str(tmp_path / "x.png"), *place]
    assert main(picture) == 0
    hints = [line for line in capsys.readouterr().err.splitlines() if "rewriting" in line]
    # Once, though there are several networks.
    (hint,) = hints
    assert hint.startswith("bksdm: rewriting the graphs once, so that later starts are fast")
    assert str(tmp_path / "given" if given else home / "emoji-") in hint
    assert len(run(capsys, *place)[1]) == 3
    assert not (EMOJI / "engines").exists()
    assert main(picture) == 0
    assert "rewriting" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "bench",
    [
        ["latency", "--repeat", "1", "--warmup", "0", "--size", "64x64"],
        ["throughput", "--batches", "1", "--load", "0.5", "--requests", "1"],
    ],
)
def test_benchmarks_store_where_they_are_told(capsys, tmp_path, monkeypatch, bench):
    monkeypatch.setattr("bksdm.benchmarks.latency.measure_loads", lambda *arguments: {})
    place = ["--engine-cache", str(tmp_path / "given")]
    assert main(["bench", *bench, "--steps", "1", *place]) == 0
    capsys.readouterr()
    assert len(run(capsys, *place)[1]) == 3
