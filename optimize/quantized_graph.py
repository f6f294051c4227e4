"""Write a network's products in eight bits, as QuantizeLinear and DequantizeLinear around them.

That form (ONNX's "QDQ") says where numbers are rounded and leaves the kernels to the engine:
OpenVINO, ONNX Runtime and TensorRT all read it. Weights are rounded per output channel, symmetric,
as Jacob et al. 2018 (arXiv 1712.05877) and Nagel et al. 2021 (arXiv 2106.08295) recommend; what
flows in has one scale and one zero for a whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bksdm.engines.protocol import Array
from bksdm.optimize.graph import attributes, producers_of
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.rounding import LEAST, Rounding

MIGRATED = 0.75
"""SmoothQuant's α: how much of a channel's size its weights take over. Of 0, 0.5, 0.75 and 1 it
gave the best pictures of the built-in model."""
LEAST_GAIN = 4
"""By how much less the square of an error has to be for a division that takes time itself."""
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
    dtype : dtype
        Of the numbers that it multiplies.
    """

    node: onnx.NodeProto
    stored: str
    moves: tuple[onnx.NodeProto, ...]
    axis: int
    dtype: np.dtype[Any]

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
        kind = stored[name].data_type
        for move in moves:
            kind = attributes(move).get("to", kind)
        yield Product(node, name, tuple(moves), axis, helper.tensor_dtype_to_np_dtype(kind))


def quantize_graph(
    model: onnx.ModelProto,
    extremes: Mapping[str, NDArray[np.float32]],
    weight_of: Callable[[str], Array],
    keep: Callable[[str], bool],
    rounding: Rounding,
) -> int:
    """Rewrite products to eight bits, in place; their weights go into the graph.

    Channels that are much larger than others are divided, and the weight's rows multiplied, before
    either is rounded (Xiao et al. 2023, "SmoothQuant", arXiv 2211.10438).

    Parameters
    ----------
    model : ModelProto
        A graph of float32 or float16.
    extremes : mapping
        Smallest and largest number of each channel of what products take, [2, channels], by tensor.
    weight_of : callable
        Returns a stored weight by its name.
    keep : callable
        Whether the product of a stored weight stays as it is, by the weight's name.
    rounding : Rounding
        The form of the others.

    Returns
    -------
    int
        The number of products that were rewritten.
    """
    graph = model.graph
    chosen = {
        id(each.node): each
        for each in products(graph)
        if each.node.op_type in rounding.operators and not keep(each.stored)
    }
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
                divisors[taken] = None
                if rounding.divides:
                    divisors[taken] = _divisors(
                        extremes[taken], together[taken], weight_of, rounding
                    )
                nodes += _round(graph, found, extremes[taken], divisors[taken], rounding)
            weight, divisor = found.weight(weight_of(found.stored)), divisors[taken]
            if divisor is not None:
                weight = weight * _along(divisor, found.taken_axis, weight.ndim)
            nodes.append(_store(graph, found, weight, rounding))
            node.input[0], node.input[1] = f"{taken}:q", nodes[-1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    keep_needed(graph)
    return len(chosen)


def _divisors(
    extremes: NDArray[np.float32],
    together: list[Product],
    weight_of: Callable[[str], Array],
    rounding: Rounding,
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
    before = rounding.width(extremes) ** 2 * squares.sum()
    after = rounding.width(extremes / divisors) ** 2 * (divisors.astype(np.float64) ** 2 @ squares)
    return divisors if before > LEAST_GAIN * after else None


def _round(
    graph: onnx.GraphProto,
    product: Product,
    extremes: NDArray[np.float32],
    divisor: NDArray[np.float32] | None,
    rounding: Rounding,
) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that round what flows in to levels, of which one is zero."""
    name = rounded = product.taken
    if divisor is not None:
        ndim = {"Conv": 4, "MatMul": 3, "Gemm": 2}[product.node.op_type]
        factors = _along(np.float32(1) / divisor, 1 if ndim == 4 else ndim - 1, ndim)
        factors = factors.astype(product.dtype)
        graph.initializer.append(numpy_helper.from_array(factors, f"{name}:factors"))
        rounded = f"{name}:even"
        yield helper.make_node("Mul", [name, f"{name}:factors"], [rounded])
        extremes = extremes / divisor
    scale, zero = rounding.of_taken(extremes, product.dtype)
    constants = [f"{name}:scale"]
    graph.initializer.append(numpy_helper.from_array(scale, constants[0]))
    if zero is not None:
        constants.append(f"{name}:zero")
        graph.initializer.append(numpy_helper.from_array(zero, constants[1]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(rounding.taken))
    levels = f"{name}:levels"
    yield helper.make_node("QuantizeLinear", [rounded, *constants], [levels], output_dtype=kind)
    yield helper.make_node("DequantizeLinear", [levels, *constants], [f"{name}:q"])


def _store(
    graph: onnx.GraphProto, product: Product, value: NDArray[np.float32], rounding: Rounding
) -> onnx.NodeProto:
    """Add a weight in eight bits, and return the node that reads it."""
    numbers, scale = rounding.of_weight(value, product.axis, product.dtype)
    name = f"{product.stored}:{rounding.precision}:{product.node.output[0]}"
    graph.initializer.append(numpy_helper.from_array(numbers, name))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}:scale"))
    return helper.make_node(
        "DequantizeLinear", [name, f"{name}:scale"], [f"{name}:q"], axis=product.axis
    )


def _along(values: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    """Return a vector as an array whose other axes are 1."""
    return values.reshape([-1 if each == axis else 1 for each in range(ndim)])
