"""What the load test measures, and what the documentation says of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from bksdm.benchmarks import serving
from bksdm.benchmarks.one_by_one import make_app
from bksdm.benchmarks.serving import Load, send, table
from bksdm.runtime.bundle import read_json

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "benchmarks" / "results" / "serving").glob("emoji-*.json"))


@pytest.mark.parametrize("name", ["emoji-one-thread", "emoji-equal-steps"])
def test_the_documentation_shows_the_records(name):
    (path,) = (path for path in RECORDS if path.stem == name)
    assert table(read_json(path)) in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


class Slow:
    """A model that takes a while for a picture, and notes how many it draws at a time."""

    def __init__(self):
        self.order = []

    def __call__(self, **fields):
        from PIL import Image

        self.order.append(fields["seed"])

        class Result:
            images = (Image.new("RGB", (8, 8)),)

        return Result


def test_requests_are_timed_from_their_arrival(monkeypatch):
    model = Slow()
    transport = httpx.ASGITransport(make_app(model))
    client = httpx.AsyncClient
    monkeypatch.setattr(
        serving.httpx, "AsyncClient", lambda **named: client(**named, transport=transport)
    )
    load = Load([4, 8, 4], [0.0, 0.05, 0.1], {"height": 8})
    answers, seconds = asyncio.run(send("http://x", load))
    assert model.order == [0, 1, 2]
    assert [answer.steps for answer in answers] == [4, 8, 4]
    assert {answer.status for answer in answers} == {200}
    assert seconds >= 0.1
    assert all(0 <= answer.seconds < seconds for answer in answers)
