"""Make the autoencoder's latents white.

python whiten.py --icons PACKAGE --run FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from concepts import training_pairs
from diffusers import AutoencoderKL
from icons import load_icons
from latents import encode
from torch import Tensor


@torch.no_grad()
def whiten(model: AutoencoderKL, mean: Tensor, deviation: Tensor) -> None:
    """Fold ``(z − mean) / deviation`` into the convolutions around the latents.

    Each of the latent channels then has mean 0 and variance 1, and ``scaling_factor`` is 1.
    """
    channels = len(mean)
    into, out = model.quant_conv, model.post_quant_conv
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    model.register_to_config(scaling_factor=1.0)


def write(icons_package: Path, folder: Path) -> None:
    """Write ``vae``: the run's ``autoencoder`` with white latents of icons in a fixed place."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoencoderKL.from_pretrained(folder / "autoencoder").eval()
    model.to(memory_format=torch.channels_last)
    latents, _ = encode(model, load_icons(icons_package), training_pairs(), "fixed")
    whiten(model, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    model.save_pretrained(folder / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--run", type=Path, required=True, help="folder of saves and results")
    options = parser.parse_args()
    write(options.icons, options.run)
