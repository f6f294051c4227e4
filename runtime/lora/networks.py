"""Networks that take the factors of LoRAs, loaded when one is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from bksdm.engines.protocol import Engine


class AdaptedNetworks:
    """The variants of one network that take factors. Threads may share it.

    Parameters
    ----------
    load : callable
        Loads the network: ``load(variant, scope)``, with a variant of
        :mod:`bksdm.engines.variants` and a scope of :mod:`bksdm.engines.lora_inputs`.
    """

    def __init__(self, load: Callable[[str, str], Engine]) -> None:
        self._load = load
        self._loaded: dict[tuple[str, str], Engine] = {}
        self._lock = threading.Lock()

    def __call__(self, variant: str, scope: str) -> Engine:
        """Return a variant that takes the factors of a scope."""
        with self._lock:
            key = variant, scope
            if key not in self._loaded:
                self._loaded[key] = self._load(variant, scope)
            return self._loaded[key]

    def keep(self, scopes: Collection[str]) -> None:
        """Let go of the networks of other scopes; who runs one keeps it until then."""
        with self._lock:
            self._loaded = {k: engine for k, engine in self._loaded.items() if k[1] in scopes}
