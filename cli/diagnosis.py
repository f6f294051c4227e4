"""Find out what is installed on this machine, and which engines can be used on it."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bksdm.cli.text import one_line
from bksdm.engines.errors import EngineError
from bksdm.engines.nvidia_driver import (
    NO_DRIVER,
    describe_driver,
    load_driver,
    load_management,
)
from bksdm.engines.packages import installed_version

if TYPE_CHECKING:
    from bksdm.engines.backend import Backend

PROBLEM = "problem"
"""Key of what is told in place of something that could not be found out."""
# Beside those that bring engines: what the loop on a GPU, preparing and exporting take.
OTHERS = (
    *("numpy", "onnx", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc"),
    *("torch", "diffusers", "transformers"),
)


def diagnose() -> dict[str, Any]:
    """Return what is installed; what fails is told where its result would stand.

    Only the packages of engines are imported.
    """
    driver = _asked(_driver)
    return {
        "bksdm": installed_version("bksdm-runtime"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _asked(_processor),
        "memory": _asked(_memory),
        "packages": _asked(_packages),
        "driver": driver,
        "engines": _asked(lambda: _engines(driver)),
        "cache": _asked(_cache),
    }


def can_draw(found: Mapping[str, Any]) -> bool:
    """Return whether what :func:`diagnose` has found has an engine that can be used."""
    engines = found["engines"]
    return PROBLEM not in engines and any(PROBLEM not in engine for engine in engines.values())


def _asked(probe: Callable[[], Any]) -> Any:
    """Return a probe's result, or why there is none: a broken installation is what it looks for."""
    try:
        return probe()
    except EngineError as error:
        return {PROBLEM: str(error)}
    except Exception as error:
        return {PROBLEM: one_line(f"{type(error).__name__}: {error}")}


def _processor() -> dict[str, Any]:
    from bksdm.storage.processor import known_extensions, processor_name

    return {"name": processor_name(), "extensions": known_extensions()}


def _memory() -> dict[str, int | None]:
    from bksdm.runtime.memory import free_bytes, total_bytes

    return {"total": total_bytes(), "free": free_bytes()}


def _packages() -> dict[str, str | None]:
    from bksdm.engines.registry import backends

    engines = [name for found in backends().values() for name in found.packages]
    # Of two spellings of one name, one.
    names = dict.fromkeys(name.replace("_", "-") for name in (*engines, *OTHERS))
    return {name: installed_version(name) for name in names}


def _driver() -> dict[str, Any]:
    cuda = load_driver()
    if cuda is None:
        raise EngineError(NO_DRIVER)
    return asdict(describe_driver(cuda, load_management()))


def _engines(driver: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    from bksdm.engines.registry import backends

    return {name: _engine(found, driver) for name, found in backends().items()}


def _engine(backend: Backend, driver: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine's version, its problem if it has one, and what it warns of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        problem = _asked(lambda: _check(backend, driver))
    notes = [one_line(str(warning.message)) for warning in warned]
    return {"version": backend.version, **(problem or {}), "notes": notes}


def _check(backend: Backend, driver: Mapping[str, Any]) -> None:
    """Raise an error where an engine cannot be used."""
    from bksdm.engines.backend import missing

    if backend.check is not None:
        backend.check()
    elif backend.version is None:
        raise EngineError(backend.missing)
    if backend.on_cpu:
        return
    if backend.capabilities.on_device and installed_version("cuda-core") is None:
        raise EngineError(missing("cuda-core", backend.extra))
    if PROBLEM in driver:
        raise EngineError(driver[PROBLEM])
    if not driver["gpus"]:
        raise EngineError("the NVIDIA driver shows no GPU")


def _cache() -> dict[str, Any]:
    from bksdm.storage.places import user_cache

    folder = user_cache()
    files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return {"folder": str(folder), "bytes": sum(map(_size, files))}


def _size(file: str) -> int:
    try:
        return os.lstat(file).st_size
    except FileNotFoundError:  # another process has removed it
        return 0
