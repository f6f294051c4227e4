"""Measure images per second by batch, and latency of requests that arrive at random."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bksdm.benchmarks.latency import PROMPT
from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.statistics import Summary
from bksdm.runtime.pipeline import TextToImage

ROUNDS = 3


@dataclass(frozen=True)
class Served:
    """Seconds for which one request waited, and seconds from its arrival to its end."""

    queueing: float
    latency: float


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Return arrival times in seconds: a Poisson process, gaps exponential with mean 1 / rate."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return [float(time) for time in np.cumsum(gaps)]


def serve(
    arrivals: Sequence[float],
    work: Callable[[int], object],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Served]:
    """Serve requests in order, one at a time, none before it arrives.

    Open loop: a request arrives when it does, whether or not the one before it is done, so that
    its wait is not left out of its latency.

    Parameters
    ----------
    arrivals : sequence of float
        Seconds from the start, ascending.
    work : callable
        Serves the request of a number.
    clock, sleep : callable
        Time.
    """
    start = clock()
    served = []
    for number, arrival in enumerate(arrivals):
        early = arrival - (clock() - start)
        if early > 0:
            sleep(early)
        begun = clock() - start
        work(number)
        served.append(Served(max(0.0, begun - arrival), clock() - start - arrival))
    return served


def measure_throughput(
    bundle: Path,
    engine: str,
    steps: int,
    batches: Sequence[int],
    loads: Sequence[float],
    rates: Sequence[float],
    requests: int,
    threads: int | None = None,
    progress: Callable[[], object] = lambda: None,
    sampler: str | None = None,
    engine_cache: Path | None = None,
) -> dict[str, Any]:
    """Measure batches one after another, then single requests at several arrival rates.

    Parameters
    ----------
    bundle : Path
        The model.
    engine : str
        As in ``TextToImage.load``.
    steps : int
        Inference steps.
    batches : sequence of int
        Batch sizes.
    loads : sequence of float
        Arrival rates as parts of the rate that back-to-back requests are served at; from 1 on
        the queue grows without end.
    rates : sequence of float
        Further arrival rates, in requests per second.
    requests : int
        Per rate.
    threads : int, optional
        CPU threads.
    progress : callable
        Called after every request.
    sampler : str, optional
        By default the bundle's own.
    engine_cache : Path, optional
        As in ``TextToImage.load``.
    """
    model = TextToImage.load(bundle, engine, threads, engine_cache)

    def make(number: int, batch: int = 1) -> None:
        model(
            PROMPT.format(number),
            num_inference_steps=steps,
            seed=number,
            num_images_per_prompt=batch,
            sampler=sampler,
        )

    by_batch = []
    for batch in batches:
        make(0, batch)
        times = []
        for number in range(ROUNDS):
            start = time.perf_counter()
            make(number, batch)
            times.append(time.perf_counter() - start)
        summary = Summary.of(times)
        by_batch.append(
            {
                "batch": batch,
                "images_per_second": batch / summary.median,
                "samples": times,
            }
        )
    make(0)
    start = time.perf_counter()
    for number in range(ROUNDS):
        make(number)
    capacity = ROUNDS / (time.perf_counter() - start)

    def request(number: int) -> None:
        make(number)
        progress()

    measured = []
    for index, rate in enumerate((*(load * capacity for load in loads), *rates)):
        served = serve(poisson_arrivals(rate, requests, index), request)
        measured.append(
            {
                "rate": rate,
                "load": rate / capacity,
                "queueing": Summary.of([one.queueing for one in served]).fields(),
                "latency": Summary.of([one.latency for one in served]).fields(),
            }
        )
    return {
        "kind": "throughput",
        "machine": describe_machine(),
        "model": {"name": bundle.resolve().name, "digest": model.bundle.digest()},
        "settings": {
            "engine": engine,
            "steps": steps,
            "sampler": sampler,
            "requests": requests,
            "threads": threads or psutil.cpu_count(logical=False),
        },
        "batches": by_batch,
        "rates": measured,
    }
