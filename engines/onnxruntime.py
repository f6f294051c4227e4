"""Run a network with ONNX Runtime on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from bksdm.engines.arena import share_arena
from bksdm.engines.backend import Backend, Capabilities
from bksdm.engines.errors import EngineError
from bksdm.engines.fixed_batch import run_in_parts
from bksdm.engines.once import once
from bksdm.engines.onnxruntime_package import PACKAGES, load_onnxruntime
from bksdm.engines.onnxruntime_session import open_network, open_session, reason_of
from bksdm.engines.preparing import Preparation
from bksdm.engines.protocol import Array, TensorSpec, validate_feeds
from bksdm.optimize.rules import LEAST_ROWS, USUAL, CostModel, MadeFor, Rules
from bksdm.storage.precision import PRECISIONS, QUANTIZED
from bksdm.storage.stored_graph import DATA, Prepared

if TYPE_CHECKING:
    import onnxruntime as ort

RULES = Rules(attention=True, feed_forward=True, blocks=True, group_norm=True, winograd=CostModel())
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class OnnxRuntimeEngine:
    """A network in ONNX Runtime; threads may share it.

    Parameters
    ----------
    model : Path
        ``model.onnx``; its external data lies beside it.
    threads : int, optional
        Threads inside one operator; by default one per physical core.
    cache : Path, optional
        Folder for the rewritten and optimised graph, so that later starts skip both.
    made_for : MadeFor
        What the graph is made fastest for.
    profile : Path, optional
        Where the names of ONNX Runtime's profiles begin; :meth:`end_profiling` writes one.
    variant : str
        Of :mod:`bksdm.engines.variants`.

    Raises
    ------
    EngineError
        ONNX Runtime is not available, or the model cannot be loaded.
    """

    def __init__(
        self,
        model: Path,
        threads: int | None = None,
        cache: Path | None = None,
        made_for: MadeFor = USUAL,
        profile: Path | None = None,
        variant: str = "",
    ) -> None:
        self._ort = load_onnxruntime()
        if threads is not None and threads < 1:
            raise EngineError(f"threads must be at least 1, not {threads}")
        self._name = f"{model.parent.name}/{model.name}"
        preparation = Preparation(
            backend="onnxruntime",
            model=model,
            variant=variant,
            rules=RULES,
            made_for=made_for,
            optimise=_optimise,
            version=self._ort.__version__,
        )
        self._session = _open(preparation, cache, threads, profile)
        # A graph in row tiles says how many rows it needs at least, and takes one image.
        needed = self._session.get_modelmeta().custom_metadata_map.get(LEAST_ROWS, "0")
        self._least_rows = int(needed)
        self._for_small = once(
            functools.partial(
                OnnxRuntimeEngine,
                model,
                threads,
                cache,
                made_for=replace(made_for, side=1),
                variant=variant,
            )
        )
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network; inputs and outputs are not copied."""
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

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        values = {
            name: self._ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
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
    ort = load_onnxruntime()
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
    preparation: Preparation,
    cache: Path | None,
    threads: int | None,
    profile: Path | None,
) -> ort.InferenceSession:
    """Return a session of the rewritten graph, of one that is stored optimised if it can be.

    Raises
    ------
    EngineError, BundleError
        The graph cannot be loaded.
    """

    def open_graph(graph: Prepared) -> ort.InferenceSession:
        options = _options(threads, profile)
        _share_memory(options)
        if graph.optimised:
            levels = load_onnxruntime().GraphOptimizationLevel
            options.graph_optimization_level = levels.ORT_DISABLE_ALL
        return open_session(graph, options)

    return open_network(preparation, cache, open_graph)


def _optimise(graph: Prepared, target: Path) -> None:
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


def _open_network(
    model: Path,
    threads: int | None,
    cache: Path | None,
    made_for: MadeFor,
    variant: str,
    precision: str,
) -> OnnxRuntimeEngine:
    # What its graph says is what it computes in.
    del precision
    return OnnxRuntimeEngine(model, threads, cache, made_for, variant=variant)


BACKENDS = (
    Backend(
        Capabilities(
            "onnxruntime",
            feature_reuse=True,
            control=True,
            concurrent=True,
            loras=True,
            precisions=(*PRECISIONS, *QUANTIZED),
        ),
        PACKAGES,
        "cpu",
        RULES,
        _open_network,
        on_cpu=True,
        check=load_onnxruntime,
    ),
)
