"""ONNX Runtime's CUDA provider between the loop's own addresses, in the loop's own stream."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from bksdm.engines.backend import Backend, Capabilities
from bksdm.engines.device import Binding, require_all
from bksdm.engines.errors import EngineError
from bksdm.engines.onnxruntime import tensor_specs
from bksdm.engines.onnxruntime_package import (
    CUDA_PROVIDER,
    GPU_PACKAGE,
    check_cuda_provider,
    load_cuda_provider,
)
from bksdm.engines.onnxruntime_session import open_network, open_session, reason_of
from bksdm.engines.preparing import Preparation
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.stream_fork import Fork
from bksdm.optimize.rules import ONNXRUNTIME_CUDA, USUAL
from bksdm.storage.stored_graph import Prepared

if TYPE_CHECKING:
    import onnxruntime as ort

Recorder = Literal["nobody", "loop", "onnxruntime"]
"""Who records a network's kernels in a CUDA graph.

``loop``: the loop, together with its own. ``onnxruntime``: ONNX Runtime, which replays them between
the loop's; its graphs belong to the thread that first ran them, and take no node on the CPU.
"""
SETTINGS: Mapping[str, str] = {
    # Tensor cores would round the factors of float32 products to 10 bits.
    "use_tf32": "0",
    # Trying every kernel takes seconds for each convolution and each size.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Graphs are rewritten to channels last, in which tensor cores take convolutions.
    "prefer_nhwc": "1",
    # Sums in float32, as the exported graph's.
    "enable_skip_layer_norm_strict_mode": "1",
    # No more memory than is asked for: others use the GPU, too.
    "arena_extend_strategy": "kSameAsRequested",
}
# Of shapes alone: ONNX Runtime computes these on the CPU by intent, from what it knows without
# asking the GPU.
ON_SHAPES = frozenset(
    (
        *("Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Mul"),
        *("Range", "Reshape", "Shape", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    )
)
_NO_GRAPH = -1


class CudaNetwork:
    """A network of ONNX Runtime on a GPU; implements :class:`~bksdm.engines.device.DeviceNetwork`.

    Whoever shares it between threads lets them enqueue one after the other.

    Parameters
    ----------
    model : Path
        ``model.onnx``, in the folder of its network.
    stream : int
        Handle of the stream that it always runs in.
    gpu : int
        Which one.
    cache : Path, optional
        Folder for the rewritten graph.
    recorder : str
        Who records its kernels.

    Raises
    ------
    EngineError
        ONNX Runtime or its CUDA provider is not available, the network cannot be loaded, or a part
        of it would run on the CPU.
    """

    scratch = 0

    def __init__(
        self,
        model: Path,
        stream: int,
        gpu: int = 0,
        cache: Path | None = None,
        recorder: Recorder = "nobody",
    ) -> None:
        self._ort = load_cuda_provider()
        self._name = model.parent.name
        self._stream, self._gpu = stream, gpu
        self._own_graphs = recorder == "onnxruntime"
        self.recordable = recorder == "loop"
        settings = {
            **SETTINGS,
            "device_id": str(gpu),
            "user_compute_stream": str(stream),
            "enable_cuda_graph": str(int(self._own_graphs)),
        }
        self._session = _open(self._ort, model, cache, settings)
        _require_on_gpu(self._session, self._name)
        inputs = tensor_specs(self._session.get_inputs())
        self._types = {**inputs, **tensor_specs(self._session.get_outputs())}
        self.inputs = tuple(inputs)
        self.tensors: Mapping[str, TensorSpec] = MappingProxyType(
            {
                name: replace(
                    spec, shape=tuple(n if isinstance(n, int) else "?" for n in spec.shape)
                )
                for name, spec in self._types.items()
            }
        )
        self._graphs = itertools.count()

    def least_rows(self, name: str) -> int:
        """Return 1: it takes any number."""
        return 1

    def keep_kernels(self) -> None:
        """Do nothing: it compiles none."""

    def bind(self, bindings: Mapping[str, Binding], scratch: int) -> BoundSession:
        """Return the network ready to run between these addresses.

        Raises
        ------
        EngineError
            A tensor is missing, or has another shape.
        """
        require_all(self._name, self.tensors, bindings)
        held = self._session.io_binding()
        for name, binding in bindings.items():
            spec = self.tensors[name]
            fits = len(spec.shape) == len(binding.shape) and all(
                axis in ("?", size) for axis, size in zip(spec.shape, binding.shape, strict=True)
            )
            if not fits:
                raise EngineError(
                    f"{self._name}: {name} has shape {spec.shape}, not {binding.shape}"
                )
            bind = held.bind_input if name in self.inputs else held.bind_output
            bind(name, "cuda", self._gpu, spec.dtype, list(binding.shape), binding.address)
        options = self._ort.RunOptions()
        # The loop waits once, at its end.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        graph = next(self._graphs) if self._own_graphs else _NO_GRAPH
        options.add_run_config_entry("gpu_graph_id", str(graph))
        return BoundSession(self._name, self._session, held, options, self._stream, self.recordable)


@dataclass(frozen=True)
class BoundSession:
    """A network with fixed shapes and addresses."""

    name: str
    session: ort.InferenceSession
    binding: Any
    options: ort.RunOptions
    stream: int
    recordable: bool

    def enqueue(self, stream: int) -> None:
        """Enqueue one run; in another stream than its own it is put between what lies there.

        Raises
        ------
        EngineError
            ONNX Runtime refused.
        """
        with Fork(stream, self.stream):
            try:
                self.session.run_with_iobinding(self.binding, self.options)
            except Exception as error:  # ONNX Runtime raises a dozen unrelated types
                raise EngineError(f"{self.name}: failed to run ({reason_of(error)})") from error

    def can_record(self, stream: int) -> bool:
        """Whether the loop is to record it."""
        return self.recordable


def preparation(model: Path) -> Preparation:
    """Return what it wants of a network's graph."""
    return Preparation(
        backend="onnxruntime-cuda", model=model, variant="", rules=ONNXRUNTIME_CUDA, made_for=USUAL
    )


def _open(
    ort: Any, model: Path, cache: Path | None, settings: Mapping[str, str]
) -> ort.InferenceSession:
    def open_graph(graph: Prepared) -> Any:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return open_session(graph, options, CUDA_PROVIDER, settings)

    return open_network(preparation(model), cache, open_graph)


def _require_on_gpu(session: ort.InferenceSession, name: str) -> None:
    """Refuse a network of which a part runs on the CPU, shapes aside.

    Raises
    ------
    EngineError
        Names the operators.
    """
    elsewhere = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != CUDA_PROVIDER
        for node in part.get_nodes()
    }
    if found := sorted(elsewhere - ON_SHAPES):
        raise EngineError(
            f"{name}: ONNX Runtime has no CUDA kernels for {', '.join(found)}, which would run on "
            "the CPU; use the engine onnxruntime, or export the model anew"
        )


BACKENDS = (
    Backend(
        Capabilities("onnxruntime-cuda", attention_mask=False, on_device=True),
        (GPU_PACKAGE,),
        "gpu",
        ONNXRUNTIME_CUDA,
        open_on_device=CudaNetwork,
        graph=preparation,
        check=check_cuda_provider,
    ),
)
