"""How many replicas, threads and pictures at a time a machine runs a model fastest with."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bksdm.engines.backend import Capabilities
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.processors import usable_processors
from bksdm.runtime.sampling import Watch
from bksdm.serve.costs import Costs
from bksdm.serve.drawing import host_executor
from bksdm.serve.scheduler import Layout

BATCHES = (1, 2, 4, 8)
GAIN = 0.95
"""A larger batch is taken if it needs less than this part of the time per picture: every picture
of a batch takes longer, so a small gain in throughput is not worth it."""
LONGEST_SECONDS = 10.0
"""Of a UNet call; batches that take longer are not tried."""
REPEATS = 3


@dataclass(frozen=True)
class Wanted:
    """What a user has settled; None is measured.

    Attributes
    ----------
    replicas, threads, batch : int or None
        As of :class:`~bksdm.serve.scheduler.Layout`.
    """

    replicas: int | None = None
    threads: int | None = None
    batch: int | None = None

    def layouts(self, engine: Capabilities, processors: int) -> list[tuple[int, int]]:
        """Return replicas and threads of each that are worth a measurement."""
        if self.replicas is not None or self.threads is not None:
            replicas = self.replicas or max(1, processors // (self.threads or 1))
            return [(replicas, self.threads or max(1, processors // replicas))]
        if not engine.concurrent or processors == 1:
            # Each replica would hold weights of its own.
            return [(1, processors)]
        return [(processors, 1), (1, processors)]


def measure(
    load: Callable[[int], TextToImage], engine: Capabilities, wanted: Wanted
) -> tuple[TextToImage, Layout, Costs]:
    """Return the model, loaded as it runs fastest, how to use it, and what its work takes.

    Parameters
    ----------
    load : callable
        Loads the model with so many threads.
    engine : Capabilities
        What its engine can do.
    wanted : Wanted
        What is settled.
    """
    best: tuple[float, int, int, TextToImage] | None = None
    for replicas, threads in wanted.layouts(engine, usable_processors()):
        model = load(threads)
        # Where every replica has an engine of its own, one is like the other.
        together = replicas if engine.concurrent else 1
        seconds = _call_seconds(model, 1, together) / replicas
        if best is None or seconds < best[0]:
            best = seconds, replicas, threads, model
    assert best is not None
    _, replicas, threads, model = best
    batch, seconds = _batch(model, wanted.batch)
    area = _latent_area(model)
    return model, Layout(replicas, threads, batch), Costs(area, seconds / 2, _decode_seconds(model))


def _batch(model: TextToImage, wanted: int | None) -> tuple[int, float]:
    """Return the batch that takes least time per picture, or the one that is wanted, and that."""
    if wanted is not None:
        return wanted, _call_seconds(model, wanted, 1) / wanted
    best, least = 1, float("inf")
    for batch in BATCHES:
        seconds = _call_seconds(model, batch, 1)
        if seconds / batch < GAIN * least:
            best, least = batch, seconds / batch
        if seconds > LONGEST_SECONDS / 2:
            break
    return best, least


def _call_seconds(model: TextToImage, pictures: int, together: int) -> float:
    """Return the least seconds of a guided UNet call, made by so many threads at once."""
    executor = host_executor(model)
    request = model.request(GenerationConfig("", num_inference_steps=2, seed=0))

    def calls() -> float:
        # Jobs that never advance: the same evaluation can be asked for again.
        jobs = [executor.start(model.begin(request, {}), Watch(), {}) for _ in range(pictures)]
        executor.predict(jobs, {})
        taken: list[float] = []
        while len(taken) < REPEATS and sum(taken) < LONGEST_SECONDS:
            start = time.perf_counter()
            executor.predict(jobs, {})
            taken.append(time.perf_counter() - start)
        return min(taken)

    with ThreadPoolExecutor(together) as threads:
        return max(found.result() for found in [threads.submit(calls) for _ in range(together)])


def _decode_seconds(model: TextToImage) -> float:
    request = model.request(GenerationConfig("", num_inference_steps=2, seed=0))
    latents = model.begin(request, {}).latents
    start = time.perf_counter()
    host_executor(model).decode(latents, {})
    return time.perf_counter() - start


def _latent_area(model: TextToImage) -> int:
    height, width = (side // model.bundle.vae_scale for side in model.bundle.default_size)
    return height * width
