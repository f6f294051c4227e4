"""The harness of the peers: turns, what counts, the same-work gate, and peers that fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from bksdm.benchmarks import environments, side_by_side
from bksdm.benchmarks.environments import FOLDER, PeerError, environment
from bksdm.benchmarks.side_by_side import (
    Peer,
    Task,
    distance,
    measure_peers,
    prepare_checkpoint,
)
from bksdm.benchmarks.tables import tables
from bksdm.cli import main
from bksdm.engines import nvidia_driver
from bksdm.engines.errors import BksdmError

RUNNER = """
import os, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parents[1]))
from serve import serve

NAME = Path(__file__).parent.name

def convert(source, folder):
    Path(folder).mkdir()
    (Path(folder) / "weights").write_bytes(bytes(1000))
    if NAME == "broken":
        raise ValueError("this checkpoint is too new\\nfor me")

def load(stage, source, folder, threads, error=0.0):
    def run(feeds):
        if NAME == "dying" and stage == "vae_decoder":
            print("out of paint", file=sys.stderr, flush=True)
            os._exit(3)
        with open(Path(__file__).parents[1] / "turns", "a") as turns:
            print(stage, NAME, file=turns)
        first = next(iter(feeds.values()))
        if NAME == "odd":
            return first[..., :1]
        return (first + error, {"part": 0.5}) if stage == "picture" else first + error
    return run

