"""The scores of every precision, as a record and as a table."""

from __future__ import annotations

from bksdm.benchmarks import report
from bksdm.benchmarks.quality import ENGINES, WAYS, Way, measure_quality
from bksdm.benchmarks.tables import conditions, tables
from bksdm.evaluate import emoji
from bksdm.evaluate.judge import evaluation
from bksdm.models import EMOJI


def test_every_way_is_scored_in_every_precision(monkeypatch):
    few = evaluation()[:3]
    monkeypatch.setattr(emoji, "evaluation", lambda: few)
    told = []
    ways = (Way(2, 1.0), Way(3, 1.0, fast=1))
    record = measure_quality({"float32": EMOJI}, 1, ways, told.append)
    assert told == [f"float32, {way}" for way in ways]
    first, second = record["precisions"]["float32"]
    assert (first["steps"], first["fast"], second["fast"]) == (2, 0, 1)
    assert first["pictures"] == 6
    (table,) = tables(record)
    assert table.rows[0][:4] == ("float32", "2", "1", "0")
    assert table.rows[0][4] == f"{first['recognised']} of 6"
    assert "float32 by onnxruntime" in table.title
    assert "1 threads" in conditions(record)


def test_the_set_has_every_precision_and_level():
    assert set(ENGINES) == {"float32", "float16", "bfloat16", "int8"}
    assert {way.fast for way in WAYS} == {0, 1, 2, 3}
    assert {way.steps for way in WAYS} == {10, 25, 50}
    assert "emoji-quality" in report.SET
