"""The engine that ``auto`` means for a bundle on this machine."""

from __future__ import annotations

import warnings

from bksdm.engines.backend import Backend
from bksdm.engines.errors import EngineError
from bksdm.engines.nvidia_driver import describe_driver, load_driver
from bksdm.engines.registry import AUTO, backends
from bksdm.runtime.bundle import Bundle
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.precision import FLOAT16


def engine_for(bundle: Bundle, name: str) -> str:
    """Return the engine to open a bundle with.

    ``auto`` is an engine that runs the loop on the GPU from the bundle's own graphs, if the bundle
    is float16 and the GPU and all that the engine needs are there; otherwise it stays ``auto``,
    which chooses among the engines on the CPU. Other names are returned as they are.

    Raises
    ------
    BundleError
        The UNet's graph is damaged.
    """
    if name != AUTO:
        return name
    if GraphFile.read(bundle.model("unet")).inputs["sample"].dtype != FLOAT16.name:
        return AUTO
    found = (engine for engine in backends().values() if engine.open_on_device is not None)
    return next((engine.name for engine in found if _is_usable(engine)), AUTO)


def _is_usable(engine: Backend) -> bool:
    """Return whether nothing speaks against an engine on the GPU, not even a warning."""
    driver = load_driver()
    if driver is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if engine.check is not None:
                engine.check()
        return bool(describe_driver(driver, None).gpus)
    except (EngineError, UserWarning):
        return False
