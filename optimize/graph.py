"""Read an ONNX graph without its weights, and look up what lies in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from bksdm.engines.errors import BundleError


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


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes by name."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def producers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor, by the tensor's name."""
    return {name: node for node in graph.node for name in node.output}


def consumers_of(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that take each tensor, by the tensor's name."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found
