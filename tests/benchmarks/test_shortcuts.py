"""Ways to do less work, measured beside the exact picture."""

from __future__ import annotations

import pytest

from bksdm.benchmarks.shortcuts import CHOICES, measure_shortcuts
from bksdm.benchmarks.tables import tables
from bksdm.engines.errors import RequestError


def test_ways_take_turns_and_are_compared_with_the_first(nano_bundle):
    drawn = []
    choices = {name: CHOICES[name] for name in ("exact", "--guidance-interval 0:0.6", "--fast 2")}
    record = measure_shortcuts(
        nano_bundle, 4, 1, "euler", {**choices, "again": {}}, ("a", "b"), lambda: drawn.append(1)
    )
    assert len(drawn) == 8
    exact, part, fast, again = record["choices"].values()
    assert exact["psnr"] == again["psnr"] == [None] * 2
    for other in (part, fast):
        assert all(0 < psnr < 100 for psnr in other["psnr"])
    (table,) = tables(record)
    assert [row[0] for row in table.rows] == [*choices, "again"]
    assert table.rows[3][-1] == "the same"
    assert table.rows[1][-1] == f"{min(part['psnr']):.1f}"


def test_nothing_to_measure_is_refused(nano_bundle):
    with pytest.raises(RequestError, match="at least one prompt"):
        measure_shortcuts(nano_bundle, 4, 1, prompts=())
