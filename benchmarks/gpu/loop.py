"""The loop on a GPU around torch's networks, against diffusers around the same networks.

    python -m bksdm.benchmarks.gpu.loop CHECKPOINT RECORD.json [--compile] [--seconds N]

First the latents after every step are compared with those of diffusers' scheduler, then pictures
are timed in turns: diffusers eager; the loop with its steps recorded in CUDA graphs, and without;
and both again around a UNet of ``torch.compile``. Not run on a GPU yet; the tests compare the
latents on a driver of host memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bksdm.benchmarks.gpu.drawing import opened_model
from bksdm.benchmarks.gpu.torch_networks import OnGpu, Place, TorchNetworks
from bksdm.benchmarks.gpu.turns import Draw, measure_turns
from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.side_by_side import write_record
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.cuda.device import Device
from bksdm.runtime.cuda.evaluation import Evaluations, Pieces
from bksdm.runtime.cuda.gpu import Gpu
from bksdm.runtime.noise import initial_noise
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.result import Result

PROMPT, NEGATIVE, GUIDANCE, SEED = "a lighthouse", "fog", 7.5, 5
# Less is left than torch.compile may take.
LEAST_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The work.

    Attributes
    ----------
    side
        Height and width in pixels.
    steps
        Inference steps.
    rounds
        Pictures of each program that count.
    seconds
        Time to have begun by, for what is compiled.
    compiled
        Whether the UNet is compiled, too.
    """

    side: int = 512
    steps: int = 25
    rounds: int = 7
    seconds: float = 150
    compiled: bool = False


def loaded_pipeline(checkpoint: Path, device: str, dtype: torch.dtype) -> Any:
    """Return diffusers' pipeline of a checkpoint."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        checkpoint, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def around(pipeline: Any, checkpoint: Path, networks: TorchNetworks, device: Device) -> TextToImage:
    """Return the loop on a device around a pipeline's networks."""
    unet, vae = pipeline.unet.config, pipeline.vae.config
    bundle = Bundle(
        path=checkpoint,
        scheduler=dict(pipeline.scheduler.config),
        latent_channels=unet.in_channels,
        sample_size=unet.sample_size,
        cross_attention_dim=unet.cross_attention_dim,
        scaling_factor=vae.scaling_factor,
        vae_scale=pipeline.vae_scale_factor,
    )
    return opened_model(bundle, networks, device)


def compare(pipeline: Any, model: TextToImage, settings: Settings) -> dict[str, Any]:
    """Compare the latents after every step, and the picture, with diffusers' scheduler.

    Returns
    -------
    dict
        Relative L2 of the latents after the ``first_step`` and the ``worst_step``; differences of
        the picture in levels of 0 … 255; and whether a second picture is the ``same_again``.
    """
    expected, picture = _reference(pipeline, settings)
    found: list[NDArray[np.float32]] = []

    result = _draw(model, settings, SEED, on_step=lambda step: found.append(step.latents))
    errors = [
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(found, expected, strict=True)
    ]
    gap = np.abs(result.pixels - np.clip(picture * 127.5 + 127.5, 0, 255))
    return {
        "first_step": errors[0],
        "worst_step": max(errors),
        "largest_level": float(gap.max()),
        "mean_level": float(gap.mean()),
        "same_again": bool((_draw(model, settings, SEED).pixels == result.pixels).all()),
    }


