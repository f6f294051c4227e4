"""The factors of LoRAs as inputs of a network, in its variants that take them.

A LoRA adds ``up @ down`` to the weight of a layer. A network that takes the factors as inputs
computes y + (x · down) · up beside each layer, so that its own weights, and whatever an engine has
made of them, stay as they are, and another LoRA is another array.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ATTENTION, TRANSFORMER, ALL = "lora-attention", "lora-transformer", "lora-all"
SCOPES = (ATTENTION, TRANSFORMER, ALL)
"""Sets of layers, each part of the next, that a network takes factors for; also what a variant's
name ends with. LoRAs are trained on one of these, so that few networks serve all of them."""
_JOINT = "+"
_ATTENTION = re.compile(r".*(\.attn\d\.(to_[qkv]|to_out\.0)|\.self_attn\.([qkv]|out)_proj)")
_TRANSFORMER = re.compile(r"(.*\.)?(attentions|encoder\.layers)\..*")
# As `bksdm export` names weights: turned for a product, and what was made of one after a colon.
_WEIGHT = re.compile(r"(?P<layer>.+)\.weight(\.T)?(:.*)?")


def covers(scope: str, layer: str) -> bool:
    """Return whether a scope has the layer of that name."""
    if scope == ALL:
        return True
    return bool((_ATTENTION if scope == ATTENTION else _TRANSFORMER).fullmatch(layer))


def scope_of(layers: Iterable[str]) -> str:
    """Return the smallest scope that has all layers."""
    names = list(layers)
    return next(scope for scope in SCOPES if all(covers(scope, name) for name in names))


def with_factors(variant: str, scope: str) -> str:
    """Return the name of a variant that takes factors; an empty scope changes nothing."""
    return _JOINT.join(filter(None, (variant, scope)))


def without_factors(variant: str) -> tuple[str, str]:
    """Return the variant that another takes factors in addition to, and the scope, or nothing."""
    rest, _, scope = variant.rpartition(_JOINT)
    return (rest, scope) if scope in SCOPES else (variant, "")


def factor_names(layer: str) -> tuple[str, str]:
    """Return the names of a layer's inputs.

    Of a linear layer these are [in, rank] and [rank, out]; of a convolution of k by k
    [k * k, rank, in] and [out, rank].
    """
    return f"{layer}.lora_down", f"{layer}.lora_up"


def is_factor(name: str) -> bool:
    """Return whether an input is one of :func:`factor_names`."""
    return name.endswith((".lora_down", ".lora_up"))


def layer_of(weight: str) -> str | None:
    """Return the layer whose weight a tensor is, or was made of; None if it is no weight."""
    found = _WEIGHT.fullmatch(weight)
    return None if found is None else found["layer"]
