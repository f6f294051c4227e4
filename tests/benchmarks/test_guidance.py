"""Guidance for a part of the steps, measured beside guidance in all of them."""

from __future__ import annotations

import pytest

from bksdm.benchmarks.guidance import measure_guidance
from bksdm.benchmarks.tables import tables
from bksdm.engines.errors import RequestError


def test_intervals_take_turns_and_are_compared_with_the_first(nano_bundle):
    drawn = []
    record = measure_guidance(
        nano_bundle, 4, 1, ((0.0, 1.0), (0.0, 0.5), (0.0, 1.0)), ("a", "b"),
        lambda: drawn.append(1),
    )  # fmt: skip
    assert len(drawn) == 6
    full, part, again = record["intervals"]
    assert full["psnr"] == again["psnr"] == [None] * 2
    assert all(0 < psnr < 100 for psnr in part["psnr"])
    (table,) = tables(record)
    assert [row[0] for row in table.rows] == ["0:1", "0:0.5", "0:1"]
    assert table.rows[2][-1] == "the same"
    assert table.rows[1][-1] == f"{min(part['psnr']):.1f}"


def test_nothing_to_measure_is_refused(nano_bundle):
    with pytest.raises(RequestError, match="at least one prompt"):
        measure_guidance(nano_bundle, 4, 1, prompts=())
