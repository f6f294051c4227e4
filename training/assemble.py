"""Put the trained parts together: a diffusers checkpoint in float16.

python assemble.py --run FOLDER -o FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from unet import create, scheduler

_LARGEST = torch.finfo(torch.float16).max


def halve(name: str, model: nn.Module) -> None:
    """Convert the weights to float16.

    Raises
    ------
    ValueError
        A weight is not finite or too large.
    """
    for key, weight in model.state_dict().items():
        if not bool((weight.abs() < _LARGEST).all()):
            raise ValueError(f"{name}: {key} has weights that float16 cannot hold")
    model.half()


def load_unet(folder: Path) -> Any:
    """Return the UNet with the averaged weights of the last save."""
    unet = create()
    state: dict[str, dict[str, Tensor]] = torch.load(folder / "unet.pt", weights_only=True)
    averages = state["average"].values()
    with torch.no_grad():
        for parameter, average in zip(unet.parameters(), averages, strict=True):
            parameter.copy_(average)
    # The file shall not depend on how training laid the weights out in memory.
    return unet.to(memory_format=torch.contiguous_format)


def _drop_origin(config: Path) -> None:
    """Remove the folder that diffusers notes a component was read from."""
    table = json.loads(config.read_text(encoding="utf-8"))
    table.pop("_name_or_path", None)
    text = json.dumps(table, indent=2, sort_keys=True) + "\n"
    config.write_text(text, encoding="utf-8", newline="\n")


def assemble(folder: Path, target: Path) -> None:
    """Write the checkpoint beside ``target``'s own files, part by part.

    The parts' graphs go with the old weights: ``graphs.py`` makes them anew.
    """
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    unet = load_unet(folder)
    for name, model in (("vae", vae), ("text_encoder", encoder), ("unet", unet)):
        halve(name, model)
    pipeline = StableDiffusionPipeline(
        vae,
        encoder,
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet,
        scheduler(),
        None,
        None,
        requires_safety_checker=False,
    )
    partial = target / "partial"
    pipeline.save_pretrained(partial)
    # transformers 5 drops the prefix that published checkpoints and all older readers have.
    prefixed = {f"text_model.{key}": value for key, value in encoder.state_dict().items()}
    encoder.save_pretrained(partial / "text_encoder", state_dict=prefixed)
    for config in partial.glob("*/config.json"):
        _drop_origin(config)
    for weights in partial.glob("*/*.safetensors"):
        # Some versions write it for the owner's eyes only.
        weights.chmod(0o644)
    # The files the tokenizer was written as, not what transformers makes of them.
    shutil.copytree(folder / "tokenizer", partial / "tokenizer", dirs_exist_ok=True)
    for part in sorted(partial.iterdir()):
        old = target / part.name
        if old.is_dir():
            shutil.rmtree(old)
        part.replace(old)
    partial.rmdir()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of saves and results")
    parser.add_argument("-o", "--output", type=Path, required=True, help="models/emoji")
    options = parser.parse_args()
    assemble(options.run, options.output)
