"""Rewrite ONNX ``Attention`` nodes to the form that a backend runs best.

ONNX Runtime computes opset 23 ``Attention`` with the whole score matrix in memory; its contrib
operator works in tiles: 4.4 GB against 3.4 GB resident on full-size BK-SDM-Small at 512×512.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bksdm.optimize.graph import attributes, consumers_of, producers_of
from bksdm.optimize.writer import declare_domains

# Attributes that change nothing at these values, which the exporter writes out.
_DEFAULTS = {"qk_matmul_output_mode": 0, "softcap": 0.0}


def fuse_attention(model: onnx.ModelProto, widest: int | None = None) -> int:
    """Replace ``Reshape → Transpose → Attention → Transpose → Reshape`` chains in place.

    Each input of ``MultiHeadAttention`` is ``[batch, sequence, heads · head_dim]``, which is what
    stood before the Reshape. Chains of any other form are left alone.

    Parameters
    ----------
    model : ModelProto
        Opset 23.
    widest : int, optional
        Head width up to which the operator has kernels; a single head that is wider becomes MatMul,
        Softmax and MatMul.

    Returns
    -------
    int
        Number of fused nodes.
    """
    graph = model.graph
    producers = producers_of(graph)
    consumers = consumers_of(graph)
    shapes = {value.name: value for value in graph.initializer}
    kept = {value.name for value in graph.output}
    fused = 0
    for node in list(graph.node):
        if node.op_type != "Attention" or node.domain:
            continue
        settings = attributes(node)
        scale, causal = settings.pop("scale", None), settings.pop("is_causal", 0)
        if any(_DEFAULTS.get(name) != value for name, value in settings.items()):
            continue
        if len([name for name in node.input if name]) != 3:
            continue
        splits = [_split(producers, name) for name in node.input[:3]]
        merge = _merge(consumers, kept, node.output[0])
        if merge is None or any(split is None for split in splits):
            continue
        found = {_heads(split, shapes, producers) for split in splits if split is not None}
        sizes = {size for size in found if size is not None}
        if len(found) != 1 or len(sizes) != 1:
            continue
        transpose, reshape = merge
        heads, width = sizes.pop()
        inputs = [split.input[0] for split in splits if split is not None]
        if widest is not None and width > widest and heads == 1 and not causal:
            root = np.sqrt(1 / np.sqrt(width) if scale is None else scale)
            replacements = _products(graph, inputs, reshape.output[0], root, [0, 2, 1])
        else:
            stated: dict[str, Any] = {"num_heads": heads}
            if scale is not None:
                stated["scale"] = scale
            if causal:
                stated["unidirectional"] = 1
            replacements = [
                helper.make_node(
                    "MultiHeadAttention",
                    inputs,
                    [reshape.output[0]],
                    name=node.name,
                    domain="com.microsoft",
                    **stated,
                )
            ]
        position = next(i for i, other in enumerate(graph.node) if other is reshape)
        for offset, replacement in enumerate(replacements):
            graph.node.insert(position + offset, replacement)
        for dead in (node, transpose, reshape):
            graph.node.remove(dead)
        fused += 1
    if fused:
        declare_domains(model, "com.microsoft")
        _drop_unused(graph)
    return fused


def decompose_attention(model: onnx.ModelProto, keep: Callable[[int], bool]) -> int:
    """Write attention as MatMul, Softmax and MatMul where a backend has no kernel for it, in place.

    softmax((√s · Q) (√s · K)ᵀ) V, scaled before the product.

    Parameters
    ----------
    model : ModelProto
        Its nodes have no mask and a head width that a constant Reshape states, or are left alone.
    keep : callable
        Returns whether the backend has a kernel for a head width.

    Returns
    -------
    int
        Number of nodes that were replaced.
    """
    graph = model.graph
    producers = producers_of(graph)
    shapes = {value.name: value for value in graph.initializer}
    replaced = 0
    for node in list(graph.node):
        if node.op_type != "Attention" or node.domain or len([n for n in node.input if n]) != 3:
            continue
        settings = attributes(node)
        split = _split(producers, node.input[0])
        size = None if split is None else _heads(split, shapes, producers)
        if size is None or keep(size[1]):
            continue
        scale = settings.get("scale", 1 / np.sqrt(size[1]))
        chain = _products(graph, node.input[:3], node.output[0], np.sqrt(scale), [0, 1, 3, 2])
        position = next(i for i, other in enumerate(graph.node) if other is node)
        graph.node.remove(node)
        for offset, part in enumerate(chain):
            graph.node.insert(position + offset, part)
        replaced += 1
    return replaced


def _products(
    graph: onnx.GraphProto, inputs: Sequence[str], name: str, root: float, order: list[int]
) -> list[onnx.NodeProto]:
    """Return softmax((√s · Q) (√s · K)ᵀ) V as nodes; √s becomes a weight of the graph.

    Scaled before the product, so that float16 does not overflow.
    """
    scale = f"{name}:root"
    # A scalar in float32, cast like the queries it multiplies.
    graph.initializer.append(numpy_helper.from_array(np.array(root, np.float32), scale))
    q, k, v = inputs
    return [
        helper.make_node("CastLike", [scale, q], [f"{scale}:cast"]),
        helper.make_node("Mul", [q, f"{scale}:cast"], [f"{name}:q"]),
        helper.make_node("Mul", [k, f"{scale}:cast"], [f"{name}:k"]),
        helper.make_node("Transpose", [f"{name}:k"], [f"{name}:kt"], perm=order),
        helper.make_node("MatMul", [f"{name}:q", f"{name}:kt"], [f"{name}:scores"]),
        helper.make_node("Softmax", [f"{name}:scores"], [f"{name}:weights"], axis=-1),
        helper.make_node("MatMul", [f"{name}:weights", v], [name]),
    ]


def _is_head_swap(node: onnx.NodeProto | None) -> bool:
    if node is None or node.op_type != "Transpose":
        return False
    return [list(a.ints) for a in node.attribute if a.name == "perm"] == [[0, 2, 1, 3]]


def _split(producers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto | None:
    """Return the Reshape to ``[batch, sequence, heads, head_dim]`` before the head swap."""
    swap = producers.get(name)
    if swap is None or not _is_head_swap(swap):
        return None
    reshape = producers.get(swap.input[0])
    return reshape if reshape is not None and reshape.op_type == "Reshape" else None


def _merge(
    consumers: dict[str, list[onnx.NodeProto]], kept: set[str], name: str
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    after = consumers.get(name, [])
    if len(after) != 1 or name in kept or not _is_head_swap(after[0]):
        return None
    last = consumers.get(after[0].output[0], [])
    if len(last) != 1 or last[0].op_type != "Reshape" or after[0].output[0] in kept:
        return None
    return after[0], last[0]


def _heads(
    split: onnx.NodeProto,
    initializers: dict[str, onnx.TensorProto],
    producers: dict[str, onnx.NodeProto],
) -> tuple[int, int] | None:
    """Return heads and head width: the last two of the four sizes of a Reshape, if constant."""
    shape, concat = initializers.get(split.input[1]), producers.get(split.input[1])
    if shape is not None and list(shape.dims) == [4]:
        sizes = numpy_helper.to_array(shape)[2:]
    elif concat is not None and concat.op_type == "Concat" and len(concat.input) == 4:
        # Sizes that depend on the picture are put together from four single ones.
        parts = [initializers.get(name) for name in concat.input[2:]]
        if any(part is None or list(part.dims) != [1] for part in parts):
            return None
        sizes = np.concatenate([numpy_helper.to_array(part) for part in parts if part is not None])
    else:
        return None
    heads, width = (int(size) for size in sizes)
    return (heads, width) if heads > 0 and width > 0 else None


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes whose outputs are no longer read."""
    needed = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
