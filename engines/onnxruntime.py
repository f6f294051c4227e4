"""Run a network with ONNX Runtime on its CPU, CUDA or TensorRT execution provider."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort

from bksdm.engines.arena import share_arena
from bksdm.engines.backend import Backend, Capabilities, Open
from bksdm.engines.errors import BksdmError, EngineError
from bksdm.engines.fixed_batch import run_in_parts
from bksdm.engines.once import once
from bksdm.engines.onnxruntime_binding import BoundSession
from bksdm.engines.onnxruntime_session import Graph, graph_of, open_session, reason_of
from bksdm.engines.protocol import Array, GraphEdit, TensorSpec, validate_feeds
from bksdm.optimize.choice import CostModel
from bksdm.optimize.compose import LEAST_ROWS, REWRITE, USUAL, MadeFor, Rules, compose
from bksdm.optimize.saved_graph import DATA, NotSaved, SavedGraph
from bksdm.storage.digest import graph_files
from bksdm.storage.places import written_in

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
RULES = {
    "cpu": Rules(
        attention=True, feed_forward=True, blocks=True, group_norm=True, winograd=CostModel()
    ),
    "cuda": Rules(attention=True),
    "tensorrt": Rules(attention=True),
}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
# Graphs smaller than this are optimised faster than their optimised copy is worth on disk.
CACHE_FROM_BYTES = 64 * 2**20


class OnnxRuntimeEngine:
    """A network in ONNX Runtime; threads may share it.

    Parameters
    ----------
    model : Path
        ``model.onnx``; its external data lies beside it.
    provider : str
        ``cpu``, ``cuda`` or ``tensorrt``.
    threads : int, optional
        Threads inside one operator; by default one per physical core.
    cache : Path, optional
        Folder for the optimised graph, so that later starts skip the optimisation. On the CPU
        only: elsewhere the provider compiles for itself.
    made_for : MadeFor
        What the CPU's graph is made fastest for.
    profile : Path, optional
        Where the names of ONNX Runtime's profiles begin; :meth:`end_profiling` writes one.
    edit : GraphEdit, optional
        A change of the graph, before all rewriting.

    Raises
    ------
    EngineError
        The provider is not available, or the model cannot be loaded.
    """

    def __init__(
        self,
        model: Path,
        provider: str = "cpu",
        threads: int | None = None,
        cache: Path | None = None,
        made_for: MadeFor = USUAL,
        profile: Path | None = None,
        edit: GraphEdit | None = None,
    ) -> None:
        if provider not in PROVIDERS:
            raise EngineError(f"unknown provider {provider!r}; known: {', '.join(PROVIDERS)}")
        if PROVIDERS[provider] not in ort.get_available_providers():
            raise EngineError(
                f"provider {provider} is not in this onnxruntime; "
                "install onnxruntime-gpu in place of onnxruntime (and an NVIDIA driver)"
            )
        if threads is not None and threads < 1:
            raise EngineError(f"threads must be at least 1, not {threads}")
        self._name = f"{model.parent.name}/{model.name}"
        self._session = _open(model, edit, provider, threads, profile, cache, made_for)
        # A graph in strips says how many rows it needs at least, and takes one image.
        needed = self._session.get_modelmeta().custom_metadata_map.get(LEAST_ROWS, "0")
        self._least_rows = int(needed)
        self._for_small = once(functools.partial(
            OnnxRuntimeEngine, model, provider, threads, None, replace(made_for, side=1), edit=edit
        ))  # fmt: skip
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())
        self._run = self._run_on_host if provider == "cpu" else BoundSession(self._session, "cuda")

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network; on the CPU inputs and outputs are not copied."""
        validate_feeds(self._name, self.inputs, feeds)
        rows = (array.shape[2] for array in feeds.values() if array.ndim == 4)
        if min(rows, default=self._least_rows) < self._least_rows:
            return self._for_small()(feeds)
        # A scalar, as the timestep of Optimum's UNets, is every image's.
        count = max((len(array) for array in feeds.values() if array.ndim), default=1)
        if self._least_rows and count > 1:
            batched = [name for name, array in feeds.items() if array.ndim and len(array) == count]
            return run_in_parts(self, feeds, batched, rows=1)
        try:
            return self._run(feeds)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types here too
            raise EngineError(f"{self._name}: failed to run ({reason_of(error)})") from error

    def end_profiling(self) -> Path:
        """Stop profiling and return the file with what every operator took."""
        return Path(self._session.end_profiling())

    def _run_on_host(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
            for name, array in feeds.items()
        }
        names = list(self.outputs)
        results = self._session.run_with_ort_values(names, values)
        return {name: np.from_dlpack(value) for name, value in zip(names, results, strict=True)}


