"""Checkpoints of the published architectures with seeded random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bksdm.engines.errors import ExportError
from bksdm.export.dummy_tokenizer import build_vocabulary, write_tokenizer
from bksdm.export.library_errors import library_errors
from bksdm.storage.publishing import publishing, refuse_existing

_CROSS_DOWN = "CrossAttnDownBlock2D"
_CROSS_UP = "CrossAttnUpBlock2D"

# runwayml/CompVis Stable Diffusion v1.4, unet/config.json.
_SD_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP, _CROSS_UP, _CROSS_UP),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
_BASE = {"layers_per_block": 1}
_SMALL = {**_BASE, "mid_block_type": None}
_TINY = {
    **_SMALL,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": (_CROSS_DOWN,) * 3,
    "up_block_types": (_CROSS_UP,) * 3,
}
# diffusers' "attention_head_dim" of SD 1.x counts heads: 1 and 2 heads of width 16 here.
_NANO = {
    **_SMALL,
    "sample_size": 8,
    "block_out_channels": (16, 32, 32, 32),
    "cross_attention_dim": 32,
    "attention_head_dim": (1, 2, 2, 2),
    "norm_num_groups": 8,
}
_UNET_CHANGES: dict[str, dict[str, Any]] = {
    "sd-v1-4": {},
    "base": _BASE,
    "base-2m": _BASE,
    "small": _SMALL,
    "small-2m": _SMALL,
    "tiny": _TINY,
    "tiny-2m": _TINY,
    "nano": _NANO,
}

# The networks of the card's models, in its order.
CARD_MODELS: tuple[str, ...] = (
    "sd-v1-4",
    "base",
    "base-2m",
    "small",
    "small-2m",
    "tiny",
    "tiny-2m",
)
DUMMY_NAMES: tuple[str, ...] = tuple(_UNET_CHANGES)

_SD_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_NANO_VAE = {
    **_SD_VAE,
    "block_out_channels": (16, 16, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 64,
}

# openai/clip-vit-large-patch14, text tower.
_SD_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
_NANO_TEXT = {
    **_SD_TEXT,
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 32,
    "bos_token_id": 1022,
    "eos_token_id": 1023,
}

_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
}


def _known(name: str) -> None:
    if name not in _UNET_CHANGES:
        raise ExportError(f"unknown dummy model {name!r}; known: {', '.join(DUMMY_NAMES)}")


def unet_config(name: str) -> Mapping[str, Any]:
    """Return the UNet configuration of a dummy model.

    Parameters
    ----------
    name
        One of `DUMMY_NAMES`.

    Returns
    -------
    Mapping
        Keyword arguments of ``diffusers.UNet2DConditionModel``; read-only.

    Raises
    ------
    ExportError
        The name is unknown; the message lists the known ones.

    Notes
    -----
    Source: the ``unet/config.json`` of CompVis/stable-diffusion-v1-4 and of nota-ai's models.
    """
    _known(name)
    return MappingProxyType({**_SD_UNET, **_UNET_CHANGES[name]})


def vae_config(name: str) -> Mapping[str, Any]:
    """Return the keyword arguments of ``diffusers.AutoencoderKL`` for a dummy model.

    Raises
    ------
    ExportError
        The name is unknown; the message lists the known ones.
    """
    _known(name)
    return MappingProxyType(_NANO_VAE if name == "nano" else _SD_VAE)


def text_config(name: str) -> Mapping[str, Any]:
    """Return the keyword arguments of ``transformers.CLIPTextConfig`` for a dummy model.

    Raises
    ------
    ExportError
        The name is unknown; the message lists the known ones.
    """
    _known(name)
    return MappingProxyType(_NANO_TEXT if name == "nano" else _SD_TEXT)


def create_dummy(name: str, folder: Path, seed: int = 0) -> None:
    """Write a diffusers checkpoint of a published architecture with seeded random weights.

    The checkpoint (float32, safetensors) appears under its name only when it is complete.

    Parameters
    ----------
    name
        One of `DUMMY_NAMES`: ``sd-v1-4``, ``base``, ``small``, ``tiny``, their ``-2m`` variants
        (same architecture, other training data), or ``nano``, which keeps BK-SDM-Small's topology
        at a few hundred thousand parameters and makes 64 px pictures.
    folder
        Where the checkpoint goes; must not exist.
    seed
        Seed of torch's CPU generator; the same seed gives the same weights.

    Raises
    ------
    ExportError
        The name is unknown, or the folder exists or cannot be written.
    """
    _known(name)
    refuse_existing(folder)
    with publishing(folder) as staging, library_errors(f"cannot write {folder}"):
        _write(name, staging, seed)


def _write(name: str, folder: Path, seed: int) -> None:
    """Build, save and free one component after another: the UNet alone can be 3.4 GB."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from bksdm.export.quiet import quiet

    text = text_config(name)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        _stir(UNet2DConditionModel(**unet_config(name))).save_pretrained(folder / "unet")
        _stir(AutoencoderKL(**vae_config(name))).save_pretrained(folder / "vae")
        encoder = _stir(CLIPTextModel(CLIPTextConfig(**text)))
        # transformers 5 drops the prefix that published checkpoints and all older readers have.
        weights = {f"text_model.{key}": value for key, value in encoder.state_dict().items()}
        encoder.save_pretrained(folder / "text_encoder", state_dict=weights)
        scheduler = PNDMScheduler(**_SCHEDULER)
        # As in Stable Diffusion's own file: for samplers that would otherwise clip.
        scheduler.register_to_config(clip_sample=False)
        scheduler.save_pretrained(folder / "scheduler")
    vocabulary, merges = build_vocabulary(text["vocab_size"])
    write_tokenizer(folder / "tokenizer", vocabulary, merges, text["max_position_embeddings"])
    _write_index(folder / "model_index.json")


def _stir(model: Any) -> Any:
    """Make every constant parameter random: biases of 0 and norms of 1 would hide mistakes.

    Exporters also merge equal constants, which no trained checkpoint has.
    """
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == 1 or parameter.std() == 0:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def _write_index(path: Path) -> None:
    """Write what ``StableDiffusionPipeline.save_pretrained`` would, without the pipeline."""
    import json

    import diffusers

    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
