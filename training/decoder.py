"""Go on training the decoder alone, on the pictures that the UNet learns, and on noisy latents.

python decoder.py --icons PACKAGE --run FOLDER --minutes 10

The encoder stays, and the latents with it, so this may run beside or after the UNet's training.
The noise stands for what is left of it after sampling: the decoder learns to overlook it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from autoencoder import distance
from concepts import training_pairs
from diffusers import AutoencoderKL
from icons import load_icons
from latents import pictures
from run import Run, arguments, save_grid
from torch import nn

PEAK_RATE = 7e-4
BATCH = 3
NOISE = 0.2
"""Largest standard deviation of the noise on latents, whose own is 1."""


def train(icons_package: Path, folder: Path, minutes: float) -> None:
    """Train until the budget is spent, then replace the decoder in ``vae``."""
    icons = load_icons(icons_package)
    pairs = training_pairs()
    run = Run(folder, "decoder", minutes)
    model = AutoencoderKL.from_pretrained(folder / "vae").to(memory_format=torch.channels_last)
    trained = nn.ModuleList([model.post_quant_conv, model.decoder])
    optimizer = torch.optim.AdamW(trained.parameters(), PEAK_RATE, betas=(0.9, 0.99))
    run.resume(decoder=trained, optimizer=optimizer)
    while run.goes_on():
        rate = PEAK_RATE * min(1, (run.step + 1) / 30) * (1 + math.cos(math.pi * run.fraction)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate + 1e-5
        x = pictures(icons, [pairs[i] for i in torch.randint(len(pairs), (BATCH,)).tolist()])
        with torch.no_grad():
            z = model.encode(x).latent_dist.mode()
            z = z + NOISE * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(z)
        total, absolute = distance(model.decode(z).sample, x)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        run.advance(l1=absolute.item(), loss=total.item())
    model.eval().save_pretrained(folder / "vae")
    with torch.no_grad():
        x = pictures(icons, pairs[:: len(pairs) // 32][:32])
        z = model.encode(x).latent_dist.mode()
        shown = [x, model.decode(z).sample, model.decode(z + NOISE * torch.randn_like(z)).sample]
    save_grid(torch.stack(shown, 1).flatten(0, 1), folder / "decoder.png", columns=12)


if __name__ == "__main__":
    parser = arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    options = parser.parse_args()
    train(options.icons, options.run, options.minutes)
