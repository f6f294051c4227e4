"""The cost of LoRAs at run time."""

from __future__ import annotations

import json

from bksdm.benchmarks.lora import SWITCHES, measure_loras
from bksdm.benchmarks.tables import tables
from bksdm.engines.lora_inputs import ATTENTION, TRANSFORMER
from bksdm.models import EMOJI


def test_kinds_take_turns_with_the_plain_network():
    called = []
    record = measure_loras(
        EMOJI, "onnxruntime", 1, 4, 2, (ATTENTION, TRANSFORMER), progress=lambda: called.append(1)
    )
    assert len(called) == 1 + 2 + 2 * (1 + 2)
    json.dumps(record)
    small, large = record["scopes"][ATTENTION], record["scopes"][TRANSFORMER]
    assert 0 < small["layers"] < large["layers"]
    assert 0 < small["file_bytes"] < large["file_bytes"]
    for entry in (small, large):
        assert len(entry["switches"]) == SWITCHES
        assert len(entry["calls"]) == len(record["plain"]["calls"]) == 2
        # Milliseconds; a machine may be busy.
        assert 0 < sorted(entry["switches"])[SWITCHES // 2] < 0.3
    (table,) = tables(record)
    assert [row[0] for row in table.rows] == ["attention", "transformer"]
    assert "LoRAs of rank 4, emoji, onnxruntime in float32" in table.title
