"""``bksdm bench report``: a set that can be resumed, and a document from its records."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bksdm.benchmarks import load, roofline
from bksdm.benchmarks.latency import Settings, measure_latency
from bksdm.benchmarks.machine import peak_memory
from bksdm.benchmarks.report import in_own_process, measure_set, write_report
from bksdm.benchmarks.roofline import measure_roofline
from bksdm.cli import main
from bksdm.engines.errors import BksdmError
from bksdm.models import EMOJI


def peers_record():
    def entry(seconds):
        return {
            "samples": seconds,
            "first_seconds": [9.0],
            "load_seconds": [2.0, 1.0, 1.5],
            "peak_bytes": 3e9,
            "distance": {"largest": 1e-5, "relative_l2": 2e-6},
        }

    stages = {
        "diffusers": {"unet": entry([4.0, 4.2, 4.1])},
        "openvino": {"unet": entry([2.0, 2.0, 2.0])},
        "bksdm": {"unet": entry([1.0, 1.0, 1.0])},
        "mnn": {"unet": {"reason": "it is too new"}},
    }
    for found in stages.values():
        for stage in ("vae_decoder", "picture"):
            found[stage] = (
                found["unet"]
                if stage == "vae_decoder"
                else {**found["unet"], "distance": {"largest": 1, "psnr": 70.0}}
            )
    done = {"seconds": 60.0, "bytes": 2e9, "peak_bytes": 5e9}
    return {
        "kind": "peers",
        "machine": {
            "processor": "Abacus 9000",
            "gpus": [],
            "physical_cores": 2,
            "memory_gb": 8.0,
            "system": "Linux",
            "python": "3.11",
            "versions": {"numpy": "2.4"},
        },
        "task": {"checkpoint": "small", "width": 512, "height": 512, "steps": 2, "threads": 2},
        "peers": {name: {"converted": done, "stages": found} for name, found in stages.items()},
    }


@pytest.fixture(scope="module")
def small_records():
    """Real records of the built-in model, with as little work as there can be."""
    settings = Settings(steps=1, height=64, width=64, repeat=1, warmup=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "ROUNDS", 1)
        patch.setattr(roofline, "PROBE_BYTES", 2**20)
        return {
            "latency": measure_latency(EMOJI, settings),
            "roofline": measure_roofline(EMOJI, 64, 64, 1),
        }


def test_the_document_states_ratios_and_their_conditions(tmp_path, small_records):
    (tmp_path / "results").mkdir()
    records = {
        "small-peers": peers_record(),
        "emoji-latency": small_records["latency"],
        "small-roofline": small_records["roofline"],
    }
    for name, record in records.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(record))
    text = write_report(tmp_path).read_text()
    assert "Abacus 9000, 2 cores, 8.0 GB, 2 threads, Linux, Python 3.11, numpy 2.4." in text
    assert "| UNet | ratio to openvino |" in text
    assert "| bksdm | 0.50 (0.50–0.50) | 1.00 | 3 | 9.0 | 2.0 / 1.2 | 3.00 |" in text
    assert "| openvino | 1.00 (1.00–1.00) |" in text
    assert "| mnn | – | – | – | – | – | – | it is too new |" in text
    assert "70 dB, at most 1 levels" in text
    assert "| unet_step |" in text
    assert "bound / taken" in text
    for name in ("small-peers", "emoji-latency"):
        assert f"results/{name}.png" in text
        assert (tmp_path / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_is_missing_is_measured(tmp_path):
    made = []

    def measure(name, record):
        made.append(name)
        record.write_text("{}")

    names = ("small-peers", "emoji-latency")
    for again, total in ((False, 2), (False, 2), (True, 4)):
        measure_set(names, again, tmp_path, measure, lambda line: None)
        assert len(made) == total
    (tmp_path / "results" / "emoji-latency.json").unlink()
    measure_set(names, False, tmp_path, measure, lambda line: None)
    assert made[4:] == ["emoji-latency"]


@pytest.mark.slow
def test_an_entry_is_measured_in_a_process_of_its_own(tmp_path):
    """Its peak memory is not that of this process, which has held more."""
    ballast = np.ones(2**29, np.uint8)
    assert peak_memory() > ballast.size
    record = tmp_path / "r.json"
    in_own_process(tmp_path, 1)("emoji-latency", record)
    assert json.loads(record.read_text())["peak_memory_bytes"] < ballast.size
    with pytest.raises(BksdmError, match="abacus could not be measured"):
        in_own_process(tmp_path, 1)("abacus", record)


def test_the_command_renders_what_is_there(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "small-peers.json").write_text(json.dumps(peers_record()))
    assert main(["bench", "report", "--render", "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "RESULTS.md")
    assert "Abacus 9000" in (tmp_path / "RESULTS.md").read_text()
