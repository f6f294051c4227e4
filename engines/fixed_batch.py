"""Networks that were exported for one number of rows, run for any number."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np

from bksdm.engines.protocol import Array, Engine, TensorSpec, validate_feeds


class FixedBatch:
    """An engine that takes any number of rows and runs another with as many as that one takes.

    Parameters
    ----------
    engine : Engine
        Its tensors begin with a fixed number of rows.
    rows : int
        That number.
    network : str
        What errors call it.
    """

    def __init__(self, engine: Engine, rows: int, network: str) -> None:
        self._engine, self._rows, self._name = engine, rows, network
        self.inputs = _with_any_batch(engine.inputs, rows)
        self.outputs = _with_any_batch(engine.outputs, rows)

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network as often as it takes."""
        validate_feeds(self._name, self.inputs, feeds)
        batched = [name for name, spec in self.inputs.items() if spec.shape[:1] == ("batch",)]
        return run_in_parts(self._engine, feeds, batched, self._rows)


def run_in_parts(
    engine: Engine, feeds: Mapping[str, Array], batched: Collection[str], rows: int
) -> dict[str, Array]:
    """Run an engine for so many rows of the batched feeds at a time, and join the results.

    The last time the last row comes repeatedly, where there are fewer left.
    """
    count = max(len(feeds[name]) for name in batched)
    results = []
    for first in range(0, count, rows):
        taken = np.minimum(np.arange(first, first + rows), count - 1)
        part = {name: feed[taken] if name in batched else feed for name, feed in feeds.items()}
        results.append(engine(part))
    return {name: np.concatenate([r[name] for r in results])[:count] for name in results[0]}


def with_any_batch(engine: Engine, network: str) -> Engine:
    """Return an engine that takes any number of rows: the same one where it does already."""
    rows = {spec.shape[0] for spec in engine.inputs.values() if len(spec.shape) > 1}
    fixed = [size for size in rows if isinstance(size, int)]
    return FixedBatch(engine, fixed[0], network) if len(rows) == 1 and fixed else engine


def _with_any_batch(specs: Mapping[str, TensorSpec], rows: int) -> Mapping[str, TensorSpec]:
    return MappingProxyType(
        {
            name: TensorSpec(spec.dtype, ("batch", *spec.shape[1:]))
            if spec.shape[:1] == (rows,)
            else spec
            for name, spec in specs.items()
        }
    )
