"""Load a checkpoint's models as diffusers and transformers build them, with all weights.

The libraries' own loaders fill in random numbers for what a file lacks, and leave it on the device
``meta`` in other places; both go unnoticed. Here every tensor of a model comes from its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bksdm.engines.errors import ExportError
from bksdm.export.json_files import read_json
from bksdm.export.library_errors import library_errors
from bksdm.export.weights import files_of, fit, read_tensors
from bksdm.runtime.bundle import CONTROLNET, TINY_VAE

# By name: transformers puts functions of its own in the place of torch's.
_RANDOM = ("normal_", "uniform_", "kaiming_uniform_")


class _Unset(TorchFunctionMode):
    """Leave new parameters uninitialised, since those of a file will replace them.

    Random numbers for a whole network take seconds, and memory that is untouched costs nothing.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", None) in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build(subfolder: str, checkpoint: Path) -> Any:
    """Build a model from its configuration, on torch's current device, with random weights.

    Parameters
    ----------
    subfolder
        ``text_encoder``, ``unet``, ``vae``, ``vae_decoder_tiny`` (the decoder alone),
        ``safety_checker`` or that of a ControlNet.
    checkpoint
        A diffusers checkpoint.

    Raises
    ------
    ExportError
        The library cannot do it; names the configuration's file.
    """
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

    folder = checkpoint / subfolder

    def read(kind: Any, **options: Any) -> Any:
        return kind.from_pretrained(folder, dtype="float32", **options)

    def tiny_decoder() -> Any:
        model = AutoencoderTiny.from_config(AutoencoderTiny.load_config(folder))
        # Its file need not hold the other half.
        model.encoder = None
        return model

    def vae() -> Any:
        kind = AutoencoderTiny if vae_class(checkpoint) == TINY_VAE else AutoencoderKL
        return kind.from_config(kind.load_config(folder))

    made_by: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: CLIPTextModel(read(CLIPTextConfig, attn_implementation="sdpa")),
        "unet": lambda: UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder)),
        "vae": vae,
        "vae_decoder_tiny": tiny_decoder,
        "safety_checker": lambda: StableDiffusionSafetyChecker(read(CLIPConfig)),
    }
    if subfolder.startswith(CONTROLNET):
        made_by[subfolder] = lambda: ControlNetModel.from_config(
            ControlNetModel.load_config(folder)
        )
    with library_errors(f"{folder / 'config.json'}: no {subfolder} can be built from it"):
        return made_by[subfolder]()


def vae_class(checkpoint: Path) -> str:
    """Return diffusers' class of a checkpoint's VAE, by its own file.

    The index does not know of one that is given beside the checkpoint.
    """
    name = read_json(checkpoint / "vae" / "config.json").get("_class_name")
    return TINY_VAE if name == TINY_VAE else "AutoencoderKL"


def load(subfolder: str, checkpoint: Path, variant: str | None = None) -> Any:
    """Load a model in float32.

    Parameters
    ----------
    subfolder, variant
        As `choose` takes them.
    checkpoint
        A folder that `bksdm.export.source.resolve` accepted.

    Returns
    -------
    Module
        Of diffusers or transformers; in evaluation mode, without gradients.

    Raises
    ------
    ExportError
        It cannot be built, or the files do not hold exactly its weights.
    """
    with _Unset():
        model = build(subfolder, checkpoint)
    files = files_of(checkpoint, subfolder, variant)
    tensors = fit(model, read_tensors(checkpoint, files), checkpoint / files[0])
    model.load_state_dict(
        {name: _single(tensor) for name, tensor in tensors.items()}, strict=True, assign=True
    )
    unset = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if unset:
        raise ExportError(f"{checkpoint / subfolder}: loaded without {', '.join(unset[:3])}")
    return model.eval().requires_grad_(False)


def config_of(model: Any) -> dict[str, Any]:
    """Return a model's configuration, with the defaults that old checkpoints leave out."""
    if hasattr(model.config, "to_json_string"):
        text = model.config.to_json_string(use_diff=False)
    else:
        text = model.to_json_string()
    config: dict[str, Any] = json.loads(text)
    # Where it was loaded from, and how.
    for private in ("_name_or_path", "_attn_implementation"):
        config.pop(private, None)
    return config


def _single(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


def _tensors(model: nn.Module) -> Sequence[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
