"""Time a picture, stage by stage, on one engine."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bksdm.benchmarks.load import measure_loads
from bksdm.benchmarks.machine import describe_machine, device_memory, peak_memory
from bksdm.benchmarks.statistics import Summary
from bksdm.engines.registry import capabilities
from bksdm.runtime.pipeline import TextToImage

PROMPT = "a red apple on a table, number {}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The work that is timed.

    Attributes
    ----------
    engine
        As in ``TextToImage.load``.
    steps
        Inference steps.
    height, width
        In pixels; None is the model's size.
    batch
        Images per picture request.
    repeat, warmup
        Timed requests, and untimed ones before them.
    threads
        CPU threads; None is one per physical core.
    guidance_scale
        At 1 the UNet's batch is half as large.
    sampler
        Its name; None is the bundle's own.
    fast
        As in ``TextToImage``.
    """

    engine: str = "onnxruntime"
    steps: int = 25
    height: int | None = None
    width: int | None = None
    batch: int = 1
    repeat: int = 5
    warmup: int = 1
    threads: int | None = None
    guidance_scale: float = 7.5
    sampler: str | None = None
    fast: int = 0


def measure_latency(
    bundle: Path,
    settings: Settings,
    progress: Callable[[], object] = lambda: None,
    engine_cache: Path | None = None,
) -> dict[str, Any]:
    """Time requests one after another in this process, which should do nothing else before.

    Every request has a prompt of its own, so that the text encoder runs each time.

    Parameters
    ----------
    bundle : Path
        The model.
    settings : Settings
        The work.
    progress : callable
        Called after every request.
    engine_cache : Path, optional
        As in ``TextToImage.load``.

    Returns
    -------
    dict
        ``stages``: seconds of every counted request by stage, with their summary; ``unet_step`` is
        the UNet's time by its number of evaluations, ``picture`` ends with pixels in memory and
        ``end_to_end`` with an encoded PNG. ``loads`` is what
        :func:`~bksdm.benchmarks.load.measure_loads` returns; engines on a GPU load once, warm.
    """
    # Only what runs on the host stores graphs; a GPU's plans are built before.
    stores = not capabilities(settings.engine).on_device
    loads = measure_loads(bundle, settings.engine, settings.threads) if stores else {}
    began = time.perf_counter()
    model = TextToImage.load(bundle, settings.engine, settings.threads, engine_cache)
    load = time.perf_counter() - began
    samples: dict[str, list[float]] = {}
    first = 0.0
    for number in range(settings.warmup + settings.repeat):
        timed = _one(model, settings, number)
        if number == 0:
            first = time.perf_counter() - began
        if number >= settings.warmup:
            for stage, seconds in timed.items():
                samples.setdefault(stage, []).append(seconds)
        progress()
    stages = {
        stage: {**Summary.of(values).fields(), "samples": values}
        for stage, values in samples.items()
    }
    threads = settings.threads or psutil.cpu_count(logical=False)
    return {
        "kind": "latency",
        "machine": describe_machine(),
        "model": {"name": bundle.resolve().name, "digest": model.bundle.digest()},
        "settings": {**asdict(settings), "threads": threads},
        "loads": loads or {"warm": [load]},
        "first_picture_seconds": first,
        "stages": stages,
        "images_per_second": settings.batch / Summary.of(samples["end_to_end"]).median,
        "peak_memory_bytes": peak_memory(),
        "device_memory_bytes": device_memory(),
    }


def _one(model: TextToImage, settings: Settings, number: int) -> dict[str, float]:
    start = time.perf_counter()
    result = model(
        PROMPT.format(number),
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        num_images_per_prompt=settings.batch,
        sampler=settings.sampler,
        fast=settings.fast,
        seed=number,
    )
    made = time.perf_counter()
    for image in result.images:
        image.save(io.BytesIO(), "PNG")
    timed = dict(result.seconds)
    if "unet" in timed:
        timed["unet_step"] = timed["unet"] / result.steps
    timed["picture"] = made - start
    timed["png"] = time.perf_counter() - made
    timed["end_to_end"] = time.perf_counter() - start
    return timed
