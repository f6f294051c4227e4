"""Statistics of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Order statistics of n measurements, in their unit.

    Percentiles are interpolated linearly between order statistics (Hyndman & Fan 1996, type 7, as
    ``numpy.percentile``); of few measurements the p95 and p99 are close to the largest.
    """

    n: int
    median: float
    p95: float
    p99: float
    min: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Summarise measurements.

        Raises
        ------
        ValueError
            There are none, or one is not finite.
        """
        values = np.asarray(samples, np.float64)
        if not values.size or not np.isfinite(values).all():
            raise ValueError("a summary needs finite measurements")
        median, p95, p99 = (float(p) for p in np.percentile(values, [50, 95, 99]))
        return cls(int(values.size), median, p95, p99, float(values.min()))

    def fields(self) -> dict[str, float]:
        """Return the statistics by name."""
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """Ratio new / old of two sets of measurements, with a 95 % confidence interval."""

    value: float
    low: float
    high: float


def ratio_of_medians(old: Sequence[float], new: Sequence[float], seed: int = 0) -> Ratio:
    """Return median(new) / median(old) with its percentile-bootstrap interval (Efron 1979).

    Parameters
    ----------
    old, new : sequence of float
        Positive measurements, independent of one another.
    seed : int
        Of the resampling, so that a report is reproducible.

    Raises
    ------
    ValueError
        A set is empty or holds what is not positive.
    """
    sets = [np.asarray(values, np.float64) for values in (old, new)]
    if any(not values.size or not (values > 0).all() for values in sets):
        raise ValueError("a ratio needs positive measurements on both sides")
    generator = np.random.default_rng(seed)
    before, after = (_resampled_medians(values, generator) for values in sets)
    edge = (1 - CONFIDENCE) / 2
    low, high = (float(q) for q in np.quantile(after / before, [edge, 1 - edge]))
    return Ratio(float(np.median(sets[1]) / np.median(sets[0])), low, high)


def _resampled_medians(
    values: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    drawn = generator.integers(0, values.size, (RESAMPLES, values.size))
    medians: NDArray[np.float64] = np.median(values[drawn], axis=1)
    return medians
