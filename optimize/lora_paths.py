"""Let a network take the factors of LoRAs as inputs: y + (x · down) · up beside every layer.

Rules that rewrite a layer need not know of the path beside it; one that takes a weight apart says
under which names its parts go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper

from bksdm.engines.errors import EngineError
from bksdm.engines.lora_inputs import covers, factor_names, layer_of
from bksdm.optimize.graph import attributes, consumers_of, producers_of
from bksdm.optimize.writer import Writer

Factors = dict[str, tuple[str, str]]
"""Names of the two factors, by the name under which a layer reads its weight."""
LAYERS = ("MatMul", "Gemm", "Conv")
_LAST = 2**31 - 1


def declare_factors(model: onnx.ModelProto, scope: str) -> Factors:
    """Give a graph the inputs of a scope, in place.

    Parameters
    ----------
    model : ModelProto
        A UNet or text encoder, its weights named as `bksdm export` does.
    scope : str
        Of :mod:`bksdm.engines.lora_inputs`, which has names and shapes of the inputs.

    Raises
    ------
    EngineError
        No layer of it can be told by its name.
    """
    graph = model.graph
    producers = producers_of(graph)
    stored = {weight.name: weight for weight in graph.initializer}
    factors: Factors = {}
    named = False
    for node in graph.node:
        layer = layer_of(node.input[1]) if node.op_type in LAYERS else None
        weight = None if layer is None else _weight(node.input[1], producers, stored)
        if layer is None or weight is None:
            continue
        named = True
        if not covers(scope, layer):
            continue
        down, up = factors[node.input[1]] = factor_names(layer)
        dims, kind = weight
        # Each its own: equal names would say that the ranks of all layers are equal.
        rank = f"{layer}.rank"
        if node.op_type == "Conv":
            shapes: list[list[int | str]] = [[dims[2] * dims[3], rank, dims[1]], [dims[0], rank]]
        else:
            into, out = dims[::-1] if attributes(node).get("transB", 0) else dims
            shapes = [[into, rank], [rank, out]]
        graph.input.extend(
            helper.make_tensor_value_info(name, kind, shape)
            for name, shape in zip((down, up), shapes, strict=True)
        )
    if not named:
        raise EngineError(
            "a LoRA needs a network whose layers are named; export the bundle with `bksdm export`"
        )
    return factors


def add_paths(model: onnx.ModelProto, factors: Mapping[str, tuple[str, str]]) -> None:
    """Write the path beside every layer that reads one of the weights, in place."""
    graph = model.graph
    producers, consumers = producers_of(graph), consumers_of(graph)
    biases = {weight.name for weight in graph.initializer if len(weight.dims) == 1}
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    pending: dict[str, onnx.NodeProto] = {}
    w = Writer()
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        w.nodes.append(node)
        if node.op_type in LAYERS and node.input[1] in factors:
            end = _biased(node, consumers, producers, biases)
            pending[end] = node
        layer = pending.pop(node.output[0], None)
        if layer is None:
            continue
        plain = node.output[0]
        added = f"{plain}:lora"
        if plain in outputs:
            node.output[0], added = f"{plain}:plain", plain
        else:
            renamed[plain] = added
        source = _exact(layer.input[0], producers)
        delta = _path(w, layer, source, factors[layer.input[1]], added)
        w.add("Add", added, node.output[0], delta)
    w.store(graph)


def _path(
    w: Writer, layer: onnx.NodeProto, source: str, names: tuple[str, str], output: str
) -> str:
    """Write (x · down) · up, and return its name."""
    down, up = names
    settings = attributes(layer)
    if settings.get("transB"):
        return _path_of_rows(w, source, names, output)
    if layer.op_type != "Conv":
        inner = w.add("MatMul", f"{output}:down", source, down)
        return w.add("MatMul", f"{output}:up", inner, up)
    return _path_of_pixels(w, layer, source, names, output)


def _path_of_pixels(
    w: Writer, layer: onnx.NodeProto, source: str, names: tuple[str, str], output: str
) -> str:
    """Write the path of a convolution: products of pixels, and a sum of them for every tap.

    Ranks are few, so little is moved; and no engine has to run a convolution whose number of
    channels it does not know, which OpenVINO refuses.
    """
    down, up = names
    settings = attributes(layer)
    kernel = settings["kernel_shape"]
    into = w.add("Reshape", f"{output}:pixels", source, w.whole(0, 0, -1))
    rows = w.add("Flatten", f"{output}:rows", down, axis=2)
    products = w.add("MatMul", f"{output}:products", rows, into)
    if kernel != [1, 1]:
        products = _sum_of_taps(w, settings, source, products, output)
    pixels = w.add("MatMul", f"{output}:changed", up, products)
    shape = w.add("Shape", f"{output}:shape", layer.output[0])
    return w.add("Reshape", f"{output}:up", pixels, shape)


def _sum_of_taps(
    w: Writer, settings: Mapping[str, Any], source: str, products: str, output: str
) -> str:
    """Write the sum of each tap's products, those of other pixels: [batch, rank, pixels]."""
    high, wide = settings["kernel_shape"]
    top, left, bottom, right = settings.get("pads", [0] * 4)
    sides = w.add("Shape", f"{output}:sides", source, start=2)
    shape = w.add("Concat", f"{output}:taps_shape", w.whole(0, high * wide, -1), sides, axis=0)
    taps = w.add("Reshape", f"{output}:taps", products, shape)
    edges = w.whole(0, 0, 0, top, left, 0, 0, 0, bottom, right)
    padded = w.add("Pad", f"{output}:padded", taps, edges)
    steps = w.whole(1, *settings.get("strides", [1, 1]))
    shifted = []
    for tap in range(high * wide):
        row, column = divmod(tap, wide)
        # Up to as many from the end as taps come after this one.
        ends = w.whole(tap + 1, row - high + 1 or _LAST, column - wide + 1 or _LAST)
        begins = w.whole(tap, row, column)
        shifted.append(
            w.add("Slice", f"{output}:tap{tap}", padded, begins, ends, w.whole(1, 3, 4), steps)
        )
    total = w.add("Sum", f"{output}:sum", *shifted)
    alone = w.add("Squeeze", f"{output}:ranks", total, w.whole(1))
    return w.add("Reshape", f"{output}:inner", alone, w.whole(0, 0, -1))


