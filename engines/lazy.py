"""An engine that is loaded when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bksdm.engines.once import once
from bksdm.engines.protocol import Array, Engine, TensorSpec


class LazyEngine:
    """A network that may never be run; threads may share it.

    Parameters
    ----------
    load : callable
        Returns its engine.
    """

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._load = once(load)

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Every input by name."""
        return self._load().inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Every output by name."""
        return self._load().outputs

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network."""
        return self._load()(feeds)
