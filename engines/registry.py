"""From an engine's name to the engine; backends are imported when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bksdm.engines.errors import EngineError
from bksdm.engines.fixed_batch import with_any_batch
from bksdm.engines.protocol import Capabilities, Engine, GraphEdit

if TYPE_CHECKING:
    from bksdm.optimize.compose import MadeFor

CPU_ENGINES = ("onnxruntime", "openvino")
"""Engines that run networks on the CPU, the default first."""
DEFAULT = CPU_ENGINES[0]
AUTO = "auto"
"""Of these, for each network the one that was faster when ``bksdm build --tune`` measured."""
ENGINES = (*CPU_ENGINES, AUTO, "onnxruntime:cuda", "onnxruntime:tensorrt")
"""Engines that are called with host arrays, network by network."""
DEVICE_ENGINES = ("tensorrt", "tensorrt-rtx")
"""Engines whose tensors stay on the GPU; the loop runs there too."""


def capabilities(name: object) -> Capabilities:
    """Return what the engine of that name can do.

    Raises
    ------
    EngineError
        The name is unknown.
    """
    if not isinstance(name, str) or name not in (*ENGINES, *DEVICE_ENGINES):
        known = ", ".join((*ENGINES, *DEVICE_ENGINES))
        raise EngineError(f"unknown engine {name!r:.60}; known: {known}")
    if name in DEVICE_ENGINES:
        return Capabilities(name, attention_mask=False, on_device=True)
    return Capabilities(name, feature_reuse=name in (AUTO, *CPU_ENGINES))


def chosen_engine(name: str, model: Path, cache: Path | None) -> str:
    """Return the engine that runs a network: of :data:`AUTO` the one that was faster."""
    if name != AUTO:
        return name
    from bksdm.optimize.tuned import read_tuned

    tuned = {} if cache is None else read_tuned(cache, model)
    return min(tuned, key=lambda engine: tuned[engine].seconds, default=CPU_ENGINES[0])


def open_engine(
    name: str,
    model: Path,
    threads: int | None,
    cache: Path | None,
    side: int,
    edit: GraphEdit | None = None,
) -> Engine:
    """Load one network with the engine of that name; see its class for the arguments.

    What was measured for the network, and is found in ``cache``, decides where nothing else does.

    Raises
    ------
    EngineError
        The name is unknown, the backend is not installed or the model cannot be loaded.
    """
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    from bksdm.optimize.compose import MadeFor
    from bksdm.optimize.tuned import read_tuned

    tuned = {} if cache is None else read_tuned(cache, model)
    name = chosen_engine(name, model, cache)
    made_for = tuned[name].made_for if name in tuned else MadeFor(side)
    return make_engine(name, model, threads, cache, made_for, edit)


def make_engine(
    name: str,
    model: Path,
    threads: int | None,
    cache: Path | None,
    made_for: MadeFor,
    edit: GraphEdit | None = None,
) -> Engine:
    """Load one network with an engine, made for what is said.

    Raises
    ------
    EngineError
        The backend is not installed or the model cannot be loaded.
    """
    engine: Engine
    if name == "openvino":
        from bksdm.engines.openvino import OpenVinoEngine

        engine = OpenVinoEngine(model, threads, made_for, edit)
    else:
        from bksdm.engines.onnxruntime import OnnxRuntimeEngine

        provider = name.partition(":")[2] or "cpu"
        engine = OnnxRuntimeEngine(model, provider, threads, cache, made_for, edit=edit)
    return with_any_batch(engine, f"{model.parent.name}/{model.name}")
