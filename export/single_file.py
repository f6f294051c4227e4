"""Take a checkpoint in one file, of CompVis' naming, apart into a folder as diffusers saves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from bksdm.engines.errors import ExportError
from bksdm.export.clip_tokenizer import copy_tokenizer
from bksdm.export.file_kind import UNET, VAES, require_family
from bksdm.export.json_files import read_json
from bksdm.export.ldm_configs import (
    Irregular,
    close_gaps,
    text_config,
    unet_config,
    vae_config,
)
from bksdm.export.library_errors import library_errors
from bksdm.export.quiet import quiet
from bksdm.export.weights import load_pickle, read_safetensors, readable

SAFETENSORS, PICKLES = ".safetensors", (".ckpt", ".pt", ".pth", ".bin")
WEIGHTS = "diffusion_pytorch_model.safetensors"
_EMA = "model_ema."
_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
# Of the published configurations that diffusers loads such files with: latents along a side, and
# what the networks predict.
_LATENTS = {"v1": 64, "v2": 96}
_SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "v1": {"_class_name": "PNDMScheduler", **_SCHEDULER},
    "v2": {"_class_name": "DDIMScheduler", **_SCHEDULER, "prediction_type": "v_prediction"},
}
_VAE_PIXELS = 8


def read_single_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint in one file, without running code in it.

    Raises
    ------
    ExportError
        It is damaged, of another format, or a pickle of more than tensors.
    """
    if path.suffix != SAFETENSORS and path.suffix not in PICKLES:
        raise ExportError(
            f"{path}: neither {SAFETENSORS} nor a pickle of torch ({', '.join(PICKLES)})"
        )
    with readable(path):
        if path.suffix == SAFETENSORS:
            return read_safetensors(path)
        content = load_pickle(path)
    while isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ExportError(f"{path}: contains something other than named tensors")
    # Trainers leave numbers and settings beside the tensors.
    return {str(name): t for name, t in content.items() if isinstance(t, Tensor)}


def unpack(
    path: Path,
    folder: Path,
    config: Path | None = None,
    tokenizer: Path | None = None,
    ema: bool = False,
    vae: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a checkpoint in one file as the folder that diffusers would save of it.

    Parameters
    ----------
    path
        The file.
    folder
        Where its parts go; exists.
    config
        A diffusers folder whose configurations and tokenizer are taken, as ``config`` of
        diffusers' ``from_single_file``. What it lacks is read off the tensors.
    tokenizer
        As of `bksdm.export.clip_tokenizer.copy_tokenizer`.
    ema
        Take the averaged weights of the UNet, as diffusers' ``extract_ema``.
    vae
        Whether the file's own VAE is wanted.
    report
        Called with a line about what was assumed.

    Raises
    ------
    ExportError
        The file is damaged or something else, and then it says what; it lacks a part; or there is
        no tokenizer.
    """
    tensors = read_single_file(path)
    kind = require_family(path, tensors)
    with quiet(), library_errors(f"{path}: cannot be converted"):
        _write_unet(path, folder, config, _averaged(path, tensors) if ema else tensors, kind)
        if vae:
            write_vae(path, tensors, folder / "vae", config and config / "vae" / "config.json")
        old = _write_text_encoder(path, folder, config, tensors)
    scheduler = _given(config, "scheduler/scheduler_config.json")
    if scheduler is None:
        scheduler = _SCHEDULERS[kind]
        if kind == "v2":
            report(
                "scheduler: v-prediction, as diffusers assumes of version 2; for a base model of "
                "512 pixels, which predicts noise, give --config"
            )
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", _index(config, scheduler))
    copy_tokenizer(
        folder / "tokenizer", tokenizer, config, path, pad="<|endoftext|>" if old else "!"
    )


def write_vae(
    path: Path, tensors: Mapping[str, Tensor], folder: Path, config: Path | None = None
) -> None:
    """Write a VAE from a file of its own, or from a whole checkpoint.

    Parameters
    ----------
    path
        Where the tensors are from, for messages.
    tensors
        In CompVis' naming, or in diffusers'.
    folder
        The new folder.
    config
        Its configuration, if that is a file; otherwise it is read off the tensors.

    Raises
    ------
    ExportError
        There is no VAE among the tensors.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    prefix = next((p for p in VAES if any(key.startswith(p) for key in tensors)), "")
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    vae = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.removeprefix(prefix).startswith(parts) and key.startswith(prefix)
    }
    for part in parts[:2]:
        if not any(key.startswith(part) for key in vae):
            raise ExportError(f"{path}: holds no VAE ({part}…); give one by --vae")
    try:
        fields = read_json(config) if config and config.exists() else vae_config(vae, 512)
    except KeyError as error:
        raise ExportError(f"{path}: its VAE lacks {error.args[0]}") from error
    if not any(key.startswith("encoder.down_blocks.") for key in vae):
        vae = convert_ldm_vae_checkpoint(vae, fields)
    _write_network(folder, fields, vae, WEIGHTS)


