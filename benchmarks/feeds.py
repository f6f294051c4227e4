"""Inputs that a network takes, made up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.engines.protocol import Array, TensorSpec


def network_feeds(inputs: Mapping[str, TensorSpec], sizes: tuple[int, int]) -> dict[str, Array]:
    """Return random numbers for every input; the UNet's and the text encoder's batch is 2.

    Parameters
    ----------
    inputs : mapping
        An engine's inputs.
    sizes : (int, int)
        Height and width of what has four dimensions.
    """
    generator = np.random.default_rng(0)
    batch = 2 if {"timestep", "input_ids"} & set(inputs) else 1
    feeds: dict[str, Array] = {}
    for name, spec in inputs.items():
        fixed = tuple(size for size in spec.shape[1:] if isinstance(size, int))
        shape = (batch, *fixed, *sizes) if len(spec.shape) == 4 else (batch, *fixed)
        if name == "timestep":
            feeds[name] = np.full(batch, 500, spec.dtype)
        elif np.issubdtype(spec.dtype, np.integer):
            # Ids of a text: every vocabulary has the first ones; 77 where the length is free.
            shape = shape if len(shape) > 1 else (batch, 77)
            feeds[name] = generator.integers(0, 100, shape).astype(spec.dtype)
        else:
            feeds[name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds
