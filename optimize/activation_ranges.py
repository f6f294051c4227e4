"""A network that notes how large what its products take gets, call by call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.onnxruntime import tensor_specs
from bksdm.engines.protocol import Array
from bksdm.optimize.attention import fuse_attention
from bksdm.optimize.graph import load_graph
from bksdm.optimize.quantized_graph import products
from bksdm.optimize.ranges import open_graph

_EXTREMES = "extremes"
# The axes of what flows in that are not its channels.
_OTHER_AXES = {"Conv": (0, 2, 3), "MatMul": (0, 1), "Gemm": (0,)}


class WatchedEngine:
    """A network on the CPU that notes the extremes of what its products take.

    Parameters
    ----------
    model : Path
        ``model.onnx``.

    Attributes
    ----------
    calls : list of dict
        Of every call, the smallest and the largest number of each channel, by tensor: float32,
        [2, channels].

    Raises
    ------
    BundleError, EngineError
        The graph is damaged, or cannot be loaded.
    """

    def __init__(self, model: Path) -> None:
        proto = load_graph(model)
        found = {product.taken: product.node.op_type for product in products(proto.graph)}
        self.calls: list[dict[str, NDArray[np.float32]]] = []
        own_outputs = len(proto.graph.output)
        fuse_attention(proto)
        self._names = list(found)
        _watch(proto.graph, found)
        self._session = open_graph(proto, model)
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs()[:own_outputs])

    def __call__(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Run the network."""
        results = self._session.run(None, dict(feeds))
        count = len(self.outputs)
        self.calls.append(dict(zip(self._names, results[count:], strict=True)))
        return dict(zip(self.outputs, results[:count], strict=True))


def _watch(graph: onnx.GraphProto, kinds: Mapping[str, str]) -> None:
    """Add an output with the extremes of each tensor's channels, in place.

    Parameters
    ----------
    graph : GraphProto
        The graph.
    kinds : mapping
        From a tensor's name to the operator that multiplies it.
    """
    for kind, axes in _OTHER_AXES.items():
        graph.initializer.append(numpy_helper.from_array(np.array(axes), f"{_EXTREMES}:{kind}"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), f"{_EXTREMES}:row"))
    for name, kind in kinds.items():
        rows, wide = [], f"{name}:float32"
        graph.node.append(helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT))
        for reduce in ("ReduceMin", "ReduceMax"):
            found, row = f"{name}:{reduce}", f"{name}:{reduce}:row"
            graph.node.append(
                helper.make_node(reduce, [wide, f"{_EXTREMES}:{kind}"], [found], keepdims=0)
            )
            graph.node.append(helper.make_node("Reshape", [found, f"{_EXTREMES}:row"], [row]))
            rows.append(row)
        output = f"{name}:{_EXTREMES}"
        graph.node.append(helper.make_node("Concat", rows, [output], axis=0))
        graph.output.append(
            helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, f"channels of {name}"])
        )
