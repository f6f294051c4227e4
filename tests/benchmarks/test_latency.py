"""``bksdm bench latency``: what is in the record, and what is left out of it."""

from __future__ import annotations

import json

import pytest

from bksdm.benchmarks import latency
from bksdm.benchmarks.latency import Settings, measure_latency
from bksdm.cli import main
from bksdm.models import EMOJI


def test_the_record_holds_every_stage(tmp_path, capsys):
    record_file, plot = tmp_path / "new.json", tmp_path / "new.png"
    command = ["bench", "latency", "--steps", "1", "--size", "64x64", "--repeat", "3"]
    assert main([*command, "--json", str(record_file), "--plot", str(plot)]) == 0
    record = json.loads(record_file.read_text())
    stages = record["stages"]
    assert {"tokenize", "text_encoder", "unet_step", "loop", "vae_decoder", "to_uint8", "png",
            "end_to_end"} <= set(stages)  # fmt: skip
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
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "end_to_end" in capsys.readouterr().out


def test_warm_up_is_not_counted(monkeypatch):
    calls = []

    def one(model, settings, number):
        calls.append(number)
        return {"end_to_end": 100.0 if number < settings.warmup else float(number)}

    monkeypatch.setattr(latency, "_one", one)
    record = measure_latency(EMOJI, Settings(warmup=2, repeat=3))
    assert calls == [0, 1, 2, 3, 4]
    assert record["stages"]["end_to_end"]["samples"] == [2.0, 3.0, 4.0]


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
