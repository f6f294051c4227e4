"""Merge LoRAs into the weights of a torch network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bksdm.engines.errors import ExportError
from bksdm.export.lora import Lora, LoraLayer

_OTHER = "a LoRA made for another architecture"


def check(lora: Lora, models: Mapping[str, nn.Module]) -> None:
    """Check that every layer of a LoRA exists in the networks and has their shapes.

    Parameters
    ----------
    lora : Lora
        What :func:`bksdm.export.lora.read_lora` returned.
    models : mapping
        ``unet`` and ``text_encoder`` as diffusers and transformers build them; without weights
        (on torch's device ``meta``) will do.

    Raises
    ------
    ExportError
        Names the file and the first layer that does not fit.
    """
    targets = {component: _targets(component, model) for component, model in models.items()}
    for layer in lora.layers:
        _target(lora, layer, targets[layer.component])


def merge(lora: Lora, component: str, model: nn.Module) -> None:
    """Add a LoRA to the weights of a network, in place.

    ``W <- W + scale * (alpha / r) * up @ down`` in float32 (Hu et al. 2021, arXiv 2106.09685); the
    factors of a convolution are flattened to [r, in * k * k] and [out, r], as a convolution of k by
    k to r channels before one of 1 by 1 is one of k by k.

    Parameters
    ----------
    lora : Lora
        Accepted by :func:`check`.
    component : str
        ``unet`` or ``text_encoder``; a LoRA has no layers for any other.
    model : Module
        In float32.

    Raises
    ------
    ExportError
        A layer does not fit, or the sum is too large for float32.
    """
    targets = _targets(component, model)
    with torch.no_grad():
        for layer in lora.of(component):
            weight = _target(lora, layer, targets)
            product = layer.up.float().flatten(1) @ layer.down.float().flatten(1)
            weight.add_(product.reshape(weight.shape), alpha=lora.scale * layer.scaling)
            if not weight.isfinite().all():
                raise ExportError(f"{lora.path}: {layer.name} is too large for float32")


def _targets(component: str, model: nn.Module) -> dict[str, Tensor]:
    """Return the weights by every name that a file may use for them."""
    # transformers 5 has dropped a level that files of before still have.
    level = "text_model." if component == "text_encoder" else ""
    targets = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bare = name.removeprefix(level)
            for known in (bare, level + bare):
                targets[known] = targets[known.replace(".", "_")] = module.weight
    return targets


def _target(lora: Lora, layer: LoraLayer, targets: Mapping[str, Tensor]) -> Tensor:
    weight = targets.get(layer.module)
    if weight is None:
        raise ExportError(
            f"{lora.path}: {layer.name}: the {layer.component} has no such layer; {_OTHER}"
        )
    if _without_ones(layer.shape) != _without_ones(tuple(weight.shape)):
        raise ExportError(
            f"{lora.path}: {layer.name} is for {list(layer.shape)}, "
            f"the {layer.component} has {list(weight.shape)}; {_OTHER}"
        )
    return weight


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a linear layer for a convolution of 1 by 1, which computes the same."""
    return shape[:2] if shape[2:] == (1, 1) else shape
