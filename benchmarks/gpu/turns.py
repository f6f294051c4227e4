"""Let programs take turns on the same picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bksdm.benchmarks.statistics import Summary

WARM_UPS = 2
Draw = Callable[[int], object]
"""From a seed to a picture."""


def measure_turns(
    programs: Mapping[str, Draw], rounds: int, wait: Callable[[], object]
) -> dict[str, dict[str, Any]]:
    """Return the seconds of each program's pictures, A B C A B C, with their summary.

    Parameters
    ----------
    programs : mapping
        By name.
    rounds : int
        Pictures of each that count, after two that do not.
    wait : callable
        Waits for the GPU.
    """
    samples: dict[str, list[float]] = {name: [] for name in programs}
    for draw in programs.values():
        for seed in range(WARM_UPS):
            draw(seed)
    for seed in range(rounds):
        for name, draw in programs.items():
            wait()
            start = time.perf_counter()
            draw(seed)
            wait()
            samples[name].append(time.perf_counter() - start)
    return summaries(samples)


def summaries(samples: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Return order statistics of each, and the samples themselves."""
    return {
        name: {**Summary.of(values).fields(), "samples": values} for name, values in samples.items()
    }
