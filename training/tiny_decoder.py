"""Distil the finished model's decoder to a tiny one, an ``AutoencoderTiny``'s.

    python tiny_decoder.py --icons PACKAGE --checkpoint models/emoji --run FOLDER --minutes 22

It learns what the decoder makes of latents with some noise, not the pictures that were encoded, so
that it may stand in for it. It goes to ``vae_decoder_tiny`` of the checkpoint, in float16.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from assemble import halve
from autoencoder import distance
from diffusers import AutoencoderKL, AutoencoderTiny
from latents import of_checkpoint
from run import Run, arguments, save_grid
from safetensors.torch import save_file
from torch import Tensor, nn

from bksdm.export.pretrained import config_of

WIDTH = 16
BLOCKS = (3, 3, 3, 1)
"""Of three convolutions each, on 16×16, 32×32, 64×64 and 128×128 pixels, as TAESD has them."""
PEAK_RATE = 2e-3
BATCH = 8
DECODED = 2048
JUDGED = 128
NOISE = 0.2
"""Largest standard deviation of the noise on latents, whose own is 1."""


def create() -> AutoencoderTiny:
    """Return an untrained one that starts close to enlarging its latents; its encoder is idle."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,),
        num_encoder_blocks=(0,),
        decoder_block_out_channels=(WIDTH,) * len(BLOCKS),
        num_decoder_blocks=BLOCKS,
    )
    with torch.no_grad():
        for layer in model.decoder.layers:
            if hasattr(layer, "conv"):
                layer.conv[-1].weight.mul_(0.1)
                layer.conv[-1].bias.zero_()
            elif isinstance(layer, nn.Conv2d) and layer.in_channels == layer.out_channels:
                layer.weight.mul_(0.3)
                layer.weight[range(WIDTH), range(WIDTH), 1, 1] += 1
    return model.to(memory_format=torch.channels_last)


@torch.no_grad()
def examples(
    latents: Tensor, vae: AutoencoderKL, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return noisy latents [count, 4, 16, 16] and what the decoder makes of them, in −1 … 1."""
    chosen = latents[torch.randint(len(latents), (count,), generator=generator)]
    deviation = NOISE * torch.rand(count, 1, 1, 1, generator=generator)
    noisy = chosen + deviation * torch.randn(chosen.shape, generator=generator)
    decoded = [vae.decode(part).sample.clamp(-1, 1).half() for part in noisy.split(16)]
    return noisy, torch.cat(decoded)


def psnr(y: Tensor, x: Tensor) -> float:
    """Return the mean over pictures of the peak signal-to-noise ratio, in dB."""
    squares = ((y.clamp(-1, 1) - x) / 2).square().mean((1, 2, 3))
    return float((-10 * squares.log10()).mean())


def train(icons: Path, checkpoint: Path, folder: Path, minutes: float) -> None:
    """Train until the budget is spent, then write the decoder and pictures of both."""
    run = Run(folder, "tiny_decoder", minutes)
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32).eval()
    latents = of_checkpoint(icons, checkpoint, folder)["latents"]
    generator = torch.Generator().manual_seed(1)
    held_out = examples(latents, vae, JUDGED, generator)
    noisy, decoded = examples(latents, vae, DECODED, generator)
    model = create()
    optimizer = torch.optim.AdamW(model.decoder.parameters(), PEAK_RATE, betas=(0.9, 0.99))
    run.resume(decoder=model.decoder, optimizer=optimizer)
    while run.goes_on():
        rate = PEAK_RATE * min(1, (run.step + 1) / 50) * (1 + math.cos(math.pi * run.fraction)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate + 1e-5
        chosen = torch.randint(DECODED, (BATCH,))
        y = model.decode(noisy[chosen].contiguous(memory_format=torch.channels_last)).sample
        total, absolute = distance(y, decoded[chosen].float())
        optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        run.advance(l1=absolute.item(), loss=total.item())
    with torch.no_grad():
        y, x = model.eval().decode(held_out[0]).sample, held_out[1].float()
    run.log(f"PSNR against the full decoder {psnr(y, x):.2f} dB")
    save_grid(torch.stack([x, y], 1)[:32].flatten(0, 1), folder / "tiny_decoder.png", columns=8)
    write(model, checkpoint / "vae_decoder_tiny")


def write(model: AutoencoderTiny, folder: Path) -> None:
    """Write the decoder alone as ``bksdm export --tiny-vae`` takes it; ``graphs.py`` does."""
    folder.mkdir(exist_ok=True)
    halve(folder.name, model)
    tensors = {f"decoder.{key}": value for key, value in model.decoder.state_dict().items()}
    weights = folder / "diffusion_pytorch_model.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, weights)
    # It is written for its owner alone.
    weights.chmod(0o644)
    config = json.dumps(config_of(model), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--checkpoint", type=Path, required=True, help="models/emoji")
    options = parser.parse_args()
    train(options.icons, options.checkpoint, options.run, options.minutes)
