"""The LoRAs that ``--lora`` names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bksdm.runtime.lora.file import split_scale
from bksdm.runtime.lora.use import spellable

if TYPE_CHECKING:
    from bksdm.engines.backend import Capabilities
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.lora.loaded import Loras


def lora_files(options: argparse.Namespace) -> dict[str, tuple[Path, float]]:
    """Return file and scale of each, by the file's name without its extension.

    A second one of a name is called ``name-2``.

    Raises
    ------
    LoraError
        A scale is no finite number.
    """
    found: dict[str, tuple[Path, float]] = {}
    for text in options.loras or ():
        path, scale = split_scale(text)
        name = stem = spellable(path.stem)
        count = 1
        while name in found:
            count += 1
            name = f"{stem}-{count}"
        found[name] = path, scale
    return found


def read_loras(options: argparse.Namespace, bundle: Bundle, engine: Capabilities) -> Loras:
    """Return all of them, read and checked against a bundle; no network is loaded.

    Raises
    ------
    LoraError, EngineError
        One cannot be used.
    """
    from bksdm.runtime.lora.loaded import Loras

    return Loras.of(bundle, engine, lora_files(options))
