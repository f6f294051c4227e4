"""bksdm-runtime itself, in the interpreter that runs the harness."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from serve import Feeds, Run, serve


def convert(source: str, folder: str, dtype: str = "float32", precision: str = "") -> None:
    """Export the bundle, parity checks included; or make one in int8 of a bundle."""
    if precision == "int8":
        from bksdm.optimize.quantizing import PROMPTS, quantize_bundle

        quantize_bundle(source, Path(folder), PROMPTS[:2], steps=5)
        return
    from bksdm.export.exporter import export

    export(source, Path(folder), dtype)


def load(
    stage: str,
    source: str,
    folder: str,
    threads: int,
    fast: int = 0,
    engine: str = "onnxruntime",
    precision: str = "float32",
) -> Run:
    """Load one network as the pipeline loads it, or the pipeline."""
    if stage == "picture":
        from bksdm.runtime.pipeline import TextToImage

        model = TextToImage.load(folder, engine, threads, precision=precision)

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

    import numpy as np

    from bksdm.engines.registry import open_engine
    from bksdm.engines.variants import DEEP, SAMPLE_OF_ROW
    from bksdm.runtime.bundle import Bundle

    bundle = Bundle.open(Path(folder))
    network = open_engine(
        engine,
        bundle.model(stage),
        threads,
        bundle.path / "engines",
        bundle.sample_size,
        DEEP if stage == "unet" else "",
        precision,
    )

    def run(feeds: Feeds) -> Any:
        given = dict(feeds)
        if SAMPLE_OF_ROW in network.inputs:
            # As the loop gives them: latents once, texts row by row.
            given[SAMPLE_OF_ROW] = np.zeros(len(given["sample"]), np.int64)
            given |= {name: given[name][:1] for name in ("sample", "timestep")}
        return next(iter(network(given).values()))

    return run


if __name__ == "__main__":
    serve(convert, load)
