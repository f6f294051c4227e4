"""Let a network take the factors of LoRAs as inputs: y + (x · down) · up beside every layer.

Rules that rewrite a layer need not know of the path beside it; one that takes a weight apart says
under which names its parts go on.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from bksdm.engines.errors import EngineError
from bksdm.engines.lora_inputs import covers, factor_names, layer_of
from bksdm.optimize.graph import attributes, consumers_of, producers_of
from bksdm.optimize.writer import Writer

Factors = dict[str, tuple[str, str]]
"""Names of the two factors, by the name under which a layer reads its weight."""
LAYERS = ("MatMul", "Gemm", "Conv")
_SPATIAL = ("strides", "pads", "dilations", "kernel_shape", "auto_pad")


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
            shapes: list[list[int | str]] = [[rank, dims[1] * dims[2] * dims[3]], [dims[0], rank]]
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
    if layer.op_type != "Conv":
        inner = w.add("MatMul", f"{output}:down", source, down)
        return w.add("MatMul", f"{output}:up", inner, up)
    settings = attributes(layer)
    kernel = settings["kernel_shape"]
    # The channels that come in are what is left of a row.
    shape = w.whole(0, -1, *kernel)
    spatial = {name: settings[name] for name in _SPATIAL if name in settings}
    filters = w.add("Reshape", f"{output}:filters", down, shape)
    inner = w.add("Conv", f"{output}:down", source, filters, **spatial)
    pixels = w.add("Reshape", f"{output}:pixels", up, w.whole(0, -1, 1, 1))
    return w.add("Conv", f"{output}:up", inner, pixels, kernel_shape=[1, 1])


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
