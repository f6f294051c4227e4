"""Configurations of networks in CompVis' naming, read off their tensors.

What no tensor shows, such as the number of heads, is that of Stable Diffusion's published
configurations: every model of the family has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")
_CROSS, _PLAIN = "CrossAttn", ""
_GROUPS = 32
# Heads of version 1, and the width of a head of version 2 and of every CLIP.
_HEADS, _HEAD_WIDTH = 8, 64
_ENCODER = re.compile(r"encoder\.down(?:_blocks)?\.(\d+)\.(?:block|resnets)\.(\d+)\.conv1\.weight")
_TEXT_LAYER = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.")


class Irregular(ValueError):
    """No configuration of diffusers describes the blocks."""


def close_gaps(unet: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a UNet whose blocks are numbered one after the other.

    diffusers' script that writes CompVis' naming numbers the parts of every block as if it had
    Stable Diffusion's three; where BK-SDM has fewer, numbers are missing, and the upsampler stands
    alone under one of its own.

    Parameters
    ----------
    unet
        Without a prefix, as ``input_blocks.1.0.in_layers.2.weight``.
    """
    places: dict[str, str] = {}
    for side in ("input_blocks", "output_blocks"):
        found = (re.match(rf"{side}\.(\d+)\.", key) for key in unet)
        numbers = sorted({int(match[1]) for match in found if match})
        last = -1
        for number in numbers:
            alone = not any(key.startswith(f"{side}.{number}.0.") for key in unet)
            last += 0 if alone else 1
            places[f"{side}.{number}"] = f"{side}.{last}"
    renamed = {}
    for key, tensor in unet.items():
        block = ".".join(key.split(".")[:2])
        renamed[places.get(block, block) + key.removeprefix(block)] = tensor
    return renamed


def unet_config(unet: Mapping[str, Tensor], sample_size: int) -> dict[str, Any]:
    """Return the configuration of a UNet whose blocks are numbered without gaps.

    Parameters
    ----------
    unet
        As `close_gaps` returns it.
    sample_size
        Default height and width in latents.

    Raises
    ------
    Irregular
        The blocks differ in their number of layers, or layers within one.
    KeyError
        A tensor that every UNet has is missing.
    """
    down = _blocks(unet, "input_blocks", (".0.op.weight",))
    up = _blocks(unet, "output_blocks", (".1.conv.weight", ".2.conv.weight"))
    layers = len(down[0]) if down else 0
    if {*map(len, down)} != {layers} or {*map(len, up)} != {layers + 1}:
        raise Irregular("its blocks differ in their number of layers")
    widths = [_one({width for width, _ in block}) for block in down]
    linear = any(key.endswith("proj_in.weight") and unet[key].ndim == 2 for key in unet)
    text = next((unet[key] for key in unet if key.endswith(".attn2.to_k.weight")), None)
    if text is None:
        raise Irregular("it attends to no text")
    middle = any(key.startswith("middle_block.") for key in unet)
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": unet["input_blocks.0.0.weight"].shape[1],
        "out_channels": unet["out.2.weight"].shape[0],
        "down_block_types": [f"{_kind(block)}DownBlock2D" for block in down],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "up_block_types": [f"{_kind(block)}UpBlock2D" for block in up],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "cross_attention_dim": text.shape[1],
        "attention_head_dim": [width // _HEAD_WIDTH for width in widths] if linear else _HEADS,
        "use_linear_projection": linear,
        "norm_num_groups": _GROUPS,
    }


def vae_config(vae: Mapping[str, Tensor], sample_size: int) -> dict[str, Any]:
    """Return the configuration of a VAE, in CompVis' or in diffusers' naming.

    Parameters
    ----------
    vae
        Without a prefix, as ``encoder.conv_in.weight``.
    sample_size
        Default height and width in pixels.

    Raises
    ------
    KeyError
        A tensor that every VAE has is missing.
    """
    layers = {
        (int(match[1]), int(match[2])): tensor
        for key, tensor in vae.items()
        if (match := _ENCODER.fullmatch(key))
    }
    widths = [tensor.shape[0] for (_, layer), tensor in sorted(layers.items()) if layer == 0]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": vae["encoder.conv_in.weight"].shape[1],
        "out_channels": vae["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": sum(block == 0 for block, _ in layers),
        "latent_channels": vae["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": _GROUPS,
        "sample_size": sample_size,
        "scaling_factor": 0.18215,
    }


def text_config(text: Mapping[str, Tensor], activation: str) -> dict[str, Any]:
    """Return the configuration of a text encoder in transformers' naming.

    Parameters
    ----------
    text
        As ``text_model.encoder.layers.0.mlp.fc1.weight``; the first level may be missing.
    activation
        ``quick_gelu`` of OpenAI's CLIP, ``gelu`` of OpenCLIP.

    Raises
    ------
    KeyError
        A tensor that every text encoder has is missing.
    """
    plain = {key.removeprefix("text_model."): tensor for key, tensor in text.items()}
    tokens, width = plain["embeddings.token_embedding.weight"].shape
    numbers = {int(match[1]) for key in text if (match := _TEXT_LAYER.match(key))}
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": plain["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(numbers),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "max_position_embeddings": plain["embeddings.position_embedding.weight"].shape[0],
        "hidden_act": activation,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": 1,
    }


def _blocks(
    unet: Mapping[str, Tensor], side: str, ends: tuple[str, ...]
) -> list[list[tuple[int, bool]]]:
    """Return width and attention of every layer, block by block, which resampling divides."""
    layers: list[tuple[int, int, bool]] = []
    numbers = {int(key.split(".")[1]) for key in unet if key.startswith(f"{side}.")}
    block = 0
    for number in range(len(numbers)):
        stem = f"{side}.{number}"
        width = unet.get(f"{stem}.0.in_layers.2.weight")
        if width is not None:
            attends = any(key.startswith(f"{stem}.1.transformer_blocks.") for key in unet)
            layers.append((block, width.shape[0], attends))
        block += any(stem + end in unet for end in ends)
    return [
        [(width, attends) for _, width, attends in group]
        for _, group in groupby(layers, key=lambda layer: layer[0])
    ]


def _kind(block: list[tuple[int, bool]]) -> str:
    return _CROSS if _one({attends for _, attends in block}) else _PLAIN


def _one(found: set[Value]) -> Value:
    if len(found) != 1:
        raise Irregular("layers of one block differ")
    return found.pop()
