"""Record the largest magnitude of every tensor, to see whether it fits into float16."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from bksdm.engines.errors import EngineError
from bksdm.engines.onnxruntime import tensor_specs
from bksdm.engines.onnxruntime_package import load_onnxruntime
from bksdm.engines.onnxruntime_session import open_session, reason_of
from bksdm.engines.protocol import Array
from bksdm.engines.tensorrt import has_attention_kernel
from bksdm.optimize.attention import decompose_attention, fuse_attention
from bksdm.optimize.graph import load_graph
from bksdm.optimize.half import MOVES, emulate_half, tensor_types
from bksdm.optimize.preparing import Composed

if TYPE_CHECKING:
    import onnxruntime as ort

_RANGES = "ranges"


@dataclass(frozen=True)
class Call:
    """Inputs and outputs of one run of a network."""

    feeds: dict[str, Array]
    outputs: dict[str, Array]


def half_error(model: Path, calls: Sequence[Call]) -> list[float]:
    """Run a float16 graph, every tensor rounded, on the inputs of runs of its float32 graph.

    Returns
    -------
    list of float
        Relative L2 error ‖y₁₆ − y₃₂‖ / ‖y₃₂‖ of each call; infinite if y₁₆ is not finite.

    Raises
    ------
    EngineError
        The graph is not float16.
    """
    proto = load_graph(model)
    if proto.graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT16:
        raise EngineError(f"{model}: not a float16 graph; export it with --dtype float16")
    decompose_attention(proto, has_attention_kernel)
    emulate_half(proto)
    session = open_graph(proto, model)
    types = {name: spec.dtype for name, spec in tensor_specs(session.get_inputs()).items()}
    errors = []
    for call in calls:
        feeds = {name: array.astype(types[name]) for name, array in call.feeds.items()}
        (found,) = session.run(None, feeds)
        (expected,) = call.outputs.values()
        exact = expected.astype(np.float64)
        difference = float(np.linalg.norm(found.astype(np.float64) - exact))
        norm = float(np.linalg.norm(exact))
        errors.append(difference / norm if np.isfinite(found).all() and norm > 0 else math.inf)
    return errors


class RangeEngine:
    """A float32 network on the CPU that keeps the largest magnitude of each tensor.

    The graph is the one TensorRT is given: attention is one node where TensorRT has a kernel for
    it, and the magnitudes inside of such a node are not seen, for they stay in float32 there.

    Parameters
    ----------
    model : Path
        ``model.onnx`` in float32.

    Attributes
    ----------
    largest : dict
        From the name of a tensor to its largest magnitude over all calls; weights included.
    first, last : Call
        The first and the latest call.

    Raises
    ------
    EngineError
        The graph is not float32, or cannot be loaded.
    """

    def __init__(self, model: Path) -> None:
        proto = load_graph(model)
        if proto.graph.output[0].type.tensor_type.elem_type != TensorProto.FLOAT:
            raise EngineError(f"{model}: calibration needs a float32 graph")
        decompose_attention(proto, has_attention_kernel)
        types = tensor_types(proto)
        fuse_attention(proto)
        self._names = _watch(proto, types)
        self._largest = np.zeros(len(self._names), np.float32)
        self._session = open_graph(proto, model)
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs()[:-1])
        self.first: Call | None = None
        self.last: Call | None = None

    @property
    def largest(self) -> dict[str, float]:
        """The largest magnitudes by tensor, in descending order."""
        found = zip(self._names, self._largest.tolist(), strict=True)
        return dict(sorted(found, key=lambda item: -item[1]))

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network."""
        *results, largest = self._session.run(None, dict(feeds))
        outputs = dict(zip(self.outputs, results, strict=True))
        self._largest = np.fmax(self._largest, largest)
        self.last = Call({name: array.copy() for name, array in feeds.items()}, outputs)
        self.first = self.first or self.last
        return outputs


def open_graph(proto: onnx.ModelProto, model: Path) -> ort.InferenceSession:
    """Open a rewritten graph on the CPU; its weights lie beside ``model``.

    Raises
    ------
    EngineError
        It cannot be loaded; its weights may be damaged.
    """
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = False
    # What watches a tensor runs right after it. In the default order it runs at the very end, with
    # every tensor still in memory: 6.3 GB against 1.8 GB on a full-size VAE decoder at 384×384.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    graph = Composed.of(proto, model).prepared()
    try:
        return open_session(graph, options)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
        raise EngineError(f"{model}: cannot be loaded ({reason_of(error)})") from error


def _watch(model: onnx.ModelProto, types: Mapping[str, int]) -> list[str]:
    """Add an output with the largest magnitudes, and return the names of their tensors."""
    graph = model.graph
    names = [weight.name for weight in graph.initializer]
    names += [name for node in graph.node if node.op_type not in MOVES for name in node.output]
    names = [name for name in names if types.get(name) == TensorProto.FLOAT]
    flat = "ranges:flat"
    graph.initializer.append(helper.make_tensor(flat, TensorProto.INT64, [1], [1]))
    for name in names:
        graph.node.extend(
            [
                helper.make_node("Abs", [name], [f"{name}:abs"]),
                helper.make_node("ReduceMax", [f"{name}:abs"], [f"{name}:max"], keepdims=0),
                helper.make_node("Reshape", [f"{name}:max", flat], [f"{name}:range"]),
            ]
        )
    parts = [f"{name}:range" for name in names]
    graph.node.append(helper.make_node("Concat", parts, [_RANGES], axis=0))
    graph.output.append(helper.make_tensor_value_info(_RANGES, TensorProto.FLOAT, [len(names)]))
    return names
