"""The factors of a request's LoRAs, as a network takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.lora_inputs import factor_names, is_factor, scope_of
from bksdm.engines.protocol import Array, TensorSpec
from bksdm.runtime.lora.file import Lora, LoraLayer
from bksdm.runtime.lora.layers import Shape, match, with_aliases

COMPONENTS = ("unet", "text_encoder")
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
Key = tuple[tuple[str, float], ...]
"""Digests and scales; equal factors have equal ones."""


@dataclass(frozen=True, eq=False)
class LoadedLora:
    """A LoRA that fits a bundle.

    Attributes
    ----------
    name : str
        By which it was loaded.
    lora : Lora
        Its file; ``lora.scale`` holds where a request states none.
    factors : mapping
        By component and layer, as inputs of the network, ``alpha / r`` in the second one.
    """

    name: str
    lora: Lora
    factors: Mapping[str, Mapping[str, Pair]]

    @classmethod
    def of(cls, name: str, lora: Lora, layers: Mapping[str, Mapping[str, Shape]]) -> LoadedLora:
        """Return a file's factors for the networks of a bundle.

        Parameters
        ----------
        name : str
            By which it is loaded.
        lora : Lora
            The file.
        layers : mapping
            By component, of :func:`~bksdm.runtime.lora.layers.layers_of`.

        Raises
        ------
        LoraError
            It is for another architecture; names the first layer that does not fit.
        """
        factors: dict[str, dict[str, Pair]] = {component: {} for component in COMPONENTS}
        names = {component: with_aliases(component, found) for component, found in layers.items()}
        for layer in lora.layers:
            shapes = layers[layer.component]
            target = match(lora, layer, names[layer.component], shapes)
            factors[layer.component][target] = _as_inputs(layer, len(shapes[target]) == 4)
        return cls(name, lora, factors)


class Factors:
    """What one network takes of a request's LoRAs; threads may share it.

    Parameters
    ----------
    parts : sequence
        Factors by layer, each with its digest and scale.

    Attributes
    ----------
    key : tuple
        Equal for equal factors.
    scope : str
        Of :mod:`bksdm.engines.lora_inputs`: the smallest that has all layers.
    """

    def __init__(self, parts: Sequence[tuple[Mapping[str, Pair], str, float]]) -> None:
        self.key: Key = tuple((sha256, scale) for _, sha256, scale in parts)
        self._pairs: dict[str, list[tuple[Pair, float]]] = {}
        for factors, _, scale in parts:
            for layer, pair in factors.items():
                self._pairs.setdefault(layer, []).append((pair, scale))
        self.scope = scope_of(self._pairs)
        self._arrays: dict[str, Array] = {}
        self._layers = {name: layer for layer in self._pairs for name in factor_names(layer)}

    def feeds(self, inputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
        """Return the arrays of a network's inputs; made once.

        Parameters
        ----------
        inputs : mapping
            Of the network, or of a part of it; always in the same types.
        """
        return {name: self._array(name, spec) for name, spec in inputs.items() if is_factor(name)}

    def _array(self, name: str, spec: TensorSpec) -> Array:
        if name not in self._arrays:
            layer = self._layers.get(name)
            if layer is None:
                # A layer of the scope that no LoRA changes: one rank of zeros.
                shape = [1 if isinstance(size, str) else size for size in spec.shape]
                self._arrays[name] = np.zeros(shape, spec.dtype)
            else:
                # The axis whose size is not fixed: ranks stand one after the other.
                axis = next(i for i, size in enumerate(spec.shape) if isinstance(size, str))
                which = factor_names(layer).index(name)
                found = [
                    (pair[which], scale if which else 1.0) for pair, scale in self._pairs[layer]
                ]
                joined = [factor * np.float32(scale) for factor, scale in found]
                array = joined[0] if len(joined) == 1 else np.concatenate(joined, axis)
                self._arrays[name] = np.ascontiguousarray(array, spec.dtype)
        return self._arrays[name]


class Adaptation(NamedTuple):
    """What the LoRAs of a request change.

    Attributes
    ----------
    unet, text_encoder : Factors or None
        None where they change nothing of it.
    """

    unet: Factors | None = None
    text_encoder: Factors | None = None


PLAIN = Adaptation()
"""Without LoRAs."""


def adaptation_of(parts: Sequence[tuple[LoadedLora, float]]) -> Adaptation:
    """Return what LoRAs change at their scales."""
    by_component = {
        component: [
            (loaded.factors[component], loaded.lora.sha256, scale)
            for loaded, scale in parts
            if loaded.factors[component]
        ]
        for component in COMPONENTS
    }
    return Adaptation(
        **{component: Factors(found) for component, found in by_component.items() if found}
    )


def _as_inputs(layer: LoraLayer, convolution: bool) -> Pair:
    rank, into = layer.down.shape[:2]
    down = layer.down.reshape(rank, into, -1)
    up = layer.up.reshape(-1, rank) * np.float32(layer.scaling)
    if convolution:
        return np.ascontiguousarray(down.transpose(2, 0, 1)), up
    return np.ascontiguousarray(down[..., 0].T), np.ascontiguousarray(up.T)
