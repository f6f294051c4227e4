"""Write group normalisation as the operators that ONNX Runtime's CUDA provider has kernels for.

It has none for ``GroupNormalization`` and inlines its definition: a dozen kernels and casts. Its
own ``GroupNorm`` takes SiLU along, ``SkipGroupNorm`` the sum before it too; both want channels last
and γ and β in float32 (ONNX Runtime's ``docs/ContribOperators.md``). Not yet run on a GPU.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from bksdm.optimize.graph import attributes, producers_of
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.stored_weights import put_casts_first, stored_sizes
from bksdm.optimize.writer import Writer

DOMAIN = "com.microsoft"
# Two channels of a group per thread, and a group in one block of threads (group_norm_impl.cu).
PER_THREAD, MOST_PER_GROUP = 2, 512


def has_kernel(channels: int, groups: int) -> bool:
    """Return whether the CUDA kernel takes so many channels in so many groups."""
    size, rest = divmod(channels, groups)
    return rest == 0 and size % PER_THREAD == 0 and size <= MOST_PER_GROUP


def write_group_norm(w: Writer, name: str, x: str, node: onnx.NodeProto) -> str:
    """Write a ``GroupNormalization`` of ``x``, [batch, height, width, channels]."""
    settings = attributes(node)
    gamma, beta = (
        w.once("Cast", f"{vector}:float32", vector, to=TensorProto.FLOAT)
        for vector in node.input[1:]
    )
    return w.add(
        "GroupNorm",
        name,
        x,
        gamma,
        beta,
        domain=DOMAIN,
        groups=settings["num_groups"],
        epsilon=settings.get("epsilon", 1e-5),
        activation=0,
        channels_last=1,
    )


def fuse_group_norm(model: onnx.ModelProto) -> tuple[int, int]:
    """Take SiLU into the ``GroupNorm`` before it, and a sum into the one after it, in place.

    The sum is one of two pictures, or of a picture and a vector per image, which an ``Unsqueeze``
    has brought to [batch, 1, 1, channels].

    Returns
    -------
    tuple of int
        Number of activations, and of sums.
    """
    graph = model.graph
    activated = _fuse_activations(graph)
    summed = _fuse_sums(graph)
    keep_needed(graph)
    return activated, summed


def _fuse_activations(graph: onnx.GraphProto) -> int:
    """Replace y = GroupNorm(x), y · sigmoid(y) where nothing else reads y."""
    readers = _readers(graph)
    fused = 0
    for node in graph.node:
        if node.op_type != "GroupNorm":
            continue
        (name,) = node.output
        kinds = sorted(reader.op_type for reader in readers.get(name, []))
        if kinds != ["Mul", "Sigmoid"]:
            continue
        product, gate = sorted(readers[name], key=lambda reader: reader.op_type)
        if sorted(product.input) != sorted((name, gate.output[0])):
            continue
        if readers.get(gate.output[0]) != [product]:
            continue
        next(a for a in node.attribute if a.name == "activation").i = 1
        node.output[0] = product.output[0]
        product.output[0] = f"{product.output[0]}:unused"
        fused += 1
    return fused


def _fuse_sums(graph: onnx.GraphProto) -> int:
    """Replace s = x + skip, GroupNorm(s); s stays an output where something else reads it."""
    readers = _readers(graph)
    producers = producers_of(graph)
    stored = stored_sizes(graph)
    moved: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type != "GroupNorm":
            continue
        total = producers.get(node.input[0])
        if total is None or total.op_type != "Add" or total.output[0] in moved:
            continue
        if not stored.keys().isdisjoint(total.input):
            continue
        spread = [name for name in total.input if _is_spread(producers.get(name))]
        if len(spread) == 2:
            continue
        skip = spread[0] if spread else total.input[1]
        x = next((name for name in total.input if name != skip), skip)
        if spread:
            skip = producers[skip].input[0]
        others = [reader for reader in readers[total.output[0]] if reader is not node]
        kept = total.output[0] if others or total.output[0] in _outputs(graph) else ""
        node.op_type = "SkipGroupNorm"
        node.input[:] = [x, *node.input[1:], skip]
        node.output[:] = [node.output[0], kept] if kept else [node.output[0]]
        moved[total.output[0]] = node
    nodes = [node for node in graph.node if not any(node is other for other in moved.values())]
    # Where the sum was, for all that reads it comes later.
    placed = [moved.get(node.output[0], node) for node in nodes]
    del graph.node[:]
    graph.node.extend(placed)
    put_casts_first(graph)
    return len(moved)


def _is_spread(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "Unsqueeze"


def _outputs(graph: onnx.GraphProto) -> set[str]:
    return {value.name for value in graph.output}


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers
