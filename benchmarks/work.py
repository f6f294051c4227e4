"""Count floating-point operations and bytes of a network from its graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_node_outputs

from bksdm.engines.errors import EngineError
from bksdm.optimize.graph import load_graph

KINDS = {
    "Conv": "convolution",
    "MatMul": "matrix product",
    "Gemm": "matrix product",
    "Attention": "attention",
}
OTHER = "other"
# Nodes that copy values, or only name them anew.
MOVES = {
    "Cast",
    "Concat",
    "Constant",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
BYTES: dict[int, int] = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}


@dataclass(frozen=True)
class NetworkWork:
    """Least operations and bytes of one run of a network.

    Attributes
    ----------
    flops
        By kind; a multiplication and its addition are two. Convolutions count as direct ones, and
        ``other`` is one operation per value that any other node computes.
    weight_bytes
        Each weight is read once.
    activation_bytes
        What convolutions, products and attention read and write beside weights, once each; a
        backend that keeps some of it in a cache does with less.
    """

    flops: Mapping[str, int]
    weight_bytes: int
    activation_bytes: int


def count_work(model: Path, sizes: Mapping[str, int]) -> NetworkWork:
    """Count the work of a graph for concrete sizes.

    Parameters
    ----------
    model : Path
        ``model.onnx``; its weights are not read.
    sizes : mapping
        A number for each symbol in the inputs' shapes, such as ``batch``.

    Raises
    ------
    BundleError
        The file is missing, or no ONNX graph.
    EngineError
        The shape of an operand does not follow from the inputs'.
    """
    proto = load_graph(model)
    shapes, kinds = _shapes(proto, sizes)
    weights = {w.name: w for w in proto.graph.initializer}
    flops = {**dict.fromkeys(sorted(set(KINDS.values())), 0), OTHER: 0}
    moved = 0
    for node in proto.graph.node:
        if node.op_type not in KINDS or node.domain:
            flops[OTHER] += sum(
                math.prod(shapes[name])
                for name in node.output
                if kinds.get(name) in BYTES and name in shapes and node.op_type not in MOVES
            )
            continue
        used = [name for name in (*node.input, node.output[0]) if name]
        missing = [name for name in used if name not in shapes]
        if missing:
            raise EngineError(f"{model}: the shape of {missing[0]} does not follow from the inputs")
        flops[KINDS[node.op_type]] += _flops(node, shapes)
        moved += sum(
            math.prod(shapes[name]) * BYTES.get(kinds[name], 8)
            for name in used
            if name not in weights
        )
    stored = sum(math.prod(w.dims) * BYTES.get(w.data_type, 8) for w in weights.values())
    return NetworkWork(flops, stored, moved)


def _flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    out = shapes[node.output[0]]
    if node.op_type == "Conv":
        # Weights are [out, in / group, kernel…]: every output value is a sum over the rest.
        return 2 * math.prod(out) * math.prod(shapes[node.input[1]][1:])
    if node.op_type in ("MatMul", "Gemm"):
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        left = shapes[node.input[0]]
        inner = left[0] if settings.get("transA") else left[-1]
        return 2 * math.prod(out) * inner
    queries, keys = shapes[node.input[0]], shapes[node.input[1]]
    # Q Kᵀ and its product with V, for [batch, heads, tokens, width].
    return 4 * math.prod(queries) * keys[-2]


def _shapes(
    proto: onnx.ModelProto, sizes: Mapping[str, int]
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return shape and element type of every tensor, node by node.

    onnx's inference over a whole graph loses sizes that are computed from other sizes; here small
    integer tensors are computed, and handed to the inference of the nodes that need them.
    """
    (opset,) = (entry.version for entry in proto.opset_import if not entry.domain)
    graph = proto.graph
    known = {w.name: w for w in graph.initializer if _is_size(w)}
    types = {w.name: helper.make_tensor_type_proto(w.data_type, w.dims) for w in graph.initializer}
    for value in graph.input:
        tensor = value.type.tensor_type
        axes = [d.dim_value or _size(d.dim_param, sizes) for d in tensor.shape.dim]
        types[value.name] = helper.make_tensor_type_proto(tensor.elem_type, axes)
    for node in graph.node:
        given = [name for name in node.input if name]
        if node.op_type == "GroupNormalization":
            # onnx infers no shape through it; the output's is the input's.
            types[node.output[0]] = types[given[0]]
            continue
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        found = infer_node_outputs(
            schema,
            node,
            {name: types[name] for name in given},
            {name: known[name] for name in given if name in known},
            opset_imports=list(proto.opset_import),
            ir_version=proto.ir_version,
        )
        types |= found
        known |= _computed(node, types, known, opset)
    shapes = {
        name: tuple(d.dim_value for d in t.tensor_type.shape.dim)
        for name, t in types.items()
        if t.tensor_type.HasField("shape")
        and all(d.HasField("dim_value") for d in t.tensor_type.shape.dim)
    }
    return shapes, {name: t.tensor_type.elem_type for name, t in types.items()}


def _is_size(weight: onnx.TensorProto) -> bool:
    whole = weight.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    inline = weight.data_location != onnx.TensorProto.EXTERNAL
    # Scales of a Resize are four floating-point numbers.
    return inline and (whole or math.prod(weight.dims) <= 4)


def _computed(
    node: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    known: Mapping[str, onnx.TensorProto],
    opset: int,
) -> dict[str, onnx.TensorProto]:
    """Return the outputs of a node whose input values, or only their sizes, are known."""
    given = [name for name in node.input if name]
    if node.op_type == "Shape":
        axes = [d.dim_value for d in types[given[0]].tensor_type.shape.dim]
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        values = np.array(axes[settings.get("start", 0) : settings.get("end")], np.int64)
        return {node.output[0]: numpy_helper.from_array(values, node.output[0])}
    if not all(name in known for name in given):
        return {}
    body = helper.make_graph(
        [node],
        "node",
        [],
        [helper.make_value_info(name, types[name]) for name in node.output],
        [known[name] for name in dict.fromkeys(given)],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)])
    results = ReferenceEvaluator(model).run(None, {})
    return {
        name: numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(node.output, results, strict=True)
    }


def _size(symbol: str, sizes: Mapping[str, int]) -> int:
    factor, _, name = symbol.rpartition("*")
    if name not in sizes:
        raise EngineError(f"no size was given for {name}; given: {', '.join(sizes)}")
    return int(factor or 1) * sizes[name]
