"""Weights of a graph that are stored in its type, or in another one that a ``Cast`` widens.

A bundle that shares the checkpoint's float16 file with diffusers has the latter.
"""

from __future__ import annotations

import onnx


def stored_sizes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the sizes of all weights, and of what is cast from one."""
    sizes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
    return sizes


def put_casts_first(graph: onnx.GraphProto) -> None:
    """Bring what is cast from weights to the beginning, so that any node may read it, in place."""
    stored = stored_sizes(graph)
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]
    names = {node.output[0] for node in casts}
    others = [node for node in graph.node if names.isdisjoint(node.output)]
    del graph.node[:]
    graph.node.extend([*casts, *others])
