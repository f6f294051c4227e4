"""The measurement of rewritten convolutions."""

from __future__ import annotations

import pytest

from bksdm.benchmarks.rewrite import measure_gain
from bksdm.engines.rewrite import winograd


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_both_forms_run_in_turns(nano_bundle, monkeypatch, component):
    runs = []
    plain = measure_gain(nano_bundle, component, 64, 128, 2, 1, lambda: runs.append(1))
    # Nothing gains at this size, so both are the same graph.
    assert len(runs) == 6
    assert plain.error == 0
    monkeypatch.setattr(winograd, "LEAST_GAIN", 0)
    fast = measure_gain(nano_bundle, component, 64, 128, 2, 1)
    # Rounding tells that another graph ran; 5e-5 as in the rule's own test.
    assert 0 < fast.error < 5e-5
    assert fast.ratio.low <= fast.ratio.value <= fast.ratio.high
