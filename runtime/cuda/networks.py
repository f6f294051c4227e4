"""Where the loop on a GPU has its networks from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from bksdm.engines.device import DeviceNetwork
from bksdm.runtime.cuda.device import Kernel, Memory


class Loaded(NamedTuple):
    """The networks of a bundle on a GPU.

    Attributes
    ----------
    networks : mapping
        ``text_encoder``, ``unet``, ``vae_decoder``, and ``vae_decoder_tiny`` if there is one.
    kernel : callable
        From a kernel's name to the kernel.
    scratch : Memory
        Enough for each of them.
    """

    networks: Mapping[str, DeviceNetwork]
    kernel: Callable[[str], Kernel]
    scratch: Memory


class Networks(Protocol):
    """A source of networks."""

    def validate_size(self, images: int, height: int, width: int) -> None:
        """Raise a :class:`~bksdm.engines.errors.RequestError` for a size, in pixels, of none."""
        ...

    def load(self, images: int, height: int, width: int) -> Loaded:
        """Return the networks that take a size, in pixels; those of equal ones are loaded once.

        Raises
        ------
        EngineError
            They are stale or damaged, or the engine cannot load them.
        """
        ...

    def load_encoder(self, height: int, width: int) -> tuple[DeviceNetwork, Memory]:
        """Return the VAE encoder for pictures of a size, and scratch for it; raises as above."""
        ...
