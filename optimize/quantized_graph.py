"""Write a network's products in int8, as QuantizeLinear and DequantizeLinear around them.

That form (ONNX's "QDQ") says where numbers are rounded and leaves the kernels to the engine:
OpenVINO, ONNX Runtime and TensorRT all read it. Weights are rounded per output channel, symmetric,
as Jacob et al. 2018 (arXiv 1712.05877) and Nagel et al. 2021 (arXiv 2106.08295) recommend; what
flows in has one scale and one zero for a whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bksdm.engines.protocol import Array
from bksdm.optimize.graph import attributes, producers_of
from bksdm.optimize.needed import keep_needed

LEVELS = 127
"""The largest weight in int8; −128 is not used, so that zero stays zero."""
RAW = 255
"""The largest of what flows in, in uint8."""
MIGRATED = 0.75
"""SmoothQuant's α: how much of a channel's size its weights take over. Of 0, 0.5, 0.75 and 1 it
gave the best pictures of the built-in model."""
LEAST_GAIN = 4
"""By how much less the square of an error has to be for a division that takes time itself."""
LEAST = 1e-12
"""Sizes are at least that, so that none divides by zero."""
# The axis of output channels in a weight, and what transposes it.
_CHANNELS = {"Conv": 0, "MatMul": 1, "Gemm": 1}


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a stored weight.

    Attributes
    ----------
    node : NodeProto
        ``Conv``, ``MatMul`` or ``Gemm``.
    stored : str
        Name of the weight as it is stored.
    moves : tuple of NodeProto
        Casts and transpositions between the stored weight and the node.
    axis : int
        Of the output channels, after these.
    """

    node: onnx.NodeProto
    stored: str
    moves: tuple[onnx.NodeProto, ...]
    axis: int

    @property
    def taken(self) -> str:
        """The tensor that it multiplies."""
        return str(self.node.input[0])

    @property
    def taken_axis(self) -> int:
        """The weight's axis along which that tensor's channels lie."""
        return 1 - self.axis

    def weight(self, stored: Array) -> NDArray[np.float32]:
        """Return the weight as the node reads it."""
        value = stored
        for move in self.moves:
            if move.op_type == "Transpose":
                value = value.transpose(attributes(move).get("perm"))
        return np.ascontiguousarray(value, np.float32)


def products(graph: onnx.GraphProto) -> Iterator[Product]:
    """Yield the nodes of a graph that multiply by a stored weight of two or more dimensions."""
    stored = {weight.name: weight for weight in graph.initializer}
    producers = producers_of(graph)
    for node in graph.node:
        if node.op_type not in _CHANNELS or node.domain:
            continue
        moves: list[onnx.NodeProto] = []
        name = node.input[1]
        while name in producers and producers[name].op_type in ("Cast", "Transpose"):
            moves.insert(0, producers[name])
            name = producers[name].input[0]
        if name not in stored or len(stored[name].dims) < 2:
            continue
        axis = _CHANNELS[node.op_type]
        if node.op_type == "Gemm" and attributes(node).get("transB"):
            axis = 0
        yield Product(node, name, tuple(moves), axis)


