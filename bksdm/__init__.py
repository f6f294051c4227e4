"""Run BK-SDM without PyTorch: the names that programs need, each loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bksdm.engines.errors import (
        BksdmError,
        BundleError,
        EngineError,
        ExportError,
        LoraError,
        NonFiniteError,
        RequestError,
        SamplerError,
    )
    from bksdm.runtime.generation_config import GenerationConfig
    from bksdm.runtime.generator import Generator
    from bksdm.runtime.pipeline import TextToImage
    from bksdm.runtime.result import Result
    from bksdm.runtime.sampling import Cancelled, Step

__version__ = "0.2.0"

_ERRORS = "bksdm.engines.errors"
_MODULES = {
    "BksdmError": _ERRORS,
    "BundleError": _ERRORS,
    "Cancelled": "bksdm.runtime.sampling",
    "EngineError": _ERRORS,
    "ExportError": _ERRORS,
    "GenerationConfig": "bksdm.runtime.generation_config",
    "Generator": "bksdm.runtime.generator",
    "LoraError": _ERRORS,
    "NonFiniteError": _ERRORS,
    "RequestError": _ERRORS,
    "Result": "bksdm.runtime.result",
    "SamplerError": _ERRORS,
    "Step": "bksdm.runtime.sampling",
    "TextToImage": "bksdm.runtime.pipeline",
}

__all__ = [
    "BksdmError",
    "BundleError",
    "Cancelled",
    "EngineError",
    "ExportError",
    "GenerationConfig",
    "Generator",
    "LoraError",
    "NonFiniteError",
    "RequestError",
    "Result",
    "SamplerError",
    "Step",
    "TextToImage",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'bksdm' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
