"""Checkpoints of the published architectures with seeded random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bksdm.engines.errors import ExportError
from bksdm.export.dummy_tokenizer import build_vocabulary, write_tokenizer
from bksdm.export.library_errors import library_errors
from bksdm.runtime.bundle import TINY_VAE
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
# IDKiro/sdxs-512-dreamshaper: BK-SDM-Tiny without attention at the finest level.
_SDXS_BLOCKS = {
    "down_block_types": ("DownBlock2D", _CROSS_DOWN, _CROSS_DOWN),
    "up_block_types": (_CROSS_UP, _CROSS_UP, "UpBlock2D"),
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
_NANO_BASE = {**_NANO, "mid_block_type": "UNetMidBlock2DCrossAttn"}
_NANO_SDXS = {
    **_NANO,
    **_SDXS_BLOCKS,
    "block_out_channels": (16, 32, 32),
    "attention_head_dim": (1, 2, 2),
}
_NANO_LCM = {
    **_NANO,
    "time_cond_proj_dim": 32,
    "block_out_channels": (16, 32),
    "attention_head_dim": (1, 2),
    "down_block_types": (_CROSS_DOWN, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", _CROSS_UP),
}
_UNET_CHANGES: dict[str, dict[str, Any]] = {
    "sd-v1-4": {},
    "base": _BASE,
    "base-2m": _BASE,
    "small": _SMALL,
    "small-2m": _SMALL,
    "tiny": _TINY,
    "tiny-2m": _TINY,
    "sdxs": {**_TINY, **_SDXS_BLOCKS},
    # SimianLuo/LCM_Dreamshaper_v7: the guidance scale is an input.
    "lcm": {"time_cond_proj_dim": 256},
    "nano": _NANO,
    "nano-base": _NANO_BASE,
    "nano-sdxs": _NANO_SDXS,
    "nano-lcm": _NANO_LCM,
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

# madebyollin/taesd, an AutoencoderTiny.
_TAESD: dict[str, Any] = {
    "encoder_block_out_channels": (64,) * 4,
    "decoder_block_out_channels": (64,) * 4,
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
}
_NANO_TAESD = {
    "encoder_block_out_channels": (16,) * 4,
    "decoder_block_out_channels": (16,) * 4,
    "num_encoder_blocks": (1,) * 4,
    "num_decoder_blocks": (1,) * 4,
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
# SDXS takes its only step from the last timestep.
_ONE_STEP: dict[str, Any] = {**_SCHEDULER, "timestep_spacing": "trailing"}
_SCHEDULERS = {"sdxs": ("EulerDiscreteScheduler", _ONE_STEP), "lcm": ("LCMScheduler", _SCHEDULER)}


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
    """Return the keyword arguments of a dummy model's VAE: of `vae_class`.

    Raises
    ------
    ExportError
        The name is unknown; the message lists the known ones.
    """
    _known(name)
    if vae_class(name) == TINY_VAE:
        return MappingProxyType(_NANO_TAESD if _is_nano(name) else _TAESD)
    return MappingProxyType(_NANO_VAE if _is_nano(name) else _SD_VAE)


def vae_class(name: str) -> str:
    """Return diffusers' class of a dummy model's VAE."""
    return TINY_VAE if _kind(name) == "sdxs" else "AutoencoderKL"


def _is_nano(name: str) -> bool:
    return name.startswith("nano")


def _kind(name: str) -> str:
    """Return what a model is beside its size: ``sdxs`` or ``lcm``, or its name."""
    return name.removeprefix("nano-")


def text_config(name: str) -> Mapping[str, Any]:
    """Return the keyword arguments of ``transformers.CLIPTextConfig`` for a dummy model.

    Raises
    ------
    ExportError
        The name is unknown; the message lists the known ones.
    """
    _known(name)
    return MappingProxyType(_NANO_TEXT if _is_nano(name) else _SD_TEXT)


def create_dummy(name: str, folder: Path, seed: int = 0, controlnet: bool = False) -> None:
    """Write a diffusers checkpoint of a published architecture with seeded random weights.

    The checkpoint (float32, safetensors) appears under its name only when it is complete.

    Parameters
    ----------
    name
        One of `DUMMY_NAMES`: ``sd-v1-4``, ``base``, ``small``, ``tiny``, their ``-2m`` variants
        (same architecture, other training data); ``sdxs``, a one-step model with an
        ``AutoencoderTiny``; ``lcm``, Stable Diffusion whose UNet takes the guidance scale; or
        ``nano``, which keeps BK-SDM-Small's topology at a few hundred thousand parameters and makes
        64 px pictures, with ``nano-base``, ``nano-sdxs`` and ``nano-lcm``.
    folder
        Where the checkpoint goes; must not exist.
    seed
        Seed of torch's CPU generator; the same seed gives the same weights.
    controlnet
        Whether to write a ControlNet for its UNet too, in the folder ``controlnet``.

    Raises
    ------
    ExportError
        The name is unknown, its UNet has no mid block for a ControlNet, or the folder exists or
        cannot be written.
    """
    if controlnet and unet_config(name)["mid_block_type"] is None:
        raise ExportError(
            f"{name} has no mid block, which a ControlNet needs; base, sd-v1-4, lcm and nano-base "
            "have one"
        )
    _known(name)
    refuse_existing(folder)
    with publishing(folder) as staging, library_errors(f"cannot write {folder}"):
        _write(name, staging, seed, controlnet)


def _write(name: str, folder: Path, seed: int, controlnet: bool) -> None:
    """Build, save and free one component after another: the UNet alone can be 3.4 GB."""
    import diffusers
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from bksdm.export.quiet import quiet

    text = text_config(name)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        unet = _stir(UNet2DConditionModel(**unet_config(name)))
        unet.save_pretrained(folder / "unet")
        if controlnet:
            _write_controlnet(unet, folder / "controlnet", _is_nano(name))
        del unet
        vae = _stir(getattr(diffusers, vae_class(name))(**vae_config(name)))
        if vae_class(name) == TINY_VAE:
            _liven(vae)
        vae.save_pretrained(folder / "vae")
        encoder = _stir(CLIPTextModel(CLIPTextConfig(**text)))
        # transformers 5 drops the prefix that published checkpoints and all older readers have.
        weights = {f"text_model.{key}": value for key, value in encoder.state_dict().items()}
        encoder.save_pretrained(folder / "text_encoder", state_dict=weights)
        class_name, fields = _scheduler(name)
        scheduler = getattr(diffusers, class_name).from_config(fields)
        # As in Stable Diffusion's own file: for samplers that would otherwise clip.
        scheduler.register_to_config(clip_sample=False)
        scheduler.save_pretrained(folder / "scheduler")
    vocabulary, merges = build_vocabulary(text["vocab_size"])
    write_tokenizer(folder / "tokenizer", vocabulary, merges, text["max_position_embeddings"])
    _write_index(folder / "model_index.json", class_name, vae_class(name))


def _scheduler(name: str) -> tuple[str, dict[str, Any]]:
    """Return the class and the fields of a dummy model's scheduler."""
    return _SCHEDULERS.get(_kind(name), ("PNDMScheduler", _SCHEDULER))


def _write_controlnet(unet: Any, folder: Path, nano: bool) -> None:
    """Write what `ControlNetModel.from_unet` makes, its convolutions of zeros made random.

    As they are it would add nothing; so it adds half of what its features deviate by.
    """
    import torch
    from diffusers import ControlNetModel

    widths = (8, 8, 16, 16) if nano else (16, 32, 96, 256)
    # The other networks are the same with it and without.
    with torch.random.fork_rng(devices=[]):
        made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
        with torch.no_grad():
            for weight in made.parameters():
                if weight.ndim == 4 and not weight.any():
                    weight.normal_(std=0.5 / math.sqrt(weight[0].numel()))
        _stir(made).save_pretrained(folder)


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


def _liven(vae: Any) -> None:
    """Let a tiny VAE make pictures: nothing in it normalises, so that torch's weights fade."""
    import torch

    with torch.no_grad():
        for weight in vae.parameters():
            if weight.ndim == 4:
                weight *= 1.8
        # In 0 … 1.
        vae.decoder.layers[-1].bias += 0.5


def _write_index(path: Path, scheduler: str, vae: str) -> None:
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
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", vae],
    }
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
