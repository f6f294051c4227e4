"""The measurement of rewritten graphs."""

from __future__ import annotations

from bksdm.benchmarks import tables
from bksdm.benchmarks.rewrite import measure_rewrite
from bksdm.cli import main
from bksdm.engines.rewrite import strips
from bksdm.engines.rewrite.choice import CostModel
from tests.engines.test_rewrite import transformed_is_faster


def test_both_forms_run_in_turns(nano_bundle, monkeypatch):
    runs = []
    plain = measure_rewrite(nano_bundle, 64, 128, 2, 1, lambda: runs.append(1))
    # Two networks of three turns of two forms, and a profile each.
    assert len(runs) == 2 * (3 * 2 + 1)
    for network in plain["networks"].values():
        assert len(network["plain"]) == len(network["rewritten"]) == 2
        # Nothing gains at this size, so both are the same graph.
        assert network["relative_l2"] == 0
        assert network["operators"]["Conv"] > 0
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)
    monkeypatch.setattr(strips, "LEAST_BYTES", 0)
    fast = measure_rewrite(nano_bundle, 64, 128, 2, 1)
    for network in fast["networks"].values():
        # Rounding tells that another graph ran; 5e-5 as in the rules' own tests.
        assert 0 < network["relative_l2"] < 5e-5
        assert network["operators"]["DepthToSpace"] > 0
        # Its nodes are counted, and would be twice.
        assert "If" not in network["operators"]
    gains, shares = (table.markdown() for table in tables.tables(fast))
    assert "| vae_decoder |" in gains
    assert "| vae_decoder: Conv |" in shares


def test_the_command_prints_both_tables(nano_bundle, capsys):
    assert main(["bench", "rewrite", str(nano_bundle), "--rounds", "1", "--size", "64x64"]) == 0
    printed = capsys.readouterr().out
    assert "relative L2" in printed
    assert "unet: Conv" in printed
