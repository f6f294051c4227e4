"""``bksdm bench latency``: what is in the record, and what is left out of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bksdm.benchmarks import latency, load
from bksdm.benchmarks.latency import Settings, measure_latency
from bksdm.benchmarks.load import measure_loads
from bksdm.benchmarks.machine import describe_machine, device_memory
from bksdm.cli import main
from bksdm.engines.errors import EngineError
from bksdm.models import EMOJI


def test_the_record_holds_every_stage(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(load, "ROUNDS", 2)
    record_file, plot = tmp_path / "new.json", tmp_path / "new.png"
    command = ["bench", "latency", "--steps", "1", "--size", "64x64", "--repeat", "3"]
    assert main([*command, "--json", str(record_file), "--plot", str(plot)]) == 0
    record = json.loads(record_file.read_text())
    stages = record["stages"]
    assert {
        "tokenize",
        "text_encoder",
        "unet_step",
        "loop",
        "vae_decoder",
        "to_uint8",
        "png",
        "end_to_end",
    } <= set(stages)
    for entry in stages.values():
        assert entry["n"] == 3 == len(entry["samples"])
        assert 0 < entry["min"] <= entry["median"] <= entry["p95"] <= entry["p99"]
    parts = ("tokenize", "text_encoder", "unet", "loop", "vae_decoder", "to_uint8", "png")
    for i in range(3):
        whole = stages["end_to_end"]["samples"][i]
        assert sum(stages[name]["samples"][i] for name in parts) <= whole
    assert record["images_per_second"] == pytest.approx(1 / stages["end_to_end"]["median"])
    assert record["peak_memory_bytes"] > 50e6
    assert record["machine"]["versions"]["onnxruntime"]
    assert record["settings"]["threads"] >= 1
    loads = record["loads"]
    assert (len(loads["cold"]), len(loads["warm"])) == (1, 2)
    assert min(*loads["cold"], *loads["warm"]) > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "end_to_end" in capsys.readouterr().out


def test_warm_up_is_not_counted(monkeypatch):
    calls = []

    def one(model, settings, number):
        calls.append(number)
        return {"end_to_end": 100.0 if number < settings.warmup else float(number)}

    monkeypatch.setattr(latency, "_one", one)
    monkeypatch.setattr(latency, "measure_loads", lambda *arguments: {})
    record = measure_latency(EMOJI, Settings(warmup=2, repeat=3))
    assert calls == [0, 1, 2, 3, 4]
    assert record["stages"]["end_to_end"]["samples"] == [2.0, 3.0, 4.0]


def test_the_first_load_stores_the_graphs_and_the_others_find_them(
    nano_bundle, tmp_path, monkeypatch
):
    """What a load stores is only stored once, in the cache it is given."""
    program = "import sys; from bksdm.benchmarks import load; load._main(*sys.argv[1:])"
    command = [sys.executable, "-c", program, str(nano_bundle), "onnxruntime", "1", str(tmp_path)]
    stored = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert float(done.stdout) > 0
        stored.append({p.name: p.stat().st_mtime_ns for p in tmp_path.rglob("model.onnx*")})
    assert stored[0] == stored[1] != {}


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"cannot be loaded .*no such folder"):
        measure_loads(tmp_path / "nothing", "onnxruntime", None)


def test_gpu_memory_is_what_nvidia_smi_says_of_this_process(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\ncase $1 in *compute-apps*) echo '{os.getpid()}, 321'; "
        "echo '1, 5';; *) echo 'Abacus GPU, 580.1';; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert device_memory() == 321 * 2**20
    assert describe_machine()["gpus"] == ["Abacus GPU"]
    assert describe_machine()["driver"] == "580.1"
    program.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert device_memory() is None
    assert describe_machine()["gpus"] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--repeat", "0"], "--repeat"),
        (["--warmup", "-1"], "--warmup"),
        (["--size", "big"], "--size"),
        (["--json", "/no/such/folder/x.json"], "cannot write"),
        (["--engine", "abacus"], "unknown engine"),
    ],
)
def test_bad_arguments_are_named(capsys, arguments, named):
    assert main(["bench", "latency", *arguments]) == 2
    assert named in capsys.readouterr().err
