"""Run a network with ONNX Runtime on its CPU, CUDA or TensorRT execution provider."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort

from bksdm.engines.arena import share_arena
from bksdm.engines.digest import file_states
from bksdm.engines.errors import EngineError
from bksdm.engines.onnxruntime_binding import BoundSession
from bksdm.engines.processor import vector_extensions
from bksdm.engines.protocol import Array, GraphEdit, TensorSpec, check_feeds
from bksdm.engines.rewrite.compose import LEAST_ROWS, REWRITE, USUAL, MadeFor, compose

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
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
    """A network in ONNX Runtime.

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
        What makes another network of the model's.

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
        source = _Source(model, edit)
        options = _options(threads, profile)
        if provider == "cpu":
            _share_memory(options)
        try:
            self._session = _open(source, provider, options, cache, made_for)
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise EngineError(f"{self._name}: cannot be loaded ({reason[:300]})") from error
        # A graph in strips says how many rows it needs at least, and takes one image.
        needed = self._session.get_modelmeta().custom_metadata_map.get(LEAST_ROWS, "0")
        self._least_rows = int(needed)
        self._for_small = functools.partial(
            OnnxRuntimeEngine, model, provider, threads, None, replace(made_for, side=1), edit=edit
        )
        self._small: OnnxRuntimeEngine | None = None
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())
        self._run = self._run_on_host if provider == "cpu" else BoundSession(self._session, "cuda")

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network; on the CPU inputs and outputs are not copied."""
        check_feeds(self._name, self.inputs, feeds)
        rows = (array.shape[2] for array in feeds.values() if array.ndim == 4)
        if min(rows, default=self._least_rows) < self._least_rows:
            if self._small is None:
                self._small = self._for_small()
            return self._small(feeds)
        count = max((len(array) for array in feeds.values()), default=1)
        if self._least_rows and count > 1:
            images = ({n: array[i : i + 1] for n, array in feeds.items()} for i in range(count))
            runs = [self(image) for image in images]
            return {name: np.concatenate([run[name] for run in runs]) for name in self.outputs}
        try:
            return self._run(feeds)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types here too
            reason = str(error).strip().splitlines()[0]
            raise EngineError(f"{self._name}: failed to run ({reason[:300]})") from error

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


def _options(threads: int | None, profile: Path | None = None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.log_severity_level = 3
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


@dataclass(frozen=True)
class _Source:
    """A graph's file, and how it is changed."""

    model: Path
    edit: GraphEdit | None

    @property
    def folder(self) -> str:
        """Name of what is made of it."""
        component = self.model.parent.name
        return component if self.edit is None else f"{component}-{self.edit.name}"


def _open(
    source: _Source,
    provider: str,
    options: ort.SessionOptions,
    cache: Path | None,
    made_for: MadeFor,
) -> ort.InferenceSession:
    model = source.model
    providers = [PROVIDERS[provider]]
    if provider == "tensorrt":
        providers.append(PROVIDERS["cuda"])
    if (
        provider != "cpu"
        or cache is None
        or sum(size for size, _ in file_states(model).values()) < CACHE_FROM_BYTES
    ):
        graph = _rewritten(source, provider, made_for)
        return ort.InferenceSession(graph, beside(options, model), providers=providers)
    optimised = cache / _machine() / source.folder / "model.onnx"
    if not optimised.is_file() or _record(optimised) != _state(model, made_for):
        try:
            _save_optimised(source, optimised, made_for)
        except OSError:
            # A read-only or full disk costs only the faster second start.
            graph = _rewritten(source, provider, made_for)
            return ort.InferenceSession(graph, beside(options, model), providers=providers)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(optimised), options, providers=providers)


def beside(options: ort.SessionOptions, model: Path) -> ort.SessionOptions:
    """Let a graph that is passed as bytes find the weights that lie beside ``model``."""
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.parent)
    )
    return options


def _rewritten(source: _Source, provider: str, made_for: MadeFor) -> bytes:
    name = "onnxruntime" if provider == "cpu" else f"onnxruntime:{provider}"
    graph: bytes = compose(source.model, name, made_for, source.edit).SerializeToString()
    return graph


def _machine() -> str:
    """Name a folder of optimised graphs after what lays out their weights."""
    digest = hashlib.sha256(vector_extensions().encode()).hexdigest()[:8]
    return f"onnxruntime-{ort.__version__}-cpu-{digest}"


def _state(model: Path, made_for: MadeFor) -> dict[str, Any]:
    """Return what tells that a graph or its weights have changed since they were optimised."""
    return {
        "backend": "onnxruntime",
        "version": ort.__version__,
        "provider": "cpu",
        "rewrite": REWRITE,
        "made_for": made_for.fields(),
        "source": file_states(model),
    }


def _record(optimised: Path) -> Any:
    """Return the state an optimised graph was made from; None if that cannot be read."""
    try:
        return json.loads((optimised.parent / "engine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _save_optimised(source: _Source, target: Path, made_for: MadeFor) -> None:
    """Optimise once and store graph and weights; written beside and renamed."""
    model = source.model
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent.parent))
    try:
        options = beside(_options(None), model)
        options.optimized_model_filepath = str(staging / "model.onnx")
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "model.onnx.data"
        )
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        # Nothing is run, so no weight needs a second copy in the order that kernels read.
        options.add_session_config_entry("session.disable_prepacking", "1")
        graph = _rewritten(source, "cpu", made_for)
        ort.InferenceSession(graph, options, providers=[PROVIDERS["cpu"]])
        (staging / "engine.json").write_text(json.dumps(_state(model, made_for), indent=2) + "\n")
        staging.chmod(0o755)
        # A folder cannot be renamed onto another; whoever wins a race made the same files.
        shutil.rmtree(target.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.replace(staging, target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if not target.is_file():
        raise OSError(f"{target} could not be written")
