"""Read an ONNX graph without its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
from onnx import helper

from bksdm.engines.errors import BundleError
from bksdm.engines.protocol import TensorSpec

FLOATS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


def load_graph(model: Path) -> onnx.ModelProto:
    """Read a graph without its weights.

    Raises
    ------
    BundleError
        The file is missing, or no ONNX graph.
    """
    if not model.is_file():
        raise BundleError(f"{model}: missing, or no regular file")
    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise BundleError(f"{model}: not an ONNX file") from error


def describe_graph(model: Path) -> dict[str, Any]:
    """Return parameters (float values in named weights), dtype, opset and node count of a graph.

    Raises
    ------
    BundleError
        The file is no ONNX graph.
    """
    proto = load_graph(model)
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


def graph_inputs(model: Path) -> Mapping[str, TensorSpec]:
    """Return type and shape of every input of a graph.

    Raises
    ------
    BundleError
        The file is no ONNX graph.
    """
    return tensor_specs(load_graph(model).graph.input)


def tensor_specs(values: Iterable[onnx.ValueInfoProto]) -> Mapping[str, TensorSpec]:
    """Return type and shape of a graph's inputs or outputs."""
    specs = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(
            d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim
        )
        specs[value.name] = TensorSpec(helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)
    return MappingProxyType(specs)


def _is_weight(name: str) -> bool:
    """Tell a parameter from a folded constant: it carries its module's path.

    torch's older exporter, which Optimum uses, calls a parameter that it reshaped ``onnx::…``.
    """
    return "." in name or name.startswith("onnx::")
