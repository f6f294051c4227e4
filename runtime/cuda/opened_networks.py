"""Networks that an engine opens on the GPU from a bundle's graphs; nothing has to be built."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from bksdm.engines.backend import OpenOnDevice
from bksdm.engines.device import DeviceNetwork
from bksdm.runtime.bundle import COMPONENTS, DECODERS, Bundle
from bksdm.runtime.cuda.compile import loader, stored_kernels
from bksdm.runtime.cuda.device import Device, Memory
from bksdm.runtime.cuda.networks import Loaded
from bksdm.runtime.cuda.picture_encoder import NAME as ENCODER
from bksdm.storage.places import written_in


class OpenedNetworks:
    """Networks opened in a stream; implements :class:`~bksdm.runtime.cuda.networks.Networks`.

    Parameters
    ----------
    bundle : Bundle
        Of float16.
    open_network : callable
        The engine's.
    device : Device
        The GPU.
    gpu : int
        Its number.
    engines : Path
        Folder in which rewritten graphs and compiled kernels are stored.
    """

    def __init__(
        self, bundle: Bundle, open_network: OpenOnDevice, device: Device, gpu: int, engines: Path
    ) -> None:
        self._bundle, self._device, self._engines = bundle, device, engines
        self._open = cache(
            lambda name: open_network(bundle.model(name), device.stream, gpu, engines)
        )
        self._loaded: Loaded | None = None

    def validate_size(self, images: int, height: int, width: int) -> None:
        """Accept every size."""

    def load(self, images: int, height: int, width: int) -> Loaded:
        """Return the networks, which take every size."""
        if self._loaded is None:
            decoders = (DECODERS[vae] for vae in self._bundle.decoders)
            networks = {name: self._open(name) for name in {*COMPONENTS, *decoders}}
            kernels = stored_kernels(
                self._device.target, written_in(self._engines, self._bundle.path)
            )
            scratch = self._device.allocate(
                max(1, *(network.scratch for network in networks.values()))
            )
            self._loaded = Loaded(networks, loader(self._device, kernels), scratch)
        return self._loaded

    def load_encoder(self, height: int, width: int) -> tuple[DeviceNetwork, Memory]:
        """Return the VAE encoder, and scratch for it."""
        network = self._open(ENCODER)
        return network, self._device.allocate(max(1, network.scratch))