def tensor_specs(nodes: list[Any]) -> Mapping[str, TensorSpec]:
    """Return type and shape of a session's inputs or outputs."""
    specs = {}
    for node in nodes:
        if node.type not in DTYPES:
            raise EngineError(f"tensor {node.name} has the unsupported type {node.type}")
        shape = tuple(size if isinstance(size, int) else str(size) for size in node.shape)
        specs[node.name] = TensorSpec(np.dtype(DTYPES[node.type]), shape)
    return MappingProxyType(specs)


def _options(threads: int | None, profile: Path | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    # 1.5 GB at the peak of a full-size VAE decoder at 512×512, against 1.8 GB in the default order.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    # Threads that go on looking for work after a run take the cores from the next network: pictures
    # of the built-in model by two networks in turns took 0.34 s in place of 0.19 s.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _share_memory(options: ort.SessionOptions) -> None:
    """Let a session take its tensors from the process's arena, and its weights from elsewhere."""
    share_arena()
    options.enable_cpu_mem_arena = True
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # A pattern is one block for all tensors of a shape; in an arena it only adds to them.
    options.enable_mem_pattern = False


def _open(
    model: Path,
    edit: GraphEdit | None,
    provider: str,
    threads: int | None,
    profile: Path | None,
    cache: Path | None,
    made_for: MadeFor,
) -> ort.InferenceSession:
    """Return a session of a rewritten graph, on the CPU of one that is saved optimised.

    Raises
    ------
    EngineError, BundleError
        The graph cannot be loaded.
    """
    name = model.parent.name if edit is None else f"{model.parent.name}-{edit.name}"

    def composed() -> Graph:
        return graph_of(compose(model, RULES[provider], made_for, edit), model)

    def open_graph(graph: Graph, optimised: bool = False) -> ort.InferenceSession:
        options = _options(threads, profile)
        if provider == "cpu":
            _share_memory(options)
        if optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        second = (PROVIDERS["cuda"],) if provider == "tensorrt" else ()
        return open_session(graph, options, (PROVIDERS[provider], *second))

    try:
        if provider != "cpu" or cache is None or _weight_bytes(model) < CACHE_FROM_BYTES:
            return open_graph(composed())
        fields = {"rewrite": REWRITE, "made_for": made_for.fields()}
        saved = SavedGraph(model, cache, name, fields, composed, _optimise)
        try:
            return saved.open(functools.partial(open_graph, optimised=True))
        except NotSaved as error:
            session = open_graph(composed())
            warnings.warn(
                f"{name}: every start takes as long, for the optimised graph cannot be stored in "
                f"{written_in(cache, model.parents[1])} ({reason_of(error)})",
                stacklevel=2,
            )
            return session
    except BksdmError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
        where = f"{model.parent.name}/{model.name}"
        raise EngineError(f"{where}: cannot be loaded ({reason_of(error)})") from error


def _weight_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in graph_files(model))


def _optimise(graph: Graph, target: Path) -> None:
    """Write a graph as ONNX Runtime runs it, all its larger weights in :data:`DATA` beside it."""
    options = _options(None, None)
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", DATA
    )
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
    )
    # Nothing is run, so no weight needs a second copy in the order that kernels read.
    options.add_session_config_entry("session.disable_prepacking", "1")
    open_session(graph, options)


def _opened_by(provider: str) -> Open:
    return lambda model, threads, cache, made_for, edit: OnnxRuntimeEngine(
        model, provider, threads, cache, made_for, edit=edit
    )


PACKAGES = ("onnxruntime", "onnxruntime-gpu")
BACKENDS = (
    Backend(
        Capabilities("onnxruntime", feature_reuse=True), PACKAGES, "", RULES["cpu"],
        _opened_by("cpu"), on_cpu=True,
    ),
    *(
        Backend(Capabilities(f"onnxruntime:{provider}"), PACKAGES, "", RULES[provider],
                _opened_by(provider))
        for provider in ("cuda", "tensorrt")
    ),
)  # fmt: skip
