"""The interface of an engine: a network is a callable on named arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import EngineError

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of one input or output; dynamic dimensions are names, ranks are fixed."""

    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


class Engine(Protocol):
    """A compiled network: named tensors in, named tensors out."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Every input by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Every output by name."""
        ...

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network; the feeds belong to the caller, who may overwrite them afterwards.

        Raises
        ------
        EngineError
            An input is missing, unknown, or of another dtype or rank than :attr:`inputs` says.
        """
        ...


def validate_feeds(
    network: str, inputs: Mapping[str, TensorSpec], feeds: Mapping[str, Array]
) -> None:
    """Refuse feeds that do not fit; a silent cast would hide a precision mistake.

    Raises
    ------
    EngineError
        Names the network, the input and what differs.
    """
    if set(feeds) != set(inputs):
        raise EngineError(f"{network}: expects inputs {sorted(inputs)}, got {sorted(feeds)}")
    for name, spec in inputs.items():
        array = feeds[name]
        if array.dtype != spec.dtype:
            raise EngineError(f"{network}: input {name} must be {spec.dtype}, not {array.dtype}")
        fixed = [
            (have, want)
            for have, want in zip(array.shape, spec.shape, strict=False)
            if isinstance(want, int)
        ]
        if array.ndim != len(spec.shape) or any(have != want for have, want in fixed):
            raise EngineError(
                f"{network}: input {name} must have shape {spec.shape}, not {array.shape}"
            )
