"""Merge LoRAs into the weights of a torch network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bksdm.engines.errors import LoraError
from bksdm.runtime.lora.file import Lora
from bksdm.runtime.lora.layers import match, with_aliases


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
    LoraError
        Names the file and the first layer that does not fit.
    """
    shapes = {component: _shapes(_weights(model)) for component, model in models.items()}
    names = {component: with_aliases(component, found) for component, found in shapes.items()}
    for layer in lora.layers:
        match(lora, layer, names[layer.component], shapes[layer.component])


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
    LoraError
        A layer does not fit, or the sum is too large for float32.
    """
    weights = _weights(model)
    names, shapes = with_aliases(component, weights), _shapes(weights)
    with torch.no_grad():
        for layer in lora.of(component):
            weight = weights[match(lora, layer, names, shapes)]
            up, down = (torch.from_numpy(factor).flatten(1) for factor in (layer.up, layer.down))
            product = up @ down
            weight.add_(product.reshape(weight.shape), alpha=lora.scale * layer.scaling)
            if not weight.isfinite().all():
                raise LoraError(f"{lora.path}: {layer.name} is too large for float32")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of all linear layers and convolutions, by the layers' names."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
