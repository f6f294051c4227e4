"""Random inputs for a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bksdm.engines.profile import PROMPT_TOKENS
from bksdm.engines.protocol import Array, TensorSpec


def network_feeds(inputs: Mapping[str, TensorSpec], sizes: tuple[int, int]) -> dict[str, Array]:
    """Return random numbers for every input; the UNet's and the text encoder's batch is 2.

    Parameters
    ----------
    inputs : mapping
        An engine's inputs.
    sizes : (int, int)
        Height and width of inputs with four dimensions.
    """
    generator = np.random.default_rng(0)
    batch = 2 if {"timestep", "input_ids"} & set(inputs) else 1
    feeds: dict[str, Array] = {}
    for name, spec in inputs.items():
        # Of four dimensions the last two are the picture's; of fewer, what is free is a text's.
        free = iter(sizes if len(spec.shape) == 4 else (PROMPT_TOKENS,))
        inner = (size if isinstance(size, int) else next(free) for size in spec.shape[1:])
        shape = (batch, *inner)
        if name == "timestep":
            feeds[name] = np.full(batch, 500, spec.dtype)
        elif name == "attention_mask":
            feeds[name] = np.ones(shape, spec.dtype)
        elif np.issubdtype(spec.dtype, np.integer):
            # Ids of a text: every vocabulary has the first ones.
            feeds[name] = generator.integers(0, 100, shape).astype(spec.dtype)
        else:
            feeds[name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds
