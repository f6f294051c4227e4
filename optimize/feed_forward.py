"""Compute gated feed-forward networks in tiles of tokens.

A transformer block ends with y = (h ⊙ gelu(g)) W₂ + b₂ where [h, g] = x W₁ + b₁ (GEGLU, Shazeer
2020, arXiv 2002.05202). Between its products stand the largest tensors of a UNet, eight times as
wide as its channels, which are copied to be taken apart. Here h and g are products of their own,
and few tokens at a time pass through all of it, so that what is between stays in a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper

from bksdm.optimize.graph import consumers_of, producers_of
from bksdm.optimize.sides import picture_sides
from bksdm.optimize.writer import Writer

# Tokens per tile, of both halves of guidance together: 5 MB each of h and g of 320 channels.
TOKENS = 1024


def split_feed_forward(
    model: onnx.ModelProto, side: int, factors: dict[str, tuple[str, str]] | None = None
) -> int:
    """Replace ``MatMul → Add → Split → Gelu → Mul → MatMul → Add`` in place.

    Parameters
    ----------
    model : ModelProto
        Still runs any batch, height and width afterwards.
    side : int
        Height and width of its input that the number of tiles is chosen for.
    factors : dict, optional
        Of :mod:`~bksdm.optimize.lora_paths`; gains those of the halves of W₁.

    Returns
    -------
    int
        Number of replaced networks.
    """
    graph = model.graph
    found = {gate.output: gate for gate in find_feed_forward(graph)}
    sides = picture_sides(model, side)
    dead = {name for gate in found.values() for name in gate.replaced}
    written = Writer()
    for node in graph.node:
        gate = found.get(node.output[0])
        if gate is not None:
            if factors and gate.up[0] in factors:
                factors |= _factors_of_halves(written, gate, *factors[gate.up[0]])
            _write(written, gate, max(1, 2 * sides.get(gate.x, 0) ** 2 // TOKENS))
        elif node.output[0] not in dead:
            written.nodes.append(node)
    written.store(graph)
    return len(found)


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward network.

    Attributes
    ----------
    x, output : str
        What it reads and makes.
    up, down : tuple of str
        Names of weight and bias of its two products.
    width : int
        Of h and of g.
    replaced : tuple of str
        What is between: x W₁, the same with its bias, h, g, gelu(g), h ⊙ gelu(g), that times W₂.
    """

    x: str
    up: tuple[str, str]
    down: tuple[str, str]
    output: str
    width: int
    replaced: tuple[str, ...]


def find_feed_forward(graph: onnx.GraphProto) -> list[FeedForward]:
    """Return all gated feed-forward networks whose inside nothing else reads."""
    weights = {weight.name: weight for weight in graph.initializer}
    producers = producers_of(graph)
    consumers = consumers_of(graph)

    def only(name: str, kind: str) -> onnx.NodeProto | None:
        """Return the node that reads a tensor, if it is the only one and of that kind."""
        readers = consumers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None

    def linear(add: onnx.NodeProto | None) -> tuple[str, tuple[str, str], str] | None:
        """Return input, weight and bias, and product of a MatMul and its Add."""
        if add is None:
            return None
        for product, bias in (add.input, reversed(add.input)):
            node = producers.get(product)
            if node is None or node.op_type != "MatMul" or only(product, "Add") is not add:
                continue
            if bias in weights and node.input[1] in weights:
                return node.input[0], (node.input[1], bias), product
        return None

    found = []
    for split in graph.node:
        if split.op_type != "Split" or len(split.output) != 2 or len(split.input) != 1:
            continue
        gelu = only(split.output[1], "Gelu")
        gate = only(split.output[0], "Mul")
        if gelu is None or gate is None or only(gelu.output[0], "Mul") is not gate:
            continue
        product = only(gate.output[0], "MatMul")
        end = only(product.output[0], "Add") if product is not None else None
        first, second = linear(producers.get(split.input[0])), linear(end)
        if end is None or first is None or second is None or only(split.input[0], "Split") is None:
            continue
        if [a.s for a in gelu.attribute if a.name == "approximate"] not in ([], [b"none"]):
            continue
        x, up, wide = first
        _, down, narrow = second
        inner = (wide, split.input[0], *split.output, gelu.output[0], gate.output[0], narrow)
        width = weights[down[0]].dims[0]
        found.append(FeedForward(x, up, down, output=end.output[0], width=width, replaced=inner))
    return found


def _write(w: Writer, gate: FeedForward, count: int) -> None:
    name, width = gate.output, gate.width
    halves = [
        tuple(_half(w, part, half, width, axis) for part, axis in zip(gate.up, (1, 0), strict=True))
        for half in range(2)
    ]
    shape = w.add("Shape", f"{name}:shape", gate.x)
    last = w.add("Gather", f"{name}:last", shape, w.whole(-1))
    flat = w.add("Concat", f"{name}:flat_shape", w.whole(-1), last, axis=0)
    tokens = w.add("Reshape", f"{name}:tokens", gate.x, flat)
    tiles = [f"{name}:{index}" for index in range(count)] if count > 1 else [tokens]
    if count > 1:
        total = w.add("Shape", f"{name}:total", tokens, start=0, end=1)
        sizes = w.shares(name, total, count)
        w.nodes.append(helper.make_node("Split", [tokens, sizes], tiles, axis=0))
    outputs = []
    for tile in tiles:
        h, g = (
            w.add("Gemm", f"{tile}:{part}", tile, *half)
            for part, half in zip("hg", halves, strict=True)
        )
        gated = w.add("Mul", f"{tile}:gated", h, w.add("Gelu", f"{tile}:gelu", g))
        outputs.append(w.add("Gemm", f"{tile}:y", gated, *gate.down))
    joined = w.add("Concat", f"{name}:y", *outputs, axis=0) if count > 1 else outputs[0]
    w.add("Reshape", name, joined, shape)


def _half(w: Writer, part: str, half: int, width: int, axis: int) -> str:
    """Write one half of what has the columns of h, and then those of g."""
    edges = (w.whole(half * width), w.whole((half + 1) * width))
    return w.add("Slice", f"{part}:{half}", part, *edges, w.whole(axis))


def _factors_of_halves(
    w: Writer, gate: FeedForward, down: str, up: str
) -> dict[str, tuple[str, str]]:
    """Return the factors of the two halves of W₁: they have the first one in common."""
    return {f"{gate.up[0]}:{half}": (down, _half(w, up, half, gate.width, 1)) for half in range(2)}
