"""The measurement of rewritten graphs."""

from __future__ import annotations

import shutil

import pytest

from bksdm.benchmarks import roofline, tables
from bksdm.benchmarks.rewrite import measure_rewrite
from bksdm.benchmarks.work import count_work
from bksdm.cli import main
from bksdm.optimize import row_tiles
from bksdm.optimize.rules import CostModel
from tests.optimize.test_rewrite import transformed_is_faster


@pytest.fixture(autouse=True)
def short_probe(monkeypatch):
    """How fast the machine copies matters to no test."""
    monkeypatch.setattr(roofline, "PROBE_BYTES", 2**20)


def test_both_forms_run_in_turns(nano_bundle, tmp_path, monkeypatch):
    runs = []
    plain = measure_rewrite(nano_bundle, 64, 128, 2, 1, lambda: runs.append(1))
    # Two networks of three turns of two forms, and a profile each.
    assert len(runs) == 2 * (3 * 2 + 1)
    sizes = {"batch": 2, "height": 8, "width": 16, "tokens": 77}
    for name, network in plain["networks"].items():
        assert len(network["plain"]) == len(network["rewritten"]) == 2
        # Nothing gains at this size, so both are the same graph.
        assert network["relative_l2"] == 0
        kinds = network["operators"]
        assert kinds["Conv 3×3"]["seconds"] > 0
        sizes["batch"] = 2 if name == "unet" else 1
        work = count_work(nano_bundle / name / "model.onnx", sizes)
        counted = sum(flops for kind, flops in work.flops.items() if kind != "other")
        found = sum(entry["flops"] for entry in kinds.values())
        # What fills the last block of a layer with 3 or 4 channels counts as well.
        assert counted < found < 1.2 * counted
        assert all(entry["bound_seconds"] > 0 for entry in kinds.values() if entry["flops"])
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)
    monkeypatch.setattr(row_tiles, "LEAST_BYTES", 0)
    # The graphs that are stored were made with the true costs.
    unprepared = tmp_path / "nano"
    shutil.copytree(nano_bundle, unprepared, ignore=shutil.ignore_patterns("engines"))
    fast = measure_rewrite(unprepared, 64, 128, 2, 1)
    for network in fast["networks"].values():
        # Rounding tells that another graph ran; 5e-5 as in the rules' own tests.
        assert 0 < network["relative_l2"] < 5e-5
        assert network["operators"]["Conv 1×1 in groups"]["flops"] > 0
        # Its nodes are counted, and would be twice.
        assert "If" not in network["operators"]
    gains, shares = (table.markdown() for table in tables.tables(fast))
    assert "| vae_decoder |" in gains
    assert "| vae_decoder: all |" in shares
    # Kinds of a small share are left out, and which these are differs from run to run.
    seconds = {
        kind: entry["seconds"]
        for kind, entry in fast["networks"]["vae_decoder"]["operators"].items()
    }
    assert f"| vae_decoder: {max(seconds, key=seconds.get)} |" in shares


def test_the_command_prints_both_tables(nano_bundle, capsys, monkeypatch):
    # Which kinds of operators take a share worth a row differs from run to run.
    monkeypatch.setattr(tables, "LEAST_SHARE", 0.0)
    assert main(["bench", "rewrite", str(nano_bundle), "--rounds", "1", "--size", "64x64"]) == 0
    printed = capsys.readouterr().out
    assert "relative L2" in printed
    assert "unet: Conv 3×3" in printed