serve(convert, load)
"""


@pytest.fixture
def fake_peers(tmp_path, monkeypatch):
    """Peers that return their first input, in this interpreter."""
    folder = tmp_path / "peers"
    peers = {
        "diffusers": Peer("diffusers"),
        "near": Peer("near", options={"error": 0.25}),
        "dying": Peer("dying"),
        "broken": Peer("broken"),
        "odd": Peer("odd"),
    }
    for name in peers:
        (folder / name).mkdir(parents=True)
        (folder / name / "runner.py").write_text(RUNNER)
    shutil.copy(FOLDER / "serve.py", folder)
    monkeypatch.setattr(environments, "FOLDER", folder)
    monkeypatch.setattr(side_by_side, "PEERS", peers)
    monkeypatch.setattr(side_by_side, "environment", lambda *asked: Path(sys.executable))
    return folder


def task(checkpoint, **changes):
    work = {"height": 64, "width": 64, "steps": 2, "rounds": 2, "repeat": 2, "threads": 1}
    return Task(checkpoint=str(checkpoint), **{**work, **changes})


def test_peers_take_turns_and_the_first_run_does_not_count(nano_checkpoint, tmp_path, fake_peers):
    work = tmp_path / "work"
    record = measure_peers(task(nano_checkpoint), work, ("near", "diffusers"), lambda line: None)
    turns = [line.split() for line in (fake_peers / "turns").read_text().splitlines()]
    expected = [
        [stage, name]
        for _ in range(2)
        for stage in ("unet", "vae_decoder", "picture")
        for name in ("diffusers", "near")
        for _ in range(1 + (1 if stage == "picture" else 2))
    ]
    assert turns == expected
    entry = record["peers"]["near"]["stages"]["unet"]
    assert len(entry["samples"]) == 4
    assert len(entry["load_seconds"]) == len(entry["first_seconds"]) == 2
    assert entry["peak_bytes"] > 10e6
    assert record["peers"]["near"]["stages"]["picture"]["parts"] == {"part": [0.5, 0.5]}
    assert record["peers"]["near"]["converted"]["bytes"] == 1000


def test_every_peer_is_compared_with_the_reference(nano_checkpoint, tmp_path, fake_peers):
    once = task(nano_checkpoint, rounds=1, repeat=1)
    record = measure_peers(once, tmp_path / "w", ("near",), lambda line: None)
    reference, near = (record["peers"][name]["stages"] for name in ("diffusers", "near"))
    assert reference["unet"]["distance"] == {"largest": 0.0, "relative_l2": 0.0}
    assert near["unet"]["distance"]["largest"] == pytest.approx(0.25, abs=1e-6)
    # RMS 0.25 of 255 levels.
    assert near["picture"]["distance"]["psnr"] == pytest.approx(20 * np.log10(255 / 0.25), abs=1e-4)


def test_a_peer_that_fails_says_why_and_the_others_go_on(nano_checkpoint, tmp_path, fake_peers):
    names = ("broken", "dying", "odd", "near")
    once = task(nano_checkpoint, rounds=1)
    record = measure_peers(once, tmp_path / "w", names, lambda line: None)
    peers = record["peers"]
    assert peers["broken"]["reason"] == "convert: ValueError: this checkpoint is too new"
    dead = peers["dying"]["stages"]["vae_decoder"]["reason"]
    assert dead == "its process ended with code 3 during run (out of paint)"
    assert len(peers["dying"]["stages"]["unet"]["samples"]) == 2
    assert "has the shape (2, 4, 8, 1)" in peers["odd"]["stages"]["unet"]["reason"]
    assert len(peers["near"]["stages"]["vae_decoder"]["samples"]) == 2
    unet, vae, _, conversions = (table.markdown() for table in tables(record))
    assert "| broken | – | – | – | – | – | – | convert: ValueError" in unet
    assert "out of paint" in vae
    assert "too new" in conversions


def test_a_conversion_is_made_once(nano_checkpoint, tmp_path, fake_peers):
    for _ in range(2):
        once = task(nano_checkpoint, rounds=1, repeat=1)
        record = measure_peers(once, tmp_path, ("near",), lambda line: None)
    folder = tmp_path / nano_checkpoint.resolve().name / "near"
    assert (
        json.loads((folder / "converted.json").read_text()) == record["peers"]["near"]["converted"]
    )


@pytest.mark.parametrize(
    ("found", "stage", "expected"),
    [
        ([3.0, 4.0], "unet", {"largest": 0.0, "relative_l2": 0.0}),
        ([3.0, 9.0], "unet", {"largest": 5.0, "relative_l2": 1.0}),
        ([3.0, 4.0], "picture", {"largest": 0.0, "psnr": 99.0}),
    ],
)
def test_distance(found, stage, expected):
    assert distance(np.float32(found), np.float32([3.0, 4.0]), stage) == expected


def test_an_environment_that_cannot_be_made_is_a_reason(tmp_path, monkeypatch):
    folder = tmp_path / "peers"
    (folder / "lost").mkdir(parents=True)
    (folder / "lost" / "requirements.txt").write_text("./no-such-package\n")
    monkeypatch.setattr(environments, "FOLDER", folder)
    with pytest.raises(PeerError, match=r"cannot be installed: .*no-such-package"):
        environment("lost", tmp_path / "work")
    assert not (tmp_path / "work/environments/lost/complete").exists()


def test_the_checkpoint_gets_a_scheduler_that_every_peer_has(nano_checkpoint, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        prepare_checkpoint(nano_checkpoint, tmp_path)
    )
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"


def test_what_is_no_checkpoint_is_refused(nano_bundle, tmp_path):
    with pytest.raises(BksdmError, match="no vae/"):
        prepare_checkpoint(nano_bundle, tmp_path)


def test_a_device_may_have_an_environment_of_its_own(tmp_path, monkeypatch):
    installed = []
    for name, files in {"own": ("", "-cuda", "-alone"), "shared": ("",)}.items():
        (tmp_path / "peers" / name).mkdir(parents=True)
        for kind in files:
            (tmp_path / "peers" / name / f"requirements{kind}.txt").touch()
    monkeypatch.setattr(environments, "FOLDER", tmp_path / "peers")
    monkeypatch.setattr(environments.venv, "create", lambda place, with_pip: place.mkdir())
    monkeypatch.setattr(
        environments, "_install", lambda python, arguments: installed.append(Path(arguments[-1]))
    )
    (tmp_path / "environments").mkdir()
    made = [
        environment(name, tmp_path, device).parents[1].name
        for name in ("own", "shared")
        for device in ("cpu", "cuda")
    ]
    assert made == ["own", "own-cuda", "shared", "shared"]
    assert [file.name for file in installed] == [
        "requirements.txt",
        "requirements-alone.txt",
        "requirements-cuda.txt",
        "requirements-alone.txt",
        "requirements.txt",
    ]


def test_peers_on_a_gpu_draw_several_pictures_in_float16(
    nano_checkpoint, tmp_path, fake_peers, monkeypatch
):
    """What each is asked for; the runners are played."""
    asked = []

    class Played(environments.Runner):
        def ask(self, do, **arguments):
            asked.append((do, arguments.get("dtype"), arguments.get("device")))
            for name in ("dtype", "device", "compiled", "engine"):
                arguments.pop(name, None)
            return super().ask(do, **arguments)

    peers = side_by_side.peers_on("cuda")
    for peer in peers.values():
        (fake_peers / peer.folder).mkdir(exist_ok=True)
        (fake_peers / peer.folder / "runner.py").write_text(RUNNER)
    monkeypatch.setattr(side_by_side, "Runner", Played)
    work = task(nano_checkpoint, device="cuda", rounds=1)
    record = measure_peers(work, tmp_path / "w", ("bksdm", "optimum"), lambda line: None)
    assert asked[:3] == [
        ("convert", None, None),
        ("convert", "float16", None),
        ("convert", "fp16", "cuda"),
    ]
    assert ("load", None, "cuda") in asked
    assert {"unet", "vae_decoder"}.isdisjoint(record["peers"]["bksdm"]["stages"])
    assert len(record["peers"]["bksdm"]["stages"]["picture"]["samples"]) == 2
    # Converted for a CPU, it would be another.
    assert (tmp_path / "w" / f"{nano_checkpoint.resolve().name}-cuda" / "bksdm").exists()
    picture, _ = tables(record)
    assert "on a GPU, float16 but for diffusers" in picture.title


@pytest.mark.slow
def test_diffusers_and_we_do_the_same_work(nano_checkpoint, nano_bundle, tmp_path, monkeypatch):
    """The real runners, in this interpreter, on a bundle that is there already."""
    monkeypatch.setattr(side_by_side, "environment", lambda *asked: Path(sys.executable))
    models = tmp_path / nano_checkpoint.resolve().name / "bksdm"
    models.mkdir(parents=True)
    shutil.copytree(nano_bundle, models / "model")
    written = json.dumps(side_by_side.SCHEDULER)
    (models / "model" / "scheduler" / "scheduler_config.json").write_text(written)
    index = json.loads((models / "model" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", side_by_side.SCHEDULER["_class_name"]]
    (models / "model" / "model_index.json").write_text(json.dumps(index))
    (models / "converted.json").write_text('{"seconds": 1, "bytes": 1, "peak_bytes": 1}')
    work = task(nano_checkpoint, rounds=1, repeat=1)
    record = measure_peers(work, tmp_path, ("diffusers", "bksdm"), lambda line: None)
    stages = record["peers"]["bksdm"]["stages"]
    # float32 networks of this size agree to 3e-6 (test_export); pictures to a rounded level.
    assert stages["unet"]["distance"]["relative_l2"] < 1e-5
    assert stages["vae_decoder"]["distance"]["relative_l2"] < 1e-5
    assert stages["picture"]["distance"]["largest"] <= 1


def test_without_a_gpu_its_peers_are_refused(nano_checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(nvidia_driver, "load_driver", lambda: None)
    assert main(["bench", "peers", str(nano_checkpoint), "--device", "cuda"]) == 2
    assert "--device cuda: no NVIDIA driver (libcuda.so.1) was found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["peers", "no-such-folder"], "no-such-folder"),
        (["peers", "x", "--peers", "abacus"], "--peers: unknown 'abacus'; known: diffusers"),
        (["peers", "x", "--rounds", "0"], "--rounds"),
        (["peers", "x", "--device", "cuda", "--peers", "mnn"], "known: diffusers, diffusers-float"),
        (["peers", "x", "--device", "abacus"], "--device"),
        (["peers", "x", "--threads", "0"], "--threads"),
        (["report", "--only", "abacus"], "--only: unknown 'abacus'; known: small-peers"),
        (["report", "-o", "no-such-folder"], "no-such-folder: no such folder"),
    ],
)
def test_bad_arguments_are_named(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    assert named in capsys.readouterr().err
