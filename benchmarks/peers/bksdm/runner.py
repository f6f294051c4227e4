"""bksdm-runtime itself, in the interpreter that runs the harness."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from serve import Feeds, Run, serve


def convert(source: str, folder: str, dtype: str = "float32") -> None:
    """Export the bundle, parity checks included."""
    from bksdm.export.exporter import export

    export(source, Path(folder), dtype)


def load(
    stage: str,
    source: str,
    folder: str,
    threads: int,
    fast: int = 0,
    engine: str = "onnxruntime",
) -> Run:
    """Load one network as the pipeline loads it, or the pipeline."""
    if stage == "picture":
        from bksdm.runtime.pipeline import TextToImage

        model = TextToImage.load(folder, engine, threads)

        def draw(feeds: Feeds) -> Any:
            noise = feeds["latents"]
            height, width = int(feeds["height"]), int(feeds["width"])
            drawn = model(
                str(feeds["prompt"]),
                height=height,
                width=width,
                num_inference_steps=int(feeds["steps"]),
                latents=noise,
                fast=fast,
            )
            return drawn.pixels, drawn.seconds

        return draw

    from bksdm.engines.registry import open_engine
    from bksdm.runtime.bundle import Bundle

    bundle = Bundle.open(Path(folder))
    network = open_engine(
        engine, bundle.model(stage), threads, bundle.path / "engines", bundle.sample_size
    )
    return lambda feeds: next(iter(network(feeds).values()))


if __name__ == "__main__":
    serve(convert, load)
