"""Models by name, loaded when they are asked for, and let go of where memory is short."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import LoraError, RequestError
from bksdm.engines.registry import capabilities
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.lora.loaded import Loras
from bksdm.runtime.memory import needed_bytes, total_bytes
from bksdm.serve.errors import NotFound, Unavailable
from bksdm.serve.observer import Observer
from bksdm.serve.scheduler import STOPPING, Scheduler
from bksdm.serve.settings import Settings
from bksdm.serve.starting import start_scheduler

PART_OF_MEMORY = 0.8
ASSUMED_BATCH = 4
"""Pictures at a time that memory is reckoned with before a model is measured."""


def named(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the folders by their last names, which clients ask for them by.

    Raises
    ------
    RequestError
        Two have the same.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = path.resolve().name
        if name in found:
            raise RequestError(f"two bundles are called {name}; rename one of the folders")
        found[name] = path
    return found


class Served:
    """A model that is loaded.

    Attributes
    ----------
    bundle : Bundle
        Its files.
    digest : str
        Of its files.
    scheduler : Scheduler
        Draws with it.
    needed : int
        Bytes of memory that it is reckoned to take.
    used : float
        ``time.monotonic()`` when it was last asked for.
    """

    def __init__(self, bundle: Bundle, digest: str, scheduler: Scheduler, needed: int) -> None:
        self.bundle, self.digest = bundle, digest
        self.scheduler, self.needed = scheduler, needed
        self.used = time.monotonic()


class Models:
    """The models of a server. For one event loop; the loading happens in other threads.

    Parameters
    ----------
    bundles : mapping
        Folders by the names that clients ask for; the first is the default.
    settings : Settings
        How they run.
    observe : callable
        Returns what watches over the scheduler of a name.

    Attributes
    ----------
    loras : mapping
        By model, the LoRAs that fit it.
    """

    def __init__(
        self,
        bundles: Mapping[str, Path],
        settings: Settings,
        observe: Callable[[str], Observer] = lambda name: Observer(),
    ) -> None:
        self.bundles = {name: Bundle.open(path) for name, path in bundles.items()}
        self._settings, self._observe = settings, observe
        self.loras = {name: Loras(b, self._able(b)) for name, b in self.bundles.items()}
        for name, (path, scale) in settings.loras.items():
            self._read_lora(name, path, scale)
        self._loaded: dict[str, Served] = {}
        self._lock = asyncio.Lock()
        self._stopping = threading.Event()
        total = total_bytes()
        budget = settings.memory_bytes
        if budget is None and total is not None:
            budget = int(PART_OF_MEMORY * total)
        self._budget = budget

    def _able(self, bundle: Bundle) -> Capabilities:
        return capabilities(engine_for(bundle, self._settings.engine))

    def _read_lora(self, name: str, path: Path, scale: float) -> None:
        """Read a LoRA for the models that it fits.

        Raises
        ------
        RequestError, EngineError, LoraError
            It fits none, or cannot be read.
        """
        refused: list[LoraError] = []
        for loras in self.loras.values():
            try:
                loras.add(loras.read(path, name, scale))
            except LoraError as error:
                refused.append(error)
        if len(refused) == len(self.loras):
            raise refused[0]

    @property
    def default(self) -> str:
        """The name that is meant where none is given."""
        return next(iter(self.bundles))

    @property
    def loaded(self) -> Mapping[str, Served]:
        """Those that are loaded, by name."""
        return self._loaded

    @property
    def failure(self) -> str | None:
        """Why a model cannot be used any more; None while all can."""
        failures = (served.scheduler.failure for served in self._loaded.values())
        return next(filter(None, failures), None)

    @property
    def alive(self) -> bool:
        """Whether all engine threads are."""
        return all(served.scheduler.alive for served in self._loaded.values())

    async def get(self, name: str | None = None) -> Served:
        """Return a model, loaded first if need be.

        Raises
        ------
        NotFound
            There is none of that name; lists those that there are.
        Unavailable
            There is no memory for it while others draw, or the server is stopping.
        BundleError, EngineError
            It cannot be loaded.
        """
        name = self.default if name is None else name
        if name not in self.bundles:
            raise NotFound(f"model {name!r:.60} is not served; there is {', '.join(self.bundles)}")
        if name not in self._loaded:
            async with self._lock:
                if name not in self._loaded:
                    self._loaded[name] = await self._load(name)
        served = self._loaded[name]
        served.used = time.monotonic()
        return served

    async def _load(self, name: str) -> Served:
        if self._stopping.is_set():
            raise Unavailable(STOPPING)
        bundle = self.bundles[name]
        height, width = (side // bundle.vae_scale for side in bundle.default_size)
        batch = self._settings.wanted.batch or ASSUMED_BATCH
        shape = (batch, bundle.latent_channels, height, width)
        needed = needed_bytes(bundle, shape, guided=True, controlnets=bundle.controlnets)
        await self._make_room(name, needed)
        scheduler = await asyncio.to_thread(
            start_scheduler, bundle, self._settings, self._observe(name), self.loras[name]
        )
        digest = await asyncio.to_thread(bundle.digest)
        return Served(bundle, digest, scheduler, needed)

    async def _make_room(self, name: str, needed: int) -> None:
        """Let go of models that nobody uses, the one that was asked for longest ago first."""
        if self._budget is None:
            return
        if needed > self._budget:
            raise Unavailable(
                f"model {name} takes about {needed / 1e9:.1f} GB, more than the "
                f"{self._budget / 1e9:.1f} GB that models may take (--memory)"
            )
        while sum(served.needed for served in self._loaded.values()) + needed > self._budget:
            idle = {n: s for n, s in self._loaded.items() if s.scheduler.idle}
            if not idle:
                waits = [s.scheduler.waiting_seconds for s in self._loaded.values()]
                raise Unavailable(
                    f"no memory for model {name} while others draw; send it again", min(waits) + 1
                )
            oldest = min(idle, key=lambda other: idle[other].used)
            gone = self._loaded.pop(oldest)
            await asyncio.to_thread(gone.scheduler.close)

    async def stop(self, seconds: float) -> bool:
        """Take no more requests, and return whether those that were there ended in time."""
        self._stopping.set()
        drained = await asyncio.gather(
            *(
                asyncio.to_thread(served.scheduler.drain, seconds)
                for served in self._loaded.values()
            )
        )
        return all(drained)

    async def close(self) -> None:
        """End all engine threads."""
        for served in self._loaded.values():
            await asyncio.to_thread(served.scheduler.close)
