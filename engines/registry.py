"""From an engine's name to the engine; backends are imported when asked for."""

from __future__ import annotations

from pathlib import Path

from bksdm.engines.errors import EngineError
from bksdm.engines.protocol import Engine, GraphEdit

ENGINES = ("onnxruntime", "openvino", "onnxruntime:cuda", "onnxruntime:tensorrt")
"""Engines that are called with host arrays, network by network."""
CPU_ENGINES = ("onnxruntime", "openvino")
"""Those of them that run on the CPU."""
DEVICE_ENGINES = ("tensorrt", "tensorrt-rtx")
"""Engines whose tensors stay on the GPU; the loop runs there too."""


def open_engine(
    name: str,
    model: Path,
    threads: int | None,
    cache: Path | None,
    side: int,
    winograd_budget: int | None = None,
    edit: GraphEdit | None = None,
) -> Engine:
    """Load one network with the engine of that name; see its class for the arguments.

    Raises
    ------
    EngineError
        The name is unknown, the backend is not installed or the model cannot be loaded.
    """
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    from bksdm.engines.rewrite.compose import WINOGRAD_BUDGET, MadeFor

    budget = WINOGRAD_BUDGET if winograd_budget is None else winograd_budget
    made_for = MadeFor(side, budget)
    if name == "openvino":
        from bksdm.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(model, threads, made_for, edit)
    from bksdm.engines.onnxruntime import OnnxRuntimeEngine

    provider = name.partition(":")[2] or "cpu"
    return OnnxRuntimeEngine(model, provider, threads, cache, made_for, edit=edit)