def _averaged(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the UNet's averaged weights under the names of the others."""
    names = {
        key: _EMA + key.removeprefix("model.").replace(".", "")
        for key in tensors
        if key.startswith(UNET)
    }
    missing = [name for name in names.values() if name not in tensors]
    if len(missing) == len(names):
        raise ExportError(f"{path}: holds no averaged weights ({_EMA}…); export without --ema")
    if missing:
        raise ExportError(f"{path}: lacks the averaged weights of {len(missing)} ({missing[0]} …)")
    return {key: tensors[name] for key, name in names.items()}


def _write_unet(
    path: Path, folder: Path, config: Path | None, tensors: Mapping[str, Tensor], kind: str
) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    plain = {
        key.removeprefix(UNET): tensor for key, tensor in tensors.items() if key.startswith(UNET)
    }
    unet = close_gaps(plain)
    try:
        fields = _given(config, "unet/config.json") or unet_config(unet, _LATENTS[kind])
    except KeyError as error:
        raise ExportError(f"{path}: its UNet lacks {error.args[0]}") from error
    except Irregular as error:
        raise ExportError(f"{path}: no UNet of Stable Diffusion's family: {error}") from error
    prefixed = {UNET + key: tensor for key, tensor in unet.items()}
    _write_network(folder / "unet", fields, convert_ldm_unet_checkpoint(prefixed, fields), WEIGHTS)


def _write_text_encoder(
    path: Path, folder: Path, config: Path | None, tensors: Mapping[str, Tensor]
) -> bool:
    """Write it, and return whether it is version 1's."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    old = any(key.startswith(_CLIP) for key in tensors)
    if old:
        text = {k.removeprefix(_CLIP): t for k, t in tensors.items() if k.startswith(_CLIP)}
    else:
        width = tensors.get(f"{_OPEN_CLIP}token_embedding.weight")
        if width is None:
            raise ExportError(f"{path}: holds no text encoder ({_CLIP}… or {_OPEN_CLIP}…)")
        model = SimpleNamespace(config=SimpleNamespace(hidden_size=width.shape[1]))
        text = convert_open_clip_checkpoint(model, tensors, prefix=_OPEN_CLIP)
    try:
        fields = _given(config, "text_encoder/config.json") or text_config(
            text, "quick_gelu" if old else "gelu"
        )
    except KeyError as error:
        raise ExportError(f"{path}: its text encoder lacks {error.args[0]}") from error
    _write_network(folder / "text_encoder", fields, text, "model.safetensors")
    return old


def _write_network(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], file: str
) -> None:
    from safetensors.torch import save_file

    _write_json(folder / "config.json", config)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / file,
        {"format": "pt"},
    )


def _index(config: Path | None, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    from diffusers import __version__

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": __version__,
        "scheduler": ["diffusers", scheduler.get("_class_name")],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **(_given(config, "model_index.json") or {}),
        # As by diffusers, which never takes one from a file or a configuration.
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }


def _given(config: Path | None, name: str) -> dict[str, Any] | None:
    """Return a configuration of a folder that was given, if it has that one."""
    return read_json(config / name) if config and (config / name).exists() else None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
