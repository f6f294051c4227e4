"""The LoRAs of a model by name, and which of them calls use that name none."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import EngineError, RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.lora.factors import COMPONENTS, PLAIN, Adaptation, LoadedLora, adaptation_of
from bksdm.runtime.lora.file import read_lora
from bksdm.runtime.lora.layers import Shape, layers_of
from bksdm.runtime.lora.use import LoraUse, lora_name, spellable
from bksdm.runtime.recent import Recent
from bksdm.runtime.validation import number, shown

# Different sets of LoRAs whose factors are kept as networks take them.
_KEPT = 16


class Loras:
    """LoRAs that are loaded for a bundle. Threads may share it.

    A request takes what is loaded when it is made, and keeps that.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    engine : Capabilities
        What the engine can do.
    """

    def __init__(self, bundle: Bundle, engine: Capabilities) -> None:
        self._bundle, self._engine = bundle, engine
        # Replaced as a whole, so that who reads needs no lock.
        self._loaded: Mapping[str, LoadedLora] = {}
        self._active: tuple[LoraUse, ...] = ()
        self._lock = threading.Lock()
        self._recent: Recent[object, Adaptation] = Recent(_KEPT)

    @classmethod
    def of(
        cls, bundle: Bundle, engine: Capabilities, files: Mapping[str, tuple[Path, float]]
    ) -> Loras:
        """Return those of files, which are given with their scales by name.

        Raises
        ------
        RequestError, EngineError, LoraError
            As of :meth:`read`.
        """
        loras = cls(bundle, engine)
        for name, (path, scale) in files.items():
            loras.add(loras.read(path, name, scale))
        return loras

    @property
    def loaded(self) -> Mapping[str, LoadedLora]:
        """Those that are loaded, by name."""
        return self._loaded

    @property
    def active(self) -> tuple[LoraUse, ...]:
        """Those that a request has which names none."""
        return self._active

    def read(self, path: str | Path, name: str | None = None, scale: float = 1.0) -> LoadedLora:
        """Return the LoRA of a file, which is not loaded yet.

        Parameters
        ----------
        path : str or Path
            Safetensors, or a folder that peft wrote.
        name : str, optional
            By default the file's, without its extension.
        scale : float
            Strength where a request states none.

        Raises
        ------
        RequestError
            The scale is no finite number, or the name has other characters than a name may.
        EngineError
            The engine runs networks as they were built.
        LoraError
            The file cannot be read, or is for another architecture.
        """
        if not self._engine.loras:
            raise EngineError(
                f"LoRAs are for the engines onnxruntime and openvino, not {self._engine.name}; "
                "merge it when exporting: `bksdm export --lora FILE:SCALE`"
            )
        strength = number("scale", scale)
        path = Path(path)
        chosen = self._free(spellable(path.stem)) if name is None else lora_name("name", name)
        return LoadedLora.of(chosen, read_lora(path, strength), self._layers)

    def add(self, lora: LoadedLora) -> None:
        """Load a LoRA; requests that name none do not have it yet.

        Raises
        ------
        RequestError
            The name is taken.
        """
        with self._lock:
            if lora.name in self._loaded:
                raise RequestError(
                    f"a LoRA is already loaded as {shown(lora.name)}; unload it, or give another "
                    "name"
                )
            self._loaded = {**self._loaded, lora.name: lora}

    def remove(self, *names: str) -> None:
        """Unload LoRAs; requests that are under way keep them.

        Raises
        ------
        RequestError
            One is not loaded.
        """
        with self._lock:
            for name in names:
                self._named(name)
            self._loaded = {k: found for k, found in self._loaded.items() if k not in names}
            self._active = tuple(use for use in self._active if use.name not in names)
            self._recent = Recent(_KEPT)

    def activate(self, uses: Sequence[LoraUse]) -> None:
        """Say which LoRAs a request has that names none.

        Raises
        ------
        RequestError
            One is not loaded.
        """
        with self._lock:
            self._active = tuple(self._stated(use) for use in uses)

    def adapt(self, wanted: Sequence[LoraUse] | None) -> tuple[Adaptation, tuple[LoraUse, ...]]:
        """Return what a request's LoRAs change, and which they are, with scale and digest.

        Parameters
        ----------
        wanted : sequence of LoraUse or None
            What the request says; None takes those that are active.

        Raises
        ------
        RequestError
            One is not loaded, or of another digest than is stated.
        """
        with self._lock:
            uses = tuple(map(self._stated, self._active if wanted is None else wanted))
            loaded, recent = self._loaded, self._recent
        if not uses:
            return PLAIN, ()
        key = tuple((use.name, use.sha256, use.scale) for use in uses)
        found = recent.get(key)
        if found is None:
            scales = [use.scale for use in uses if use.scale is not None]
            parts = zip((loaded[use.name] for use in uses), scales, strict=True)
            found = adaptation_of(list(parts))
            recent.keep(key, found)
        return found, uses

    def scopes(self, component: str) -> set[str]:
        """Return the scopes of networks that the loaded LoRAs take, each by itself."""
        alone = (adaptation_of([(found, 1.0)]) for found in self._loaded.values())
        factors = (getattr(adaptation, component) for adaptation in alone)
        return {found.scope for found in factors if found is not None}

    def _stated(self, use: LoraUse) -> LoraUse:
        found = self._named(use.name).lora
        if use.sha256 and use.sha256 != found.sha256:
            raise RequestError(
                f"loras: {shown(use.name)} is loaded from {found.path}, another file than that of "
                f"SHA-256 {use.sha256[:12]}…"
            )
        return LoraUse(use.name, found.scale if use.scale is None else use.scale, found.sha256)

    def _named(self, name: str) -> LoadedLora:
        if name not in self._loaded:
            there = ", ".join(self._loaded) or "none is"
            raise RequestError(f"loras: no LoRA is loaded as {shown(name)}; loaded: {there}")
        return self._loaded[name]

    def _free(self, name: str) -> str:
        """Return a name that is not taken: with -2, -3 … at its end."""
        taken, number = self._loaded, 1
        while (found := name if number == 1 else f"{name}-{number}") in taken:
            number += 1
        return found

    @cached_property
    def _layers(self) -> dict[str, dict[str, Shape]]:
        return {component: layers_of(self._bundle.model(component)) for component in COMPONENTS}
