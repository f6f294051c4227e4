"""What the rewriting of convolutions gains on this machine, network by network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bksdm.benchmarks.feeds import network_feeds
from bksdm.benchmarks.statistics import Ratio, ratio_of_medians
from bksdm.engines.onnxruntime import WINOGRAD_BUDGET, OnnxRuntimeEngine
from bksdm.runtime.bundle import Bundle


@dataclass(frozen=True)
class Gain:
    """One network with direct convolutions and with rewritten ones.

    Attributes
    ----------
    direct, rewritten
        Median seconds per run.
    ratio
        Rewritten by direct, with a confidence interval.
    error
        Relative L2 distance of the outputs.
    """

    direct: float
    rewritten: float
    ratio: Ratio
    error: float


def measure_gain(
    bundle: Path, component: str, height: int, width: int, rounds: int, threads: int | None,
    progress: Callable[[], object] = lambda: None,
) -> Gain:  # fmt: skip
    """Run both in turns, A B A B, after one run of each that does not count.

    ``height`` and ``width`` are in pixels; the UNet's batch is 2, as guidance has it.
    """
    opened = Bundle.open(bundle)
    path, cache = opened.model(component), opened.path / "engines"
    engines = [
        OnnxRuntimeEngine(path, "cpu", threads, None if budget == 0 else cache,
                          opened.sample_size, budget)
        for budget in (0, WINOGRAD_BUDGET)
    ]  # fmt: skip
    sizes = (height // opened.vae_scale, width // opened.vae_scale)
    feeds = network_feeds(engines[0].inputs, sizes)
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        outputs = []
        for engine, taken in zip(engines, seconds, strict=True):
            start = time.perf_counter()
            (output,) = engine(feeds).values()
            if number > 0:
                taken.append(time.perf_counter() - start)
            outputs.append(output.astype(np.float64))
            progress()
    error = np.linalg.norm(outputs[1] - outputs[0]) / np.linalg.norm(outputs[0])
    return Gain(
        float(np.median(seconds[0])), float(np.median(seconds[1])),
        ratio_of_medians(seconds[0], seconds[1]), float(error),
    )  # fmt: skip
