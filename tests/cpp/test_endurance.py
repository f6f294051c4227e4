"""Many calls of one model in OpenVINO: memory does not grow."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from bksdm.runtime.bundle import Bundle
from bksdm.runtime.bundle_tables import WantedTable, write_tables

from ..cli.conftest import tiny_bundle as tiny_bundle
from .library import Failed, Library


def resident():
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_10000_calls_without_growth(built, tiny_bundle):
    """Drawn, cancelled and refused ones, of two sizes; the first thousand fill what is kept."""
    from bksdm.optimize.saving import save_openvino

    bundle = Bundle.open(tiny_bundle)
    save_openvino(bundle, tiny_bundle / "engines")
    write_tables(bundle, WantedTable.read("euler-a:2"))
    model = Library(built.library).open(tiny_bundle, threads=1)
    sizes = []
    for number in range(10_000):
        if number in (1000, 9999):
            sizes.append(resident())
        request = {"steps": 2, "sampler": "euler-a", "width": 64 * (1 + number % 2)}
        if number % 7 == 0:
            request["on_step"] = lambda done, total: False
        if number % 11 == 0:
            request["sampler"] = "none"
        failing = number % 7 == 0 or number % 11 == 0
        with pytest.raises(Failed) if failing else nullcontext():
            model.generate(f"an apple {number % 300}", (number,), **request)
    model.close()
    assert sizes[1] < sizes[0] + 2**20
