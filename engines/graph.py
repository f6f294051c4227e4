"""What an ONNX graph says of itself, read without its weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx

from bksdm.engines.errors import BundleError

FLOATS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


def describe_graph(model: Path) -> dict[str, Any]:
    """Return parameters (float values in named weights), dtype, opset and node count of a graph.

    Raises
    ------
    BundleError
        The file is no ONNX graph.
    """
    proto = _load(model)
    weights = [w for w in proto.graph.initializer if w.data_type in FLOATS and _is_weight(w.name)]
    counts: dict[str, int] = {}
    for weight in weights:
        name = FLOATS[weight.data_type]
        counts[name] = counts.get(name, 0) + math.prod(weight.dims)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    return {
        "parameters": sum(counts.values()),
        "dtype": max(counts, key=counts.__getitem__) if counts else "none",
        "opset": opsets.get("ai.onnx", 0),
        "nodes": len(proto.graph.node),
    }


def graph_inputs(model: Path) -> dict[str, list[int | str]]:
    """Return the shape of every input; what is free in it is a name.

    Raises
    ------
    BundleError
        The file is no ONNX graph.
    """
    return {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in _load(model).graph.input
    }


def _load(model: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise BundleError(f"{model}: not an ONNX file") from error


def _is_weight(name: str) -> bool:
    """Tell a parameter from a folded constant: it carries its module's path.

    torch's older exporter, which Optimum uses, calls a parameter that it reshaped ``onnx::…``.
    """
    return "." in name or name.startswith("onnx::")
