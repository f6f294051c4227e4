"""What guidance for a part of the steps saves, and how far its pictures are from those with all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.side_by_side import distance
from bksdm.engines.errors import RequestError
from bksdm.runtime.pipeline import TextToImage

INTERVALS = ((0.0, 1.0), (0.0, 0.8), (0.0, 0.6), (0.0, 0.4), (0.2, 1.0), (0.2, 0.8))
PROMPTS = ("a red apple", "a dog", "a yellow banana", "an octopus")


def measure_guidance(
    bundle: Path,
    steps: int,
    threads: int,
    intervals: Sequence[tuple[float, float]] = INTERVALS,
    prompts: Sequence[str] = PROMPTS,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Draw every prompt with every interval in turns, after one picture that does not count.

    Parameters
    ----------
    bundle : Path
        The model.
    steps : int
        Inference steps.
    threads : int
        CPU threads.
    intervals : sequence of (float, float)
        Parts of the steps with guidance; the first is what the others are compared with.
    prompts : sequence of str
        One picture each, with the same seed in every interval.
    progress : callable
        Called after every picture.

    Returns
    -------
    dict
        By interval ``seconds``, and ``psnr`` in dB against the first interval's pictures, None
        where they are equal.

    Raises
    ------
    RequestError
        There are no prompts or intervals.
    """
    if not prompts or not intervals:
        raise RequestError("guidance is measured with at least one prompt and one interval")
    model = TextToImage.load(bundle, threads=threads)
    model(prompts[0], num_inference_steps=steps, seed=0)
    results: list[dict[str, Any]] = [
        {"interval": list(interval), "seconds": [], "psnr": []} for interval in intervals
    ]
    for seed, prompt in enumerate(prompts):
        pictures = []
        for interval, result in zip(intervals, results, strict=True):
            start = time.perf_counter()
            drawn = model(prompt, num_inference_steps=steps, seed=seed, guidance_interval=interval)
            result["seconds"].append(time.perf_counter() - start)
            pictures.append(drawn.pixels.astype(np.float32))
            apart = distance(pictures[-1], pictures[0], "picture")
            result["psnr"].append(apart["psnr"] if apart["largest"] else None)
            progress()
    return {
        "kind": "guidance",
        "machine": describe_machine(),
        "model": {"name": model.bundle.path.resolve().name, "digest": model.bundle.digest()},
        "settings": {"steps": steps, "threads": threads},
        "intervals": results,
    }
