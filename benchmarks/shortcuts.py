"""Measure the time that ``--fast`` saves, and the distance from the exact pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.side_by_side import distance
from bksdm.engines.errors import RequestError
from bksdm.runtime.pipeline import TextToImage

EXACT = "exact"
CHOICES: dict[str, dict[str, Any]] = {
    EXACT: {},
    **{
        f"--guidance-interval {start:g}:{end:g}": {"guidance_interval": (start, end)}
        for start, end in ((0.0, 0.8), (0.0, 0.6), (0.0, 0.4), (0.2, 1.0))
    },
    **{f"--fast {level}": {"fast": level} for level in (1, 2, 3)},
}
"""By options of the command: arguments of :class:`~bksdm.runtime.pipeline.TextToImage`."""
PROMPTS = ("a red apple", "a dog", "a yellow banana", "an octopus")


def measure_shortcuts(
    bundle: Path,
    steps: int,
    threads: int,
    sampler: str | None = None,
    choices: Mapping[str, dict[str, Any]] = CHOICES,
    prompts: Sequence[str] = PROMPTS,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Draw every prompt in every way in turns, after one untimed picture.

    Parameters
    ----------
    bundle : Path
        The model.
    steps : int
        Inference steps.
    threads : int
        CPU threads.
    sampler : str, optional
        By default the bundle's own.
    choices : mapping
        Further arguments by name; the first is what the others are compared with.
    prompts : sequence of str
        One picture each, with the same seed in every way.
    progress : callable
        Called after every picture.

    Returns
    -------
    dict
        By choice ``seconds``, and ``psnr`` in dB against the first choice's pictures, None where
        they are equal.

    Raises
    ------
    RequestError
        There are no prompts or choices.
    """
    if not prompts or not choices:
        raise RequestError("shortcuts are measured with at least one prompt and one choice")
    model = TextToImage.load(bundle, threads=threads)
    # The first use of a way loads what it needs.
    for arguments in choices.values():
        model(prompts[0], num_inference_steps=1, seed=0, sampler=sampler, **arguments)
    results: dict[str, dict[str, Any]] = {name: {"seconds": [], "psnr": []} for name in choices}
    for seed, prompt in enumerate(prompts):
        pictures = []
        for name, arguments in choices.items():
            start = time.perf_counter()
            drawn = model(
                prompt, num_inference_steps=steps, seed=seed, sampler=sampler, **arguments
            )
            results[name]["seconds"].append(time.perf_counter() - start)
            pictures.append(drawn.pixels.astype(np.float32))
            apart = distance(pictures[-1], pictures[0], "picture")
            results[name]["psnr"].append(apart["psnr"] if apart["largest"] else None)
            progress()
    return {
        "kind": "shortcuts",
        "machine": describe_machine(),
        "model": {"name": model.bundle.path.resolve().name, "digest": model.bundle.digest()},
        "settings": {
            "steps": steps,
            "threads": threads,
            "sampler": sampler or str(model.bundle.scheduler["_class_name"]),
        },
        "choices": results,
    }
