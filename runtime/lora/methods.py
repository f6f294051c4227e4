"""Load LoRAs into a model and choose among them, in our words and in diffusers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm.engines.errors import RequestError
from bksdm.runtime.executor import Executor
from bksdm.runtime.lora.factors import COMPONENTS, LoadedLora, adaptation_of
from bksdm.runtime.lora.loaded import Loras
from bksdm.runtime.lora.use import LoraUse, lora_uses
from bksdm.runtime.validation import number, several, shown


class LoraMethods:
    """What a model does with LoRAs. Threads may share it: a call keeps what it began with.

    Attributes
    ----------
    loras : Loras
        Those that are loaded.
    """

    loras: Loras

    @property
    def executor(self) -> Executor:
        """What runs the networks."""
        raise NotImplementedError

    def load_lora(self, path: str | Path, name: str | None = None, scale: float = 1.0) -> str:
        """Load a LoRA, beside those that are there, and return its name.

        From now on, calls that do not say which LoRAs they want have it. The first one of its kind
        also loads networks that take LoRAs, which takes seconds and memory; ``docs/lora.md`` has
        figures.

        Parameters
        ----------
        path : str or Path
            Safetensors in the naming of diffusers, peft or Kohya; or a folder that peft wrote.
        name : str, optional
            By which calls ask for it; by default the file's, without its extension.
        scale : float
            Strength; 1 is what it was trained for.

        Raises
        ------
        RequestError
            An argument is invalid, or the name is taken.
        LoraError
            The file cannot be read, is not plain LoRA, or is for another architecture.
        EngineError
            The engine cannot, or the networks cannot be loaded.
        """
        return self._add(self.loras.read(path, name, scale), only=False)

    def use_lora(self, lora: LoadedLora) -> None:
        """Load what :meth:`Loras.read` returned, for calls that ask for it by name."""
        self.executor.load_adapted(adaptation_of([(lora, 1.0)]))
        self.loras.add(lora)

    def unload_lora(self, *names: str) -> None:
        """Unload LoRAs, and networks that the others do not need; calls under way keep theirs.

        Raises
        ------
        RequestError
            One is not loaded.
        """
        self.loras.remove(*names)
        self.executor.keep_adapted({name: self.loras.scopes(name) for name in COMPONENTS})

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path,
        adapter_name: str | None = None,
        weight_name: str | None = None,
        subfolder: str | None = None,
    ) -> None:
        """Load a LoRA as diffusers does: it alone is active then, at a weight of 1.

        Parameters
        ----------
        pretrained_model_name_or_path_or_dict : str or Path
            A file, or a folder that holds one.
        adapter_name : str, optional
            By default ``default_0``, ``default_1`` …
        weight_name, subfolder : str, optional
            The file in the folder, and the folder in that.

        Raises
        ------
        RequestError, LoraError, EngineError
            As of :meth:`load_lora`.
        """
        given = pretrained_model_name_or_path_or_dict
        if not isinstance(given, (str, Path)):
            raise RequestError(f"load_lora_weights takes a file or folder, not {shown(given)}")
        path = Path(given, *filter(None, (subfolder, weight_name)))
        if adapter_name is None:
            number = 0
            while f"default_{number}" in self.loras.loaded:
                number += 1
            adapter_name = f"default_{number}"
        self._add(self.loras.read(path, adapter_name), only=True)

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Sequence[float] | None = None,
    ) -> None:
        """Say which LoRAs calls have that do not say it themselves, and how strong each is.

        Raises
        ------
        RequestError
            One is not loaded, or there are as many weights as none.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        found = several(adapter_weights)
        weights = [adapter_weights] * len(names) if found is None else found
        if len(weights) != len(names):
            raise RequestError(
                f"set_adapters needs a weight for each of {len(names)} names, not {len(weights)}"
            )
        scales = [1.0 if weight is None else weight for weight in weights]
        if any(isinstance(scale, Mapping) for scale in scales):
            raise RequestError("set_adapters takes one weight for all layers of a LoRA")
        self.loras.activate(lora_uses("set_adapters", list(zip(names, scales, strict=True))))

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload LoRAs: :meth:`unload_lora` by diffusers' name."""
        self.unload_lora(*([adapter_names] if isinstance(adapter_names, str) else adapter_names))

    def unload_lora_weights(self) -> None:
        """Unload all LoRAs."""
        self.unload_lora(*self.loras.loaded)

    def get_active_adapters(self) -> list[str]:
        """Return the names of LoRAs that calls have which do not say which."""
        return [use.name for use in self.loras.active]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of all LoRAs, by the network that they change."""
        found = {
            component: [n for n, lora in self.loras.loaded.items() if lora.factors[component]]
            for component in COMPONENTS
        }
        return {component: names for component, names in found.items() if names}

    def _add(self, lora: LoadedLora, only: bool) -> str:
        self.use_lora(lora)
        before = () if only else self.loras.active
        self.loras.activate([*before, LoraUse(lora.name)])
        return lora.name

    def _scaled(self, wanted: Any, kwargs: Mapping[str, Any] | None) -> Any:
        """Return the LoRAs of a call, at what diffusers' ``cross_attention_kwargs`` makes of them.

        Raises
        ------
        RequestError
            They say something else than ``scale``.
        """
        if not kwargs:
            return wanted
        if not isinstance(kwargs, Mapping) or set(kwargs) != {"scale"}:
            raise RequestError(
                "cross_attention_kwargs can only be {'scale': NUMBER}, which multiplies the scales "
                f"of LoRAs, not {shown(kwargs)}"
            )
        factor = number("cross_attention_kwargs scale", kwargs["scale"])
        _, uses = self.loras.adapt(None if wanted is None else lora_uses("loras", wanted))
        return [(use.name, factor * (use.scale or 0.0)) for use in uses]
