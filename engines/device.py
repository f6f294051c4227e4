"""What an engine is to the loop on a GPU: a network between addresses, enqueued in a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bksdm.engines.errors import EngineError
from bksdm.engines.protocol import TensorSpec


@dataclass(frozen=True)
class Binding:
    """Where a tensor lies in device memory, and its shape."""

    address: int
    shape: tuple[int, ...]


def require_all(
    network: str, tensors: Mapping[str, TensorSpec], bindings: Mapping[str, Binding]
) -> None:
    """Refuse bindings that are not one for each tensor.

    Raises
    ------
    EngineError
        Names the network, its tensors and what was given.
    """
    if set(bindings) != set(tensors):
        raise EngineError(f"{network}: expects tensors {sorted(tensors)}, got {sorted(bindings)}")


class BoundNetwork(Protocol):
    """A network with fixed shapes and addresses."""

    def enqueue(self, stream: int) -> None:
        """Enqueue one run, without waiting.

        Raises
        ------
        EngineError
            The engine refused.
        """
        ...

    def can_record(self, stream: int) -> bool:
        """Whether a CUDA graph can hold it, as far as the engine knows beforehand."""
        ...


class DeviceNetwork(Protocol):
    """A network on a GPU.

    Attributes
    ----------
    recordable : bool
        Whether CUDA graphs may hold it, until one was found that cannot.
    """

    recordable: bool

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Inputs and outputs by name; dynamic axes are ``"?"``."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Which of these are inputs."""
        ...

    @property
    def scratch(self) -> int:
        """Bytes of device memory that it needs while it runs, and in which it keeps nothing."""
        ...

    def least_rows(self, name: str) -> int:
        """Return the fewest rows of an input that it takes."""
        ...

    def bind(self, bindings: Mapping[str, Binding], scratch: int) -> BoundNetwork:
        """Return it ready to run between these addresses.

        Parameters
        ----------
        bindings : mapping
            One for every tensor.
        scratch : int
            Address of :attr:`scratch` bytes, which networks in one stream may share.

        Raises
        ------
        EngineError
            A tensor is missing, or the engine takes no such shape or address.
        """
        ...

    def keep_kernels(self) -> None:
        """Store what was compiled since it was loaded."""
        ...
