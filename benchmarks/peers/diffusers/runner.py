"""diffusers: the reference in float32, eager; compiled by ``torch.compile``; on a GPU.

On a GPU it was not run yet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_call import draw

from serve import Feeds, Run, serve


def convert(source: str, folder: str) -> None:
    """Do nothing: diffusers runs the checkpoint itself."""


def load(
    stage: str,
    source: str,
    folder: str,
    threads: int,
    compiled: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> Run:
    """Load one network, or the pipeline; on a GPU the pipeline alone."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    torch.set_num_threads(threads)
    # Nothing here needs gradients; grad mode would keep every activation.
    torch.set_grad_enabled(False)
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU; it takes a build for CUDA")
    if stage == "picture":
        kind = getattr(torch, dtype)
        pipeline: Any = StableDiffusionPipeline.from_pretrained(source, torch_dtype=kind)
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
        if compiled:
            pipeline.unet = torch.compile(pipeline.unet)
            pipeline.vae.decode = torch.compile(pipeline.vae.decode)
        return lambda feeds: draw(pipeline, feeds, dtype)
    network: Any
    if stage == "unet":
        network = UNet2DConditionModel.from_pretrained(source, subfolder="unet")
        call = network
    else:
        network = AutoencoderKL.from_pretrained(source, subfolder="vae")
        del network.encoder
        call = network.decode
    if compiled:
        call = torch.compile(call)

    def run(feeds: Feeds) -> Any:
        return call(*(torch.from_numpy(a) for a in feeds.values()), return_dict=False)[0].numpy()

    return run


if __name__ == "__main__":
    serve(convert, load)
