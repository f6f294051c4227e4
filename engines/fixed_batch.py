"""Networks that were exported for one number of rows, run for any number."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from bksdm.engines.protocol import Array, Engine, TensorSpec, check_feeds


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
        """Run the network as often as it takes; the last time the last row may come repeatedly."""
        check_feeds(self._name, self.inputs, feeds)
        batched = [name for name, spec in self.inputs.items() if spec.shape[:1] == ("batch",)]
        count = len(feeds[batched[0]])
        results = []
        for first in range(0, count, self._rows):
            taken = np.minimum(np.arange(first, first + self._rows), count - 1)
            part = {name: feeds[name][taken] if name in batched else feeds[name] for name in feeds}
            results.append(self._engine(part))
        return {
            name: np.concatenate([result[name] for result in results])[:count]
            for name in self.outputs
        }


def with_any_batch(engine: Engine, network: str) -> Engine:
    """Return an engine that takes any number of rows: the same one where it does already."""
    rows = {spec.shape[0] for spec in engine.inputs.values() if len(spec.shape) > 1}
    fixed = [size for size in rows if isinstance(size, int)]
    return FixedBatch(engine, fixed[0], network) if len(rows) == 1 and fixed else engine


def _with_any_batch(specs: Mapping[str, TensorSpec], rows: int) -> Mapping[str, TensorSpec]:
    return MappingProxyType({
        name: TensorSpec(spec.dtype, ("batch", *spec.shape[1:]))
        if spec.shape[:1] == (rows,)
        else spec
        for name, spec in specs.items()
    })  # fmt: skip
