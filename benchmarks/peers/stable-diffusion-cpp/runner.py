"""stable-diffusion.cpp, built from source by pip, float32 where it keeps it; whole pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from serve import Feeds, Run, serve


def convert(source: str, folder: str) -> None:
    """Do nothing: it reads the diffusers folder."""


def load(stage: str, source: str, folder: str, threads: int) -> Run:
    """Open the checkpoint."""
    from stable_diffusion_cpp import StableDiffusion

    if not (Path(source) / "model_index.json").is_file():
        raise ValueError(f"{source} is no diffusers folder")
    model = StableDiffusion(
        model_path=source,
        vae_decode_only=True,
        n_threads=threads,
        wtype="f32",
        rng_type="cpu",
        sampler_rng_type="cpu",
        verbose=True,
    )
    if not model._model.model:
        raise ValueError("it has no such architecture: its tensors have other shapes")

    def run(feeds: Feeds) -> Any:
        height, width = int(feeds["height"]), int(feeds["width"])
        # Its noise for a seed is torch's, which is what the latents were drawn with.
        (image,) = model.generate_image(
            str(feeds["prompt"]),
            width=width,
            height=height,
            cfg_scale=7.5,
            scheduler="discrete",
            sample_method="euler",
            sample_steps=int(feeds["steps"]),
            seed=int(feeds["seed"]),
        )
        return np.asarray(image.convert("RGB"))[None]

    return run


if __name__ == "__main__":
    serve(convert, load)