def quantize_graph(
    model: onnx.ModelProto,
    extremes: Mapping[str, NDArray[np.float32]],
    weight_of: Callable[[str], Array],
    keep: Callable[[str], bool],
) -> int:
    """Rewrite products to int8, in place; their weights go into the graph.

    Channels that are much larger than others are divided, and the weight's rows multiplied, before
    either is rounded (Xiao et al. 2023, "SmoothQuant", arXiv 2211.10438).

    Parameters
    ----------
    model : ModelProto
        A graph of float32.
    extremes : mapping
        Smallest and largest number of each channel of what products take, [2, channels], by tensor.
    weight_of : callable
        Returns a stored weight by its name.
    keep : callable
        Whether the product of a stored weight stays as it is, by the weight's name.

    Returns
    -------
    int
        The number of products that were rewritten.
    """
    graph = model.graph
    chosen = {id(each.node): each for each in products(graph) if not keep(each.stored)}
    together: dict[str, list[Product]] = {}
    for product in chosen.values():
        together.setdefault(product.taken, []).append(product)
    divisors: dict[str, NDArray[np.float32] | None] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        found = chosen.get(id(node))
        if found is not None:
            taken = found.taken
            if taken not in divisors:
                divisors[taken] = _divisors(extremes[taken], together[taken], weight_of)
                nodes += _round(graph, found, extremes[taken], divisors[taken])
            weight, divisor = found.weight(weight_of(found.stored)), divisors[taken]
            if divisor is not None:
                weight = weight * _along(divisor, found.taken_axis, weight.ndim)
            nodes.append(_store(graph, found, weight))
            node.input[0], node.input[1] = f"{taken}:q", nodes[-1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    keep_needed(graph)
    return len(chosen)


def _divisors(
    extremes: NDArray[np.float32], together: list[Product], weight_of: Callable[[str], Array]
) -> NDArray[np.float32] | None:
    """Return what each channel is divided by: its size to α over that of its weights to 1 − α.

    None where that would not make the error much less, which is for each product
    Δ²/12 · Σ_c d_c² ‖w_c‖², with the step Δ of what flows in and the divisors d_c.
    """
    weights = np.zeros(extremes.shape[1], np.float32)
    squares = np.zeros(extremes.shape[1])
    for product in together:
        weight = product.weight(weight_of(product.stored))
        others = tuple(axis for axis in range(weight.ndim) if axis != product.taken_axis)
        weights = np.maximum(weights, np.abs(weight).max(axis=others))
        squares += np.square(weight, dtype=np.float64).sum(axis=others)
    size = np.maximum(np.abs(extremes).max(axis=0), LEAST)
    divisors: NDArray[np.float32] = size**MIGRATED / np.maximum(weights, LEAST) ** (1 - MIGRATED)
    before = _width(extremes) ** 2 * squares.sum()
    after = _width(extremes / divisors) ** 2 * (divisors.astype(np.float64) ** 2 @ squares)
    return divisors if before > LEAST_GAIN * after else None


def _width(extremes: NDArray[np.float32]) -> float:
    return float(max(extremes[1].max(), 0) - min(extremes[0].min(), 0))


def _round(
    graph: onnx.GraphProto,
    product: Product,
    extremes: NDArray[np.float32],
    divisor: NDArray[np.float32] | None,
) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that round what flows in to 256 levels, of which one is zero."""
    name = rounded = product.taken
    if divisor is not None:
        ndim = {"Conv": 4, "MatMul": 3, "Gemm": 2}[product.node.op_type]
        factors = _along(np.float32(1) / divisor, 1 if ndim == 4 else ndim - 1, ndim)
        graph.initializer.append(numpy_helper.from_array(factors, f"{name}:factors"))
        rounded = f"{name}:even"
        yield helper.make_node("Mul", [name, f"{name}:factors"], [rounded])
        extremes = extremes / divisor
    scale = np.float32(max(_width(extremes), LEAST) / RAW)
    zero = np.uint8(np.clip(np.round(-min(extremes[0].min(), 0) / scale), 0, RAW))
    graph.initializer.append(numpy_helper.from_array(np.array(scale), f"{name}:scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(zero), f"{name}:zero"))
    constants = [f"{name}:scale", f"{name}:zero"]
    yield helper.make_node("QuantizeLinear", [rounded, *constants], [f"{name}:uint8"])
    yield helper.make_node("DequantizeLinear", [f"{name}:uint8", *constants], [f"{name}:q"])


def _store(graph: onnx.GraphProto, product: Product, value: NDArray[np.float32]) -> onnx.NodeProto:
    """Add a weight in int8, and return the node that reads it."""
    others = tuple(axis for axis in range(value.ndim) if axis != product.axis)
    largest = np.abs(value).max(axis=others, keepdims=True)
    scale = np.maximum(largest, np.float32(LEAST)) / np.float32(LEVELS)
    name = f"{product.stored}:int8:{product.node.output[0]}"
    levels = np.round(value / scale).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(levels, name))
    graph.initializer.append(numpy_helper.from_array(scale.reshape(-1), f"{name}:scale"))
    zeros = np.zeros(scale.size, np.int8)
    graph.initializer.append(numpy_helper.from_array(zeros, f"{name}:zero"))
    inputs = [name, f"{name}:scale", f"{name}:zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}:q"], axis=product.axis)


def _along(values: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    """Return a vector as an array whose other axes are 1."""
    return values.reshape([-1 if each == axis else 1 for each in range(ndim)])
