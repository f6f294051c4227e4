"""Simulate float16 rounding in a network, on a machine without float16.

ONNX Runtime's CPU provider computes float16 graphs in float32 and drops the roundings between its
nodes: a value beyond 65504 in the middle of the graph goes unnoticed there, and is infinite on a
GPU. Here every tensor is rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LARGEST = float(np.finfo(np.float16).max)
"""65504; float16 rounds anything from 65520 on to infinity."""

MOVES = {
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
"""Operators that only move values."""


def emulate_half(model: onnx.ModelProto) -> None:
    """Make a float16 graph compute in float32 and round every tensor to float16, in place.

    That is what tensor cores do: products and sums in float32, results stored in float16. A GPU
    that fuses nodes rounds less often; one node's inside (attention, normalisation) is not rounded
    here either. Inputs and outputs keep their types.

    Parameters
    ----------
    model : ModelProto
        Operators of the standard domain only; weights may lie in an external file.
    """
    types = tensor_types(model)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    renamed: dict[str, str] = {}
    for value in (*graph.input, *graph.initializer):
        if types[value.name] == TensorProto.FLOAT16:
            renamed[value.name] = f"{value.name}:float"
            nodes.append(_cast(value.name, renamed[value.name], TensorProto.FLOAT))
    results = {value.name for value in graph.output}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        half = [n for n in node.output if n and types[n] == TensorProto.FLOAT16]
        _retype(node)
        nodes.append(node)
        for name in half:
            position = list(node.output).index(name)
            node.output[position] = renamed[name] = f"{name}:float"
            if node.op_type not in MOVES:
                node.output[position] = f"{name}:exact"
                nodes.append(_cast(f"{name}:exact", f"{name}:half", TensorProto.FLOAT16))
                nodes.append(_cast(f"{name}:half", renamed[name], TensorProto.FLOAT))
            if name in results:
                nodes.append(_cast(renamed[name], name, TensorProto.FLOAT16))
    del graph.node[:]
    graph.node.extend(nodes)


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return every tensor's element type, a ``TensorProto.DataType``.

    From the operators' schemas: onnx's own inference stops at GroupNormalization.
    """
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {value.name: value.data_type for value in graph.initializer}
    for node in graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        variables = {
            _formal(schema.inputs, i).type_str: types[name]
            for i, name in enumerate(node.input)
            if name
        }
        for i, name in enumerate(node.output):
            stated = _formal(schema.outputs, i).type_str
            types[name] = (
                variables[stated] if stated in variables else _stated(node, schema, stated)
            )
    return types


def _formal(parameters: Any, index: int) -> Any:
    """Return the parameter at a position; the last one may be variadic."""
    return parameters[min(index, len(parameters) - 1)]


def _stated(node: onnx.NodeProto, schema: Any, stated: str) -> int:
    """Return an output's type that does not follow from the inputs."""
    for attribute in node.attribute:
        if attribute.name in ("to", "dtype"):
            return int(attribute.i)
        if attribute.type == onnx.AttributeProto.TENSOR:
            return int(attribute.t.data_type)
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    (only,) = allowed.get(stated, [stated])
    return int(TensorProto.DataType.Value(only[len("tensor(") : -1].upper()))


def _cast(name: str, to_name: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to_name], to=kind)


def _retype(node: onnx.NodeProto) -> None:
    """Change float16 in a node's attributes to float32."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            attribute.i = TensorProto.FLOAT if attribute.i == TensorProto.FLOAT16 else attribute.i
        elif attribute.t.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))
