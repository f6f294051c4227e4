"""Compute the end of a network in horizontal strips that fit into a processor's cache.

A VAE decoder ends with pictures of hundreds of megabytes per tensor: every operator reads them from
memory and writes them to pages that the system must clear first. From an upsampling on, all is
convolutions, normalisations and elementwise operators here, so each tensor is kept as strips
instead: a convolution takes one row from the strips above and below, a normalisation adds up what
the strips hold. Nothing else changes, and no strip is ever joined before the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from bksdm.engines.rewrite.choice import Choice
from bksdm.engines.rewrite.convolutions import always_doubles, convolutions
from bksdm.engines.rewrite.winograd import write_tiles
from bksdm.engines.rewrite.writer import Writer

# The side of what is split, by the side of the latents: from here on every height and width is a
# multiple of four, whatever the latents', as Winograd's tiles want it.
LEAST_FACTOR = 4
# Smaller tensors stay in a cache as they are.
LEAST_BYTES = 64 * 2**20
# Latent rows per strip: 256 channels take 4 MB where a row is 512 wide.
ROWS = 2
ELEMENTWISE = ("Add", "Mul", "Sigmoid")


@dataclass(frozen=True)
class Tail:
    """The end of a network that is computed in strips.

    Attributes
    ----------
    start
        Index of its first node, which upsamples.
    count
        Number of strips; latents must have at least as many rows.
    """

    start: int
    count: int


def find_tail(model: onnx.ModelProto, side: int) -> Tail | None:
    """Return the longest end of a graph that can be computed in strips; None where none gains.

    Parameters
    ----------
    model : ModelProto
        The graph, group normalisation in one node each.
    side : int
        Height and width of its input that the choice is made for.
    """
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    sides = {found.node.output[0]: found for found in convolutions(model, side)}
    for start, node in enumerate(graph.node):
        if node.op_type != "Resize" or not always_doubles(node, weights):
            continue
        rest = graph.node[start:]
        made = {node.output[0]}
        for other in rest[1:]:
            ours = [name for name in other.input if name in made]
            foreign = [n for n in other.input if n and n not in made and n not in weights]
            if not ours or foreign or not _supported(other, weights):
                break
            made.update(other.output)
        else:
            found = [sides[n.output[0]] for n in rest if n.output[0] in sides]
            largest = max((4 * c.channels_in * c.side**2 for c in found), default=0)
            factor = min((c.side for c in found), default=0) // side
            if factor >= LEAST_FACTOR and largest >= LEAST_BYTES:
                return Tail(start, max(1, side // ROWS))
    return None


def _supported(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type == "Conv":
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        size = list(weights[node.input[1]].dims[2:]) if node.input[1] in weights else []
        return (
            len(node.input) == 3
            and settings.get("group", 1) == 1
            and settings.get("strides", [1, 1]) == [1, 1]
            and settings.get("dilations", [1, 1]) == [1, 1]
            and (size, settings.get("pads", [0] * 4)) in (([3, 3], [1] * 4), ([1, 1], [0] * 4))
        )
    if node.op_type == "GroupNormalization":
        return all(name in weights for name in node.input[1:3])
    if node.op_type == "Resize":
        return always_doubles(node, weights)
    return node.op_type in ELEMENTWISE


def apply_strips(model: onnx.ModelProto, side: int, chosen: Sequence[Choice]) -> int:
    """Rewrite the end of a graph in place, some of its convolutions by Winograd.

    Parameters
    ----------
    model : ModelProto
        Any batch, height and width can be run afterwards, if the height is enough.
    side : int
        Height and width of its input that the choice is made for.
    chosen : sequence of Choice
        What :func:`~bksdm.engines.rewrite.choice.choose` returned for the graph.

    Returns
    -------
    int
        The least height of the graph's input; 0 where nothing was rewritten.
    """
    tail = find_tail(model, side)
    if tail is None:
        return 0
    graph = model.graph
    nodes = list(graph.node)
    weights = {weight.name: weight for weight in graph.initializer}
    strips = _Strips(tail.count, weights, {choice.output: choice for choice in chosen})
    strips.writer.nodes.extend(nodes[: tail.start])
    strips.split(nodes[tail.start].input[0])
    for node in nodes[tail.start :]:
        strips.add(node)
    strips.join(graph.output[0].name)
    strips.writer.store(graph)
    return tail.count


@dataclass
class _Strips:
    """Writes nodes strip by strip; knows the strips of every tensor."""

    count: int
    weights: dict[str, onnx.TensorProto]
    chosen: dict[str, Choice]
    writer: Writer = field(default_factory=Writer)
    strips: dict[str, list[str]] = field(default_factory=dict)
    # How often the sides of a tensor were doubled since it was split.
    doubled: dict[str, int] = field(default_factory=dict)

    def split(self, name: str) -> None:
        """Split a tensor into strips of an even number of rows each, as equal as can be."""
        w, n = self.writer, self.count
        rows = w.add("Shape", f"{name}:rows", name, start=2, end=3)
        pairs = w.add("Div", f"{name}:pairs", rows, w.whole(2))
        heights = w.shares(name, pairs, n)
        sizes = w.add("Mul", f"{name}:sizes", heights, w.whole(2))
        names = [f"{name}:{i}" for i in range(n)]
        w.nodes.append(helper.make_node("Split", [name, sizes], names, axis=2))
        area = w.add("ReduceProd", f"{name}:area", w.add(
            "Shape", f"{name}:sides", name, start=2, end=4
        ), keepdims=1)  # fmt: skip
        w.add("Cast", "strips:area", area, to=onnx.TensorProto.FLOAT)
        self.strips[name], self.doubled[name] = names, 0

    def join(self, name: str) -> None:
        """Put the strips of the graph's output together."""
        self.writer.nodes.append(helper.make_node("Concat", self.strips[name], [name], axis=2))

    def add(self, node: onnx.NodeProto) -> None:
        """Write one node for every strip."""
        name = node.output[0]
        source = next(n for n in node.input if n in self.strips)
        self.doubled[name] = self.doubled[source] + (node.op_type == "Resize")
        if node.op_type == "GroupNormalization":
            written = self._group_norm(node)
        elif node.op_type == "Conv" and list(self.weights[node.input[1]].dims[2:]) == [3, 3]:
            written = [self._convolution(node, i) for i in range(self.count)]
        else:
            written = [self._each(node, i) for i in range(self.count)]
        self.strips[name] = written

    def _each(self, node: onnx.NodeProto, index: int) -> str:
        """Copy a node that takes each strip by itself."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = ""
        for position, name in enumerate(node.input):
            if name in self.strips:
                copy.input[position] = self.strips[name][index]
        name = f"{node.output[0]}:{index}"
        copy.output[0] = name
        self.writer.nodes.append(copy)
        return name

    def _convolution(self, node: onnx.NodeProto, index: int) -> str:
        """Write a 3×3 convolution of one strip, with a row of its neighbours on either side."""
        choice = self.chosen.get(node.output[0])
        source = node.input[0] if choice is None else choice.convolution.source
        w, strips = self.writer, self.strips[source]
        name = f"{node.output[0]}:{index}"
        parts = [strips[index]]
        first, last = index == 0, index == self.count - 1
        if not first:
            above = strips[index - 1]
            parts.insert(0, w.add("Slice", f"{name}:above", above, w.whole(-1),
                                  w.whole(2**31), w.whole(2)))  # fmt: skip
        if not last:
            below = strips[index + 1]
            parts.append(w.add("Slice", f"{name}:below", below, w.whole(0), w.whole(1),
                               w.whole(2)))  # fmt: skip
        joined = parts[0]
        if len(parts) > 1:
            joined = w.add("Concat", f"{name}:joined", *parts, axis=2)
        top, bottom = int(first), int(last)
        if choice is not None:
            return write_tiles(w, name, joined, choice, [0, top, 1, 0, bottom, 1])
        return w.add("Conv", name, joined, *node.input[1:], kernel_shape=[3, 3],
                     pads=[top, 1, bottom, 1])  # fmt: skip

    def _group_norm(self, node: onnx.NodeProto) -> list[str]:
        """Write y = s x + t for every strip, with s and t per channel from sums over all strips.

        μ = Σ x / n, σ² = Σ x² / n − μ², s = γ / √(σ² + ε), t = β − s μ
        """
        w, strips, name = self.writer, self.strips[node.input[0]], node.output[0]
        settings: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        groups = int(settings["num_groups"])
        channels = self.weights[node.input[1]].dims[0]
        sums: dict[str, list[str]] = {"sum": [], "squares": []}
        for index, strip in enumerate(strips):
            grouped = w.add("Reshape", f"{name}:{index}:groups", strip, w.whole(0, groups, -1))
            # ONNX Runtime's ReduceSumSquare takes half as long again as both of these.
            squared = w.add("Mul", f"{name}:{index}:squared", grouped, grouped)
            for kind, term in (("sum", grouped), ("squares", squared)):
                sums[kind].append(w.add("ReduceSum", f"{name}:{index}:{kind}", term, w.whole(2)))
        total, squares = (w.add("Sum", f"{name}:{kind}", *found) for kind, found in sums.items())
        values = np.float64(channels // groups * 4 ** self.doubled[node.input[0]])
        count = w.add("Mul", f"{name}:count", "strips:area",
                      w.constant(f"strips:{values:g}", values))  # fmt: skip
        mean = w.add("Div", f"{name}:mean", total, count)
        second = w.add("Div", f"{name}:second", squares, count)
        square = w.add("Mul", f"{name}:square", mean, mean)
        # Rounding may leave a group of equal values a variance below zero.
        variance = w.add("Relu", f"{name}:variance", w.add(
            "Sub", f"{name}:difference", second, square
        ))  # fmt: skip
        epsilon = np.float64(settings.get("epsilon", 1e-5))
        shifted = w.add("Add", f"{name}:shifted", variance,
                        w.constant(f"strips:{epsilon:g}", epsilon))  # fmt: skip
        inverse = w.add("Reciprocal", f"{name}:inverse", w.add("Sqrt", f"{name}:root", shifted))
        rows = w.whole(groups, -1)
        gamma, beta = (
            w.add("Reshape", f"{name}:{part}", node.input[position], rows)
            for position, part in ((1, "gamma"), (2, "beta"))
        )
        scale = w.add("Mul", f"{name}:scale", inverse, gamma)
        moved = w.add("Mul", f"{name}:moved", mean, scale)
        shift = w.add("Sub", f"{name}:shift", beta, moved)
        shape = w.whole(0, channels, 1, 1)
        scale, shift = (w.add("Reshape", f"{part}:channels", part, shape)
                        for part in (scale, shift))  # fmt: skip
        written = []
        for index, strip in enumerate(strips):
            scaled = w.add("Mul", f"{name}:{index}:scaled", strip, scale)
            written.append(w.add("Add", f"{name}:{index}", scaled, shift))
        return written
