"""Score the built-in model in every precision and with less work, by its own classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bksdm.benchmarks.machine import describe_machine
from bksdm.evaluate.emoji import GUIDANCE, STEPS, evaluate_emoji
from bksdm.models import EMOJI
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.precision import BFLOAT16, FLOAT16, FLOAT32, INT8


@dataclass(frozen=True)
class Way:
    """How the pictures of a row are drawn."""

    steps: int = STEPS
    guidance_scale: float = GUIDANCE
    fast: int = 0


WAYS = (
    # Few steps of a multistep method do not carry strong guidance.
    Way(10, guidance_scale=2.0),
    Way(),
    Way(50),
    *(Way(fast=level) for level in (1, 2, 3)),
)
ENGINES = {
    FLOAT32.name: "onnxruntime",
    FLOAT16.name: "openvino",
    BFLOAT16: "openvino",
    INT8: "openvino",
}
"""By precision."""


def measure_quality(
    bundles: Mapping[str, Path],
    threads: int,
    ways: tuple[Way, ...] = WAYS,
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Score every way in every precision.

    Parameters
    ----------
    bundles : mapping
        By precision; of bfloat16, the bundle in float32.
    threads : int
        CPU threads; in less than float32, OpenVINO rounds a little differently with others.
    ways : tuple of Way
        What is drawn of each.
    progress : callable
        Told a line before each way.

    Returns
    -------
    dict
        By precision a list of rows: the way and its scores.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for precision, bundle in bundles.items():
        engine = ENGINES[precision]
        with TextToImage.load(bundle, engine, threads, precision=precision) as model:
            rows = results.setdefault(precision, [])
            for way in ways:
                progress(f"{precision}, {way}")
                rows.append(score_way(model, way))
    return {
        "kind": "quality",
        "machine": describe_machine(),
        "model": {"name": EMOJI.name},
        "settings": {"threads": threads, "engines": {name: ENGINES[name] for name in bundles}},
        "precisions": results,
    }


def score_way(model: TextToImage, way: Way) -> dict[str, Any]:
    """Return a row: the way and its scores."""
    config = GenerationConfig(
        "", num_inference_steps=way.steps, guidance_scale=way.guidance_scale, fast=way.fast
    )
    return {**asdict(way), **evaluate_emoji(model, config).fields()}
