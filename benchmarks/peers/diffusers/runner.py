"""diffusers in float32: the reference, eager; or compiled by ``torch.compile``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_call import draw
from serve import Feeds, Run, serve


def convert(source: str, folder: str) -> None:
    """Do nothing: diffusers runs the checkpoint itself."""


def load(stage: str, source: str, folder: str, threads: int, compiled: bool = False) -> Run:
    """Load one network, or the pipeline."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    torch.set_num_threads(threads)
    # Nothing here needs gradients; grad mode would keep every activation.
    torch.set_grad_enabled(False)
    if stage == "picture":
        pipeline: Any = StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        if compiled:
            pipeline.unet = torch.compile(pipeline.unet)
            pipeline.vae.decode = torch.compile(pipeline.vae.decode)
        return lambda feeds: draw(pipeline, feeds)
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
