"""TensorRT and TensorRT RTX, which run plans that ``optimize/plan.py`` builds.

One file for ``tensorrt`` and ``tensorrt_rtx``: their Python interfaces are the same.
"""

from __future__ import annotations

import importlib
from typing import Any

from bksdm.engines.backend import Backend, Capabilities
from bksdm.engines.errors import EngineError
from bksdm.optimize.rules import Rules
from bksdm.storage.precision import PRECISIONS, QUANTIZED

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
BUILD_FLAGS = {"tensorrt": (), "tensorrt-rtx": ("REQUIRE_USER_ALLOCATION",)}
"""What plans are built with; without it those of TensorRT RTX may not run in a CUDA graph."""
# Head widths with an attention kernel, by trial with tensorrt-rtx 1.7.1 on sm75, sm89 and sm120:
# 12 to 256 build; 4, 8, 320 and 512 do not.
NARROWEST_HEAD, WIDEST_HEAD = 12, 256


def load_module(flavour: str) -> Any:
    """Return the TensorRT module of a flavour.

    Raises
    ------
    EngineError
        The flavour is unknown or not installed; says what to install.
    """
    if flavour not in MODULES:
        raise EngineError(f"unknown engine {flavour!r}; known: {', '.join(MODULES)}")
    try:
        return importlib.import_module(MODULES[flavour])
    except (ImportError, OSError) as error:
        missing = next(backend.missing for backend in BACKENDS if backend.name == flavour)
        if flavour == "tensorrt":
            missing += "; for GeForce and RTX GPUs build with --engine tensorrt-rtx, without a GPU"
        raise EngineError(missing) from error


def has_attention_kernel(head_width: int) -> bool:
    """Whether TensorRT computes attention with heads of this width in one kernel."""
    return NARROWEST_HEAD <= head_width <= WIDEST_HEAD


BACKENDS = tuple(
    Backend(
        Capabilities(
            flavour,
            attention_mask=False,
            on_device=True,
            precisions=(*PRECISIONS, *QUANTIZED),
        ),
        packages,
        flavour,
        Rules(),
    )
    for flavour, packages in (
        ("tensorrt", ("tensorrt",)),
        ("tensorrt-rtx", ("tensorrt-rtx-cu13", "tensorrt_rtx_cu13")),
    )
)