def _path_of_rows(w: Writer, source: str, names: tuple[str, str], output: str) -> str:
    """Write the path of a layer that sees one row per picture, as those of the timestep do.

    ONNX Runtime sums the products of a single row in another order than those of several, so that a
    picture would depend on whether others are beside it. All rows are there twice.
    """
    twice = w.add("Concat", f"{output}:twice", source, source, axis=0)
    inner = w.add("MatMul", f"{output}:down", twice, names[0])
    both = w.add("MatMul", f"{output}:both", inner, names[1])
    count = w.add("Shape", f"{output}:count", source, start=0, end=1)
    return w.add("Slice", f"{output}:up", both, w.whole(0), count, w.whole(0))


def _biased(
    node: onnx.NodeProto,
    consumers: Mapping[str, list[onnx.NodeProto]],
    producers: Mapping[str, onnx.NodeProto],
    biases: set[str],
) -> str:
    """Return what a layer makes: of a product, with the bias that is added to it."""
    readers = consumers.get(node.output[0], [])
    if node.op_type == "MatMul" and len(readers) == 1 and readers[0].op_type == "Add":
        (other,) = (name for name in readers[0].input if name != node.output[0])
        cast = producers.get(other)
        if other in biases or (cast is not None and cast.input[0] in biases):
            return str(readers[0].output[0])
    return str(node.output[0])


def _exact(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """Return a tensor as it was before it was quantised for a layer."""
    node = producers.get(name)
    while node is not None and node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        name = node.input[0]
        node = producers.get(name)
    return name


def _weight(
    name: str,
    producers: Mapping[str, onnx.NodeProto],
    stored: Mapping[str, onnx.TensorProto],
) -> tuple[list[int], int] | None:
    """Return dims and type of a weight as its layer reads it; None if it is not stored so."""
    if name in stored:
        return list(stored[name].dims), stored[name].data_type
    node = producers.get(name)
    if node is None or node.op_type not in ("Cast", "Transpose", "DequantizeLinear"):
        return None
    found = _weight(node.input[0], producers, stored)
    if found is None:
        return None
    dims, kind = found
    if node.op_type == "Transpose":
        return [dims[axis] for axis in attributes(node)["perm"]], kind
    if node.op_type == "DequantizeLinear":
        return dims, stored[node.input[1]].data_type
    return dims, attributes(node)["to"]
