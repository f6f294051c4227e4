"""Remove the parts of a graph that its outputs do not need."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper


def keep_needed(graph: onnx.GraphProto) -> None:
    """Remove nodes, weights and inputs, in place, that no output depends on."""
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed |= set(node.input) | _used_inside(node)
    _replace(graph.node, nodes[::-1])
    _replace(graph.initializer, [w for w in graph.initializer if w.name in needed])
    _replace(graph.input, [value for value in graph.input if value.name in needed])


def _used_inside(node: onnx.NodeProto) -> set[str]:
    """Return the names that the graphs inside a node (of If, Loop, Scan) take from outside."""
    found = set()
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        for graph in value if attribute.graphs else [value] if attribute.HasField("g") else []:
            for inner in graph.node:
                found |= set(inner.input) | _used_inside(inner)
    return found


def _replace(field: Any, kept: list[Any]) -> None:
    del field[:]
    field.extend(kept)
