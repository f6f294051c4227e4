"""Encode the training pictures once, and make the autoencoder's latents white.

python latents.py --icons PACKAGE --run FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from concepts import CONCEPTS, training_pairs
from diffusers import AutoencoderKL
from icons import SIDE, background, load_icons, render
from torch import Tensor

WHITE_COPIES, OTHER_COPIES = 24, 12
"""Pictures per pair: a caption without a colour means white, so white is asked for most."""
BATCH = 32


@torch.no_grad()
def pictures(icons: Tensor, pairs: list[tuple[str, str]]) -> Tensor:
    """Return one picture per pair, [pairs, 3, 128, 128]; place and size vary by a few pixels."""
    count = len(pairs)
    chosen = icons[[CONCEPTS.index(concept) for concept, _ in pairs]]
    size = 102 + 4 * torch.rand(count)
    centre = SIDE / 2 + 1.5 * (2 * torch.rand(count, 2) - 1)
    return render(chosen, size, centre, background([colour for _, colour in pairs], 0.02))


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


@torch.no_grad()
def encode(model: AutoencoderKL, icons: Tensor) -> dict[str, Tensor]:
    """Return the ``latents`` of the training pictures and the index of each one's ``pair``."""
    torch.manual_seed(0)
    model.eval().to(memory_format=torch.channels_last)
    pairs = training_pairs()
    index = [
        position
        for position, (_, colour) in enumerate(pairs)
        for _ in range(WHITE_COPIES if colour == "white" else OTHER_COPIES)
    ]
    encoded = [
        model.encode(
            pictures(icons, [pairs[i] for i in index[start : start + BATCH]])
        ).latent_dist.mode()
        for start in range(0, len(index), BATCH)
    ]
    return {"latents": torch.cat(encoded), "pair": torch.tensor(index)}


@torch.no_grad()
def cache(icons_package: Path, folder: Path) -> None:
    """Write ``latents.pt`` and the whitened VAE."""
    torch.set_num_threads(1)
    model = AutoencoderKL.from_pretrained(folder / "autoencoder")
    data = encode(model, load_icons(icons_package))
    latents = data["latents"]
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    whiten(model, mean, deviation)
    model.save_pretrained(folder / "vae")
    data["latents"] = (latents - mean[:, None, None]) / deviation[:, None, None]
    torch.save(data, folder / "latents.pt")
    print(f"{len(latents)} latents, mean {mean.tolist()}, deviation {deviation.tolist()}")


def of_checkpoint(icons_package: Path, checkpoint: Path, folder: Path) -> dict[str, Tensor]:
    """Return what ``latents.pt`` holds; where it is missing, write it for a finished checkpoint."""
    path = folder / "latents.pt"
    if not path.is_file():
        model = AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
        torch.save(encode(model, load_icons(icons_package)), path)
    data: dict[str, Tensor] = torch.load(path, weights_only=True)
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--run", type=Path, required=True, help="folder of saves and results")
    options = parser.parse_args()
    cache(options.icons, options.run)