@torch.inference_mode()
def _reference(
    pipeline: Any, settings: Settings
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Return latents after every step, and the picture [1, height, width, 3] in −1 … 1.

    The scheduler computes in float32, and what networks take and give is float16, as in the loop.
    """
    kind, device = pipeline.dtype, pipeline.device
    texts = pipeline.tokenizer(
        [NEGATIVE, PROMPT],
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    embeddings = pipeline.text_encoder(texts.input_ids.to(device))[0].half().to(kind)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(settings.steps, device=device)
    side = settings.side // pipeline.vae_scale_factor
    start = initial_noise((pipeline.unet.config.in_channels, side, side), SEED, 1)
    latents = torch.from_numpy(start).to(device) * scheduler.init_noise_sigma
    seen = []
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(latents, timestep).half().to(kind)
        both = pipeline.unet(
            torch.cat([given] * 2), timestep.float().expand(2), embeddings, return_dict=False
        )[0]
        low, high = both.half().float().chunk(2)
        guided = low + GUIDANCE * (high - low)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        seen.append(latents.cpu().numpy())
    scaled = (latents / pipeline.vae.config.scaling_factor).half().to(kind)
    picture = pipeline.vae.decode(scaled, return_dict=False)[0].float().cpu().numpy()
    return seen, picture.transpose(0, 2, 3, 1)


@contextmanager
def piece_by_piece() -> Iterator[None]:
    """Let steps be enqueued piece by piece, rather than as a recording."""
    recorded = Evaluations.steps
    try:
        Evaluations.steps = lambda self, form: Pieces(lambda: self.enqueue(form))  # type: ignore[method-assign]
        yield
    finally:
        Evaluations.steps = recorded  # type: ignore[method-assign]


def measure_loop(checkpoint: Path, settings: Settings) -> dict[str, Any]:
    """Compare and time on the first GPU.

    Returns
    -------
    dict
        ``parity``: as :func:`compare` returns it. ``turns``: for the eager UNet and the compiled
        one, seconds of pictures by program. ``stages``: what the host did in one picture.
    """
    began = time.perf_counter()
    device, place = Gpu(), OnGpu()
    pipeline = loaded_pipeline(checkpoint, "cuda", torch.float16)
    eager = _model(pipeline, checkpoint, pipeline.unet, device, place)
    record: dict[str, Any] = {
        "kind": "gpu-loop",
        "machine": describe_machine(),
        "model": {"name": checkpoint.resolve().name},
        "settings": asdict(settings),
        "parity": compare(pipeline, eager, settings),
    }

    def of_diffusers(seed: int) -> object:
        side = settings.side // pipeline.vae_scale_factor
        noise = initial_noise((pipeline.unet.config.in_channels, side, side), seed, 1)
        return pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=settings.steps,
            guidance_scale=GUIDANCE,
            latents=torch.from_numpy(noise).to(pipeline.device, pipeline.dtype),
            output_type="np",
        ).images

    def unrecorded(seed: int) -> object:
        with piece_by_piece():
            return _draw(eager, settings, seed)

    programs: dict[str, Draw] = {
        "diffusers": of_diffusers,
        "loop": partial(_draw, eager, settings),
        "loop, not recorded": unrecorded,
    }
    record["turns"] = {"eager": measure_turns(programs, settings.rounds, torch.cuda.synchronize)}
    record["stages"] = _draw(eager, settings, SEED).seconds
    left = settings.seconds - (time.perf_counter() - began)
    if settings.compiled and left > LEAST_SECONDS:
        start = time.perf_counter()
        pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, dynamic=False)
        model = _model(pipeline, checkpoint, pipeline.unet, device, place)
        compiled = partial(_draw, model, settings)
        compiled(0)
        record["compile_seconds"] = time.perf_counter() - start
        record["turns"]["compiled"] = measure_turns(
            {"diffusers": of_diffusers, "loop": compiled}, settings.rounds, torch.cuda.synchronize
        )
    record["torch_memory_bytes"] = torch.cuda.max_memory_allocated()
    return record


def _model(pipeline: Any, checkpoint: Path, unet: Any, device: Device, place: Place) -> TextToImage:
    return around(pipeline, checkpoint, TorchNetworks(pipeline, unet, device, place), device)


def _draw(model: TextToImage, settings: Settings, seed: int, **watched: Any) -> Result:
    return model(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=GUIDANCE,
        height=settings.side,
        width=settings.side,
        num_inference_steps=settings.steps,
        seed=seed,
        **watched,
    )


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="diffusers folder")
    parser.add_argument("record", type=Path, help="JSON to write")
    parser.add_argument("--compile", action="store_true", help="time a compiled UNet, too")
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="to be done by")
    options = parser.parse_args()
    settings = Settings(compiled=options.compile, seconds=options.seconds)
    write_record(measure_loop(options.checkpoint, settings), options.record)


if __name__ == "__main__":
    main()
