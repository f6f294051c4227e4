"""The GPU's table: from committed records alone, and where there is none it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bksdm.benchmarks.gpu.table import (
    NOT_RUN,
    PAGES,
    RECORDS,
    gpu_section,
    read_records,
    with_section,
    write_pages,
)
from bksdm.benchmarks.gpu.turns import measure_turns, summaries
from bksdm.engines.errors import BksdmError

ROOT = Path(__file__).parents[2]
MACHINE = {
    "gpus": ["Abacus 9000"],
    "driver": "580.1",
    "versions": {"torch": "2.13", "onnxruntime-gpu": "1.31.1", "numpy": "2.4"},
}
COMMON = {"machine": MACHINE, "model": {"name": "small"}, "settings": {"steps": 25}}
LOOP = {
    "kind": "gpu-loop",
    **COMMON,
    "parity": {"worst_step": 1.5e-4, "largest_level": 1.2},
    "turns": {"eager": summaries({"diffusers": [0.8, 0.8], "loop": [0.4, 0.4]})},
}
PICTURES = {
    "stages": summaries({"picture": [0.2, 0.3]}),
    "networks": summaries({"unet": [0.008]}),
    "evaluations_per_second": 125.0,
    "counts": {"synchronisations": 1, "copies": 7},
    "device_memory_bytes": 2e9,
    "distance": {"psnr": 41.25},
}
NODES = {"CUDAExecutionProvider": {"Conv": 40, "Add": 2}, "CPUExecutionProvider": {"Shape": 3}}
PROVIDER = {
    "kind": "gpu-provider",
    **COMMON,
    "parts": {
        "recorded by nobody": PICTURES,
        "recorded by loop": {"reason": "ended with code -6 (aborted)"},
        "unet, TF32": {"first_seconds": 3.0, "nodes": NODES, **summaries({"seconds": [0.007]})},
    },
    "roofline": {"unet_bound_seconds": 0.0021, "peak": {"source": "a datasheet"}},
}

HOST = {"processor": "EPYC", "physical_cores": 16, "memory_gb": 128.0, "system": "Linux"}


def picture(seconds):
    return {
        "samples": [seconds] * 2,
        "first_seconds": [1.0],
        "load_seconds": [2.0],
        "peak_bytes": 3e9,
        "distance": {"largest": 1, "psnr": 50.0},
    }


PEERS = {
    "kind": "peers",
    "machine": {**MACHINE, **HOST, "python": "3.12"},
    "task": {
        "checkpoint": "small",
        "width": 512,
        "height": 512,
        "steps": 25,
        "threads": 16,
        "device": "cuda",
    },
    "peers": {
        name: {
            "converted": {"seconds": 1.0, "bytes": 1, "peak_bytes": 1},
            "stages": {"picture": picture(seconds)},
        }
        for name, seconds in {"diffusers": 1.6, "optimum": 0.8, "bksdm": 0.2}.items()
    },
}


@pytest.fixture
def checkout(tmp_path):
    """The pages of this one, without records."""
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text())
    (tmp_path / RECORDS).mkdir(parents=True)
    return tmp_path


def test_pages_hold_what_the_committed_records_say():
    section = gpu_section(read_records(ROOT / RECORDS))
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert with_section(text, section, page) == text


def test_records_become_tables_and_go_again(checkout):
    (checkout / RECORDS / "h200").mkdir()
    for name, record in {"h200/loop": LOOP, "peers": PEERS, "provider": PROVIDER}.items():
        (checkout / RECORDS / f"{name}.json").write_text(json.dumps(record))
    for page in write_pages(checkout):
        text = page.read_text()
        assert "small, 25 steps, Abacus 9000, driver 580.1, torch 2.13, onnxruntime-gpu" in text
        assert "by 1.5e-04 (relative L2), pixels by 1.2 levels" in text
        assert "| loop, eager UNet | 400.00 | 400.00 | 2 | 0.50 (0.50–0.50) |" in text
        assert "| picture, recorded by nobody | 250.00 | 295.00 | 2 | 41.2 dB from" in text
        assert "2.00 GB, 1 synchronisations, 0 graph launches, 0 kernels, 7 copies" in text
        assert "| recorded by loop | – | – | – | ended with code -6 (aborted) |" in text
        assert "42 nodes on CUDAExecutionProvider, 3 nodes on CPUExecutionProvider |" in text
        assert "| unet | 2.10 | – | – | least time by a datasheet |" in text
        assert "Abacus 9000, driver 580.1, 16 cores, 128.0 GB, 16 threads" in text
        assert "| bksdm | 0.25 (0.25–0.25) |" in text
        assert NOT_RUN not in text
    for path in (checkout / RECORDS).rglob("*.json"):
        path.unlink()
    for page in write_pages(checkout):
        assert NOT_RUN in page.read_text()
        assert "Abacus" not in page.read_text()


def test_a_page_without_a_place_is_named():
    with pytest.raises(BksdmError, match=r"x\.md: must have one place between <!-- written"):
        with_section("# X\n", "", Path("x.md"))


def test_programs_take_turns_after_two_pictures_each():
    seen = []
    programs = {name: lambda seed, name=name: seen.append((name, seed)) for name in "ab"}
    found = measure_turns(programs, 2, lambda: None)
    assert seen[:4] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert seen[4:] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert found["a"]["n"] == len(found["b"]["samples"]) == 2
