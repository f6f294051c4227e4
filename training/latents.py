"""Encode the UNet's training pictures once.

    python latents.py --icons PACKAGE --run FOLDER --place varied

A first training on icons in one place, then one on varied places, learns both in less time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from concepts import CONCEPTS, training_pairs
from diffusers import AutoencoderKL
from icons import SIDE, background, load_icons, render, turns
from torch import Tensor

COPIES = {"fixed": 12, "varied": 36}
"""Pictures per pair. White has twice as many: a caption without a colour means it too."""
SIDES = {"fixed": (102.0, 106.0), "varied": (96.0, 110.0)}
"""Smallest and largest side of an icon in pixels."""
REACH = {"fixed": 1.5, "varied": 4.0}
"""How far it stands from the middle to either side, in pixels."""
DEGREES = {"fixed": 0.0, "varied": 6.0}
"""How far it leans to either side."""
BATCH = 32


@torch.no_grad()
def pictures(icons: Tensor, pairs: list[tuple[str, str]], place: str) -> Tensor:
    """Return one picture per pair, [pairs, 3, 128, 128].

    In a ``fixed`` place icons vary by two pixels, in a ``varied`` one by as much as a small UNet
    learns in an hour after that.
    """
    count = len(pairs)
    chosen = icons[[CONCEPTS.index(concept) for concept, _ in pairs]]
    low, high = SIDES[place]
    size = low + (high - low) * torch.rand(count)
    centre = SIDE / 2 + REACH[place] * (2 * torch.rand(count, 2) - 1)
    rgb = background([colour for _, colour in pairs], 0.02)
    return render(chosen, size, centre, rgb, turn=turns(count, DEGREES[place]))


@torch.no_grad()
def encode(
    model: AutoencoderKL, icons: Tensor, pairs: list[tuple[str, str]], place: str
) -> tuple[Tensor, Tensor]:
    """Return the latents of as many pictures as ``COPIES`` says, and the index of each one's pair.

    Shapes [pictures, 4, 16, 16] and [pictures].
    """
    index = [
        position
        for position, (_, colour) in enumerate(pairs)
        for _ in range(COPIES[place] * (2 if colour == "white" else 1))
    ]
    encoded = [
        model.encode(
            pictures(icons, [pairs[i] for i in index[start : start + BATCH]], place)
        ).latent_dist.mode()
        for start in range(0, len(index), BATCH)
    ]
    return torch.cat(encoded), torch.tensor(index)


def cache(icons_package: Path, folder: Path, place: str) -> None:
    """Write ``latents.pt``: latents of the run's VAE, and the index of each one's pair."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    model.to(memory_format=torch.channels_last)
    latents, index = encode(model, load_icons(icons_package), training_pairs(), place)
    torch.save({"latents": latents, "pair": index}, folder / "latents.pt")
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    print(f"{len(latents)} latents, mean {mean.tolist()}, deviation {deviation.tolist()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--run", type=Path, required=True, help="folder of saves and results")
    parser.add_argument("--place", choices=COPIES, required=True, help="where icons stand")
    options = parser.parse_args()
    cache(options.icons, options.run, options.place)
