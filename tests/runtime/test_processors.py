"""Processors that a process may use."""

from __future__ import annotations

from bksdm.runtime import processors


def test_a_container_has_the_processors_of_its_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(processors, "CONTROL_GROUP", tmp_path)
    everything = processors.usable_processors()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert processors.usable_processors() == everything
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert processors.usable_processors() == 1
