"""From an engine's name to the engine. Whatever module here lists ``BACKENDS`` is found."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from bksdm import engines
from bksdm.engines.backend import Backend, Capabilities
from bksdm.engines.errors import EngineError
from bksdm.engines.fixed_batch import with_any_batch
from bksdm.engines.protocol import Engine
from bksdm.optimize.rules import MadeFor
from bksdm.optimize.tuned import Tuned, read_tuned
from bksdm.storage.places import written_in
from bksdm.storage.precision import FLOAT32, LOWER

DEFAULT = "onnxruntime"
AUTO = "auto"
"""For each network the engine on the CPU that was faster when ``bksdm build --tune`` measured."""
GONE = {
    "onnxruntime:tensorrt": "ONNX Runtime's TensorRT provider is not supported, for it takes "
    "TensorRT 10; use tensorrt or tensorrt-rtx with what `bksdm build` makes, or onnxruntime-cuda",
    "onnxruntime:cuda": "onnxruntime:cuda is onnxruntime-cuda now, with the loop on the GPU",
}
"""What to say to who asks for an engine that there was."""


@cache
def backends() -> dict[str, Backend]:
    """Return every engine by name, the default first."""
    found: list[Backend] = []
    for module in iter_modules(engines.__path__):
        if module.name != "registry":
            found += getattr(import_module(f"bksdm.engines.{module.name}"), "BACKENDS", ())
    found.sort(key=lambda backend: backend.name != DEFAULT)
    return {backend.name: backend for backend in found}


def backend(name: object) -> Backend:
    """Return an engine.

    Raises
    ------
    EngineError
        The name is unknown.
    """
    if isinstance(name, str) and name in GONE:
        raise EngineError(GONE[name])
    if not isinstance(name, str) or name not in backends():
        raise EngineError(f"unknown engine {name!r:.60}; known: {', '.join((*backends(), AUTO))}")
    return backends()[name]


def cpu_engines() -> tuple[str, ...]:
    """Return the names of engines that run networks on the CPU, the default first."""
    return tuple(name for name, found in backends().items() if found.on_cpu)


def capabilities(name: object) -> Capabilities:
    """Return what the engine of that name can do.

    Raises
    ------
    EngineError
        The name is unknown.
    """
    if name == AUTO:
        able = [backends()[engine].capabilities for engine in cpu_engines()]
        return Capabilities(
            AUTO,
            feature_reuse=all(each.feature_reuse for each in able),
            control=all(each.control for each in able),
            loras=all(each.loras for each in able),
            precisions=tuple(dict.fromkeys(name for each in able for name in each.precisions)),
        )
    return backend(name).capabilities


def chosen_engine(name: str, model: Path, cache: Path | None, precision: str = FLOAT32.name) -> str:
    """Return the engine that runs a network: of :data:`AUTO` the one that was faster."""
    if name != AUTO:
        return name
    return _fastest({} if cache is None else _tuned(cache, model), precision)


def open_engine(
    name: str,
    model: Path,
    threads: int | None,
    cache: Path | None,
    side: int,
    variant: str = "",
    precision: str = FLOAT32.name,
) -> Engine:
    """Load one network with the engine of that name; see its class for the arguments.

    What was measured for the network, and is found in ``cache``, decides where nothing else does.

    Raises
    ------
    EngineError
        The name is unknown, the backend is not installed or the model cannot be loaded.
    """
    tuned = {} if cache is None else _tuned(cache, model)
    name = _fastest(tuned, precision) if name == AUTO else name
    made_for = tuned[name].made_for if name in tuned else MadeFor(side)
    return make_engine(
        name,
        model,
        threads,
        cache=cache,
        made_for=made_for,
        variant=variant,
        precision=precision,
    )


def make_engine(
    name: str,
    model: Path,
    threads: int | None,
    cache: Path | None,
    made_for: MadeFor,
    variant: str = "",
    precision: str = FLOAT32.name,
) -> Engine:
    """Load one network with an engine, made for what is said.

    Raises
    ------
    EngineError
        The name is unknown, the backend is not installed or the model cannot be loaded.
    """
    found = backend(name)
    if found.open is None:
        raise EngineError(f"{name} runs plans that `bksdm build` makes, not single networks")
    engine = found.open(model, threads, cache, made_for, variant, precision)
    return with_any_batch(engine, f"{model.parent.name}/{model.name}")


def version_of(name: str) -> str | None:
    """Return the version of an engine; None where it is unknown or not installed."""
    found = backends().get(name)
    return None if found is None else found.version


def _tuned(cache: Path, model: Path) -> dict[str, Tuned]:
    written = written_in(cache, model.parents[1])
    return read_tuned(cache, model, version_of) or (
        {} if written == cache else read_tuned(written, model, version_of)
    )


def _fastest(tuned: dict[str, Tuned], precision: str) -> str:
    """Return the engine that was fastest; unmeasured, in less than float32 not the default."""
    able = [name for name in cpu_engines() if precision in backends()[name].capabilities.precisions]
    measured = [name for name in able if name in tuned]
    if measured:
        return min(measured, key=lambda engine: tuned[engine].seconds)
    if precision not in LOWER:
        return DEFAULT
    others = (name for name in able if name != DEFAULT and backends()[name].version is not None)
    return next(others, able[0])
