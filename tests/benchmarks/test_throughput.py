"""Arrivals and queues with a clock of our own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bksdm.benchmarks.throughput import Served, poisson_arrivals, serve
from bksdm.cli import main


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_arrivals_are_a_poisson_process():
    """Mean and standard deviation of the gaps are 1 / rate, counts per second have mean rate."""
    rate, count = 4.0, 100_000
    times = np.array(poisson_arrivals(rate, count, 0))
    gaps = np.diff(times, prepend=0.0)
    # Five standard errors: of the mean 1/√n, of the deviation of an exponential √2/√n.
    assert abs(gaps.mean() * rate - 1) < 5 / count**0.5
    assert abs(gaps.std() * rate - 1) < 5 * (2 / count) ** 0.5
    per_second = np.bincount(times.astype(int))[:-1]
    assert abs(per_second.var() / per_second.mean() - 1) < 0.05
    assert poisson_arrivals(rate, 5, 1) != poisson_arrivals(rate, 5, 2)


def test_a_request_waits_for_those_before_it():
    clock = Clock()
    served = serve([0.0, 1.0, 10.0], lambda number: clock.sleep(3.0), clock, clock.sleep)
    assert served == [Served(0.0, 3.0), Served(2.0, 5.0), Served(0.0, 3.0)]


def test_waiting_is_that_of_an_m_d_1_queue():
    """Pollaczek-Khinchine: mean wait ρ s / (2 (1 − ρ)) for a service time s and load ρ."""
    load, service = 0.6, 1.0
    clock = Clock()
    arrivals = poisson_arrivals(load / service, 200_000, 3)
    served = serve(arrivals, lambda number: clock.sleep(service), clock, clock.sleep)
    mean = np.mean([one.queueing for one in served])
    assert mean == pytest.approx(load * service / (2 * (1 - load)), rel=0.03)


def test_the_command_writes_record_and_plot(tmp_path, capsys):
    record_file, plot = tmp_path / "t.json", tmp_path / "t.png"
    command = [
        "bench",
        "throughput",
        "--steps",
        "1",
        "--batches",
        "1,2",
        "--load",
        "0.5",
        "--rate",
        "20",
        "--requests",
        "4",
    ]
    assert main([*command, "--json", str(record_file), "--plot", str(plot)]) == 0
    record = json.loads(record_file.read_text())
    assert [entry["batch"] for entry in record["batches"]] == [1, 2]
    by_load, given = record["rates"]
    assert by_load["load"] == pytest.approx(0.5)
    assert given["rate"] == 20
    for rate in (by_load, given):
        assert rate["latency"]["n"] == 4
        assert rate["latency"]["median"] >= rate["queueing"]["median"] >= 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "images/s" in out
    assert f"{record['settings']['threads']} threads" in out
    assert record["settings"]["threads"] >= 1
    assert main(["bench", "throughput", "--load", "much"]) == 2
    assert "--load" in capsys.readouterr().err
    assert main(["bench", "throughput", "--rate", "-1"]) == 2
    assert "--rate" in capsys.readouterr().err
