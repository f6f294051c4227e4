"""Train the autoencoder: 128×128 pictures to 16×16×4 latents and back.

python autoencoder.py --icons PACKAGE --run FOLDER --minutes 20
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch
from concepts import COLOURS
from diffusers import AutoencoderKL
from icons import SIDE, background, load_icons, render
from run import Run, arguments, save_grid
from torch import Tensor, nn
from torch.nn import functional

PEAK_RATE = 1.4e-3
KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.3
SQUARE_WEIGHT = 2.0
POOLS = (4, 16, 32)
"""Windows of the mean colours that are compared beside the pixels: without them colours drift."""


def create() -> AutoencoderKL:
    """Return an untrained autoencoder that starts close to shrinking and enlarging pictures.

    A random start spends most of a short training on learning that colours have to pass. Residual
    branches start small, and the shortcuts carry colour from the first to the last layer.
    """
    widths = (16, 32, 64, 128)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        # Fewer groups than the smallest width, or normalising loses the colour.
        norm_num_groups=4,
        sample_size=SIDE,
    )
    with torch.no_grad():
        for module in model.modules():
            kind = type(module).__name__
            if kind == "ResnetBlock2D":
                module.conv2.weight.mul_(0.05)
                module.conv2.bias.zero_()
                if module.conv_shortcut is not None:
                    _pass_through(module.conv_shortcut, 1.0)
            elif kind == "Downsample2D":
                _pass_through(module.conv, 0.25, [(0, 0), (0, 1), (1, 0), (1, 1)])
            elif kind == "Upsample2D":
                _pass_through(module.conv, 1.0, [(1, 1)])
            elif kind == "Attention":
                module.to_out[0].weight.mul_(0.1)
        entry = model.encoder.conv_in.weight
        entry.mul_(0.3)
        for channel in range(3):
            for copy, sign in enumerate((1.0, -1.0, 1.0)):
                entry[4 * copy + channel, channel, 1, 1] += sign
        entry = model.decoder.conv_in.weight
        entry.mul_(0.3)
        for channel in range(4):
            for copy, sign in enumerate((1.0, -1.0, 0.5, -0.5)):
                entry[4 * copy + channel, channel, 1, 1] += sign
        # Nearly no noise on the latents at first.
        model.quant_conv.weight[4:] *= 0.1
        model.quant_conv.bias[4:] = -5.0
    return model.to(memory_format=torch.channels_last)


def _pass_through(
    convolution: nn.Conv2d, gain: float, taps: list[tuple[int, int]] | None = None
) -> None:
    weight = convolution.weight
    weight.mul_(0.3)
    for channel in range(min(weight.shape[:2])):
        for row, column in taps or [(0, 0)]:
            weight[channel, channel, row, column] += gain
    if convolution.bias is not None:
        convolution.bias.zero_()


def pictures(icons: Tensor, count: int, window: int, rng: random.Random) -> Tensor:
    """Return random pictures, or parts of them, [count, 3, window, window] in −1 … 1."""
    size = 70 + 50 * torch.rand(count)
    slack = (SIDE - size).clamp(min=4)[:, None] / 2
    centre = SIDE / 2 + (torch.rand(count, 2) * 2 - 1) * slack
    corner = torch.rand(count, 2) * (SIDE - window)
    names = ["white" if rng.random() < 0.35 else rng.choice(COLOURS) for _ in range(count)]
    chosen = icons[torch.randint(len(icons), (count,))]
    return render(chosen, size, centre, background(names, 0.03), corner, window)


def distance(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far decoded pictures are from true ones, and their mean absolute error.

    L1 + edges + squares at several scales.
    """
    difference = y - x
    absolute = difference.abs().mean()
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    squares = difference.square().mean()
    for pool in POOLS:
        squares = squares + functional.avg_pool2d(difference, pool).square().mean()
    return absolute + EDGE_WEIGHT * edges + SQUARE_WEIGHT * squares, absolute


def loss(model: AutoencoderKL, x: Tensor, anchor: float) -> tuple[Tensor, Tensor]:
    """Return the training loss and the mean absolute error of the decoded picture.

    The distance + tiny KL; ``anchor`` weighs how far the first three latent channels are from a
    shrunken picture, which steadies the start.
    """
    posterior = model.encode(x).latent_dist
    total, absolute = distance(model.decode(posterior.sample()).sample, x)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    shrunken = (posterior.mean[:, :3] - 2 * functional.avg_pool2d(x, 8)).square().mean()
    return total + KL_WEIGHT * kl + anchor * shrunken, absolute


@torch.no_grad()
def report(model: AutoencoderKL, icons: Tensor, run: Run) -> None:
    """Log the PSNR of fresh whole pictures and write originals beside decoded ones."""
    x = pictures(icons, 32, SIDE, random.Random(0))
    y = model.decode(model.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    squares = ((x - y) / 2).square().mean((1, 2, 3))
    run.log(f"PSNR {float((-10 * squares.log10()).mean()):.2f} dB")
    save_grid(torch.stack([x, y], 1).flatten(0, 1), run.folder / "autoencoder.png", columns=8)


def train(icons_package: Path, folder: Path, minutes: float) -> None:
    """Train until the budget is spent, going on from the last save."""
    icons = load_icons(icons_package)
    run = Run(folder, "autoencoder", minutes)
    model = create()
    optimizer = torch.optim.AdamW(
        model.parameters(), PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4
    )
    rng = random.Random(run.resume(model=model, optimizer=optimizer))
    while run.goes_on():
        rate = PEAK_RATE * min(1, run.step / 30) * (0.5 + 0.5 * math.cos(math.pi * run.fraction))
        for group in optimizer.param_groups:
            group["lr"] = rate + 2e-5
        # Mostly quarter pictures, which are cheap; whole ones show the borders.
        x = pictures(icons, 2, SIDE, rng) if run.step % 8 == 0 else pictures(icons, 6, 64, rng)
        total, absolute = loss(model, x, anchor=max(0.03, 1 - 3 * run.fraction))
        optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.advance(l1=absolute.item(), loss=total.item())
    report(model.eval(), icons, run)
    model.save_pretrained(folder / "autoencoder")


if __name__ == "__main__":
    parser = arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    options = parser.parse_args()
    train(options.icons, options.run, options.minutes)
