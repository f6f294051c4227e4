"""Statistics of known distributions."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.benchmarks import statistics
from bksdm.benchmarks.statistics import Summary, ratio_of_medians


def test_percentiles_of_a_known_sequence():
    found = Summary.of([float(n) for n in range(1, 102)][::-1])
    assert found == Summary(n=101, median=51.0, p95=96.0, p99=100.0, min=1.0)


def test_percentiles_of_an_exponential_distribution():
    """Its quantile is −ln(1 − p); of 200 000 samples each lies within five standard errors."""
    samples = np.random.default_rng(0).exponential(size=200_000)
    found = Summary.of(samples.tolist())
    for value, p in ((found.median, 0.5), (found.p95, 0.95), (found.p99, 0.99)):
        error = np.sqrt(p * (1 - p) / samples.size) / (1 - p)
        assert abs(value + np.log(1 - p)) < 5 * error


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_what_cannot_be_summarised_is_refused(samples):
    with pytest.raises(ValueError, match="finite measurements"):
        Summary.of(samples)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says(monkeypatch):
    """95 of 100; of 300 trials fewer than 88 % has a probability below 1e-6."""
    # A bootstrap of fewer draws is noisier, but no narrower.
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    generator = np.random.default_rng(1)
    true, covered, trials = 1.3, 0, 300
    for _ in range(trials):
        old = generator.lognormal(0, 0.2, 40)
        new = true * generator.lognormal(0, 0.2, 40)
        ratio = ratio_of_medians(old.tolist(), new.tolist())
        assert ratio.low <= ratio.value <= ratio.high
        covered += ratio.low <= true <= ratio.high
    assert covered / trials > 0.88


def test_a_ratio_needs_positive_measurements():
    for old, new in (([], [1.0]), ([1.0], []), ([0.0], [1.0])):
        with pytest.raises(ValueError, match="positive"):
            ratio_of_medians(old, new)
