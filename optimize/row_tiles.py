"""Compute the end of a network in row tiles that fit into a processor's cache.

A VAE decoder ends with pictures of hundreds of megabytes per tensor: every operator reads them from
memory and writes them to pages that the system must clear first. From an upsampling on, it
consists of convolutions, normalisations and elementwise operators, so each tensor can be kept as
row tiles: a convolution takes one row from the tiles above and below, and a normalisation adds up
sums over the tiles. Nothing else changes, and tiles are joined only at the end.

Tiles stay in ONNX Runtime's own layout (:mod:`~bksdm.optimize.blocks`). ONNX Runtime stores
a graph depth first, so tiles run one after the other as far as normalisations allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from bksdm.optimize.blocked_winograd import write_blocked_tiles
from bksdm.optimize.blocks import (
    DOMAIN,
    as_picture,
    convolve,
    enter,
    from_picture,
    leave,
    pixel_filter,
)
from bksdm.optimize.choice import Choice
from bksdm.optimize.convolutions import Convolution, always_doubles, convolutions
from bksdm.optimize.graph import attributes
from bksdm.optimize.writer import Writer, declare_domains

# The side of what is split, by the side of the latents: from here on every height and width is a
# multiple of four, whatever the latents', as Winograd's tiles want it.
LEAST_FACTOR = 4
# Smaller tensors stay in a cache as they are.
LEAST_BYTES = 64 * 2**20
# Latent rows per row tile: 256 channels take 4 MB where a row is 512 wide.
ROWS = 2
ELEMENTWISE = ("Add", "Mul", "Sigmoid")


@dataclass(frozen=True)
class Tail:
    """The end of a network that is computed in row tiles.

    Attributes
    ----------
    first
        Output of its first node, which upsamples.
    count
        Number of row tiles; latents must have at least as many rows.
    forms
        Of its 3×3 convolutions, all of them.
    """

    first: str
    count: int
    forms: tuple[Choice, ...]


def find_tail(
    model: onnx.ModelProto, side: int, chosen: Sequence[Choice], block: int
) -> Tail | None:
    """Return the longest end of a graph that can be computed in row tiles; None if none gains.

    Parameters
    ----------
    model : ModelProto
        The graph, group normalisation in one node each.
    side : int
        Height and width of its input that the choice is made for.
    chosen : sequence of Choice
        What :func:`~bksdm.optimize.choice.choose` returned for the graph.
    block : int
        Channels in a block; 0 if there are none, and then no row tiles.
    """
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    by_output = {choice.output: choice for choice in chosen}
    found = {conv.node.output[0]: conv for conv in convolutions(model, side)}
    for start, node in enumerate(graph.node):
        if not block or node.op_type != "Resize":
            continue
        inside = _convolutions_of(graph.node[start:], weights, found, block)
        if inside:
            largest = max(4 * conv.channels_in * conv.side**2 for conv in inside)
            factor = min(conv.side for conv in inside) // side
            forms = [
                by_output.get(conv.node.output[0], Choice(conv, conv.tiles[-1])) for conv in inside
            ]
            gains = any(choice.output in by_output for choice in forms)
            if gains and factor >= LEAST_FACTOR and largest >= LEAST_BYTES:
                return Tail(node.output[0], max(1, side // ROWS), tuple(forms))
    return None


def _convolutions_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, onnx.TensorProto],
    found: Mapping[str, Convolution],
    block: int,
) -> list[Convolution]:
    """Return the 3×3 convolutions of a graph's end; none if it cannot be computed in row tiles."""
    made = {nodes[0].output[0]}
    doubled: set[str] = set()
    for index, node in enumerate(nodes):
        foreign = [n for n in node.input if n and n not in made and n not in weights]
        inside = index == 0 or (not foreign and any(n in made for n in node.input))
        # What is doubled is not written: only convolutions take the small picture for it.
        doubles = not doubled.isdisjoint(node.input) and node.output[0] not in found
        if not inside or doubles or not _supported(node, weights, found, block):
            return []
        made.update(node.output)
        if node.op_type == "Resize":
            doubled.update(node.output)
    if nodes[-1].op_type == "Resize":
        return []
    return [conv for output, conv in found.items() if output in made]


def _supported(
    node: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto],
    found: Mapping[str, Convolution],
    block: int,
) -> bool:
    if node.output[0] in found:
        return found[node.output[0]].channels_in % block == 0
    if node.op_type == "Conv":
        settings = attributes(node)
        weight = weights.get(node.input[1])
        return (
            weight is not None
            and weight.data_type == onnx.TensorProto.FLOAT
            and list(weight.dims[2:]) == [1, 1]
            and weight.dims[1] % block == 0
            and len(node.input) == 3
            and settings.get("group", 1) == 1
            and settings.get("strides", [1, 1]) == [1, 1]
            and settings.get("pads", [0] * 4) == [0] * 4
        )
    if node.op_type == "GroupNormalization":
        gamma, beta = (weights.get(name) for name in node.input[1:3])
        return gamma is not None and beta is not None and gamma.dims[0] % block == 0
    if node.op_type == "Resize":
        return always_doubles(node, weights)
    return node.op_type in ELEMENTWISE and not any(name in weights for name in node.input)


def apply_row_tiles(model: onnx.ModelProto, tail: Tail, block: int) -> None:
    """Rewrite the end of a graph in place.

    Parameters
    ----------
    model : ModelProto
        Still runs any batch and width afterwards, and any height of enough rows.
    tail : Tail
        What :func:`find_tail` returned for the graph.
    block : int
        Channels in a block.
    """
    graph = model.graph
    nodes = list(graph.node)
    start = next(i for i, node in enumerate(nodes) if node.output[0] == tail.first)
    weights = {weight.name: weight for weight in graph.initializer}
    tiles = _RowTiles(tail.count, block, weights, {choice.output: choice for choice in tail.forms})
    tiles.writer.nodes.extend(nodes[:start])
    tiles.split(nodes[start].input[0])
    for node in nodes[start:]:
        tiles.add(node)
    tiles.join(graph.output[0].name)
    tiles.writer.store(graph)
    declare_domains(model, DOMAIN, "com.microsoft")


@dataclass
class _RowTiles:
    """Write nodes tile by tile, and keep the row tiles of every tensor."""

    count: int
    block: int
    weights: Mapping[str, onnx.TensorProto]
    forms: Mapping[str, Choice]
    writer: Writer = field(default_factory=Writer)
    tiles: dict[str, list[str]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    # How often the sides of a tensor were doubled since it was split.
    doubled: dict[str, int] = field(default_factory=dict)

    def split(self, name: str) -> None:
        """Split a tensor into row tiles of nearly equal size, each with an even number of rows."""
        w, n = self.writer, self.count
        channels = next(
            form.convolution.channels_in
            for form in self.forms.values()
            if form.convolution.source == name
        )
        rows = w.add("Shape", f"{name}:rows", name, start=2, end=3)
        pairs = w.add("Div", f"{name}:pairs", rows, w.whole(2))
        heights = w.shares(name, pairs, n)
        sizes = w.add("Mul", f"{name}:sizes", heights, w.whole(2))
        names = [f"{name}:{i}" for i in range(n)]
        blocked = enter(w, f"{name}:entered", name, channels, self.block)
        w.nodes.append(helper.make_node("Split", [blocked, sizes], names, axis=2))
        area = w.add(
            "ReduceProd",
            f"{name}:area",
            w.add("Shape", f"{name}:sides", name, start=2, end=4),
            keepdims=1,
        )
        w.add("Cast", "tiles:area", area, to=onnx.TensorProto.FLOAT)
        self.tiles[name], self.channels[name], self.doubled[name] = names, channels, 0

    def join(self, name: str) -> None:
        """Join the row tiles of the graph's output."""
        w = self.writer
        joined = w.add("Concat", f"{name}:joined", *self.tiles[name], axis=2)
        left = leave(w, f"{name}:left", joined, self.channels[name], self.block)
        w.add("Identity", name, left)

    def add(self, node: onnx.NodeProto) -> None:
        """Write one node per row tile."""
        name = node.output[0]
        source = next(n for n in node.input if n in self.tiles)
        self.doubled[name] = self.doubled[source] + (node.op_type == "Resize")
        self.channels[name] = self.channels[source]
        if node.op_type == "Resize":
            # The convolution after it takes the small picture.
            written = self.tiles[source]
        elif node.op_type == "GroupNormalization":
            written = self._group_norm(node)
        elif node.op_type == "Conv":
            self.channels[name] = self.weights[node.input[1]].dims[0]
            convolve = self._tiles if name in self.forms else self._pixels
            written = [convolve(node, i) for i in range(self.count)]
        else:
            written = [self._each(node, i) for i in range(self.count)]
        self.tiles[name] = written

    def _each(self, node: onnx.NodeProto, index: int) -> str:
        """Copy a node that treats each row tile separately."""
        tiles = [self.tiles[name][index] for name in node.input]
        return self.writer.add(node.op_type, f"{node.output[0]}:{index}", *tiles)

    def _pixels(self, node: onnx.NodeProto, index: int) -> str:
        """Write a convolution of single pixels."""
        w, name = self.writer, f"{node.output[0]}:{index}"
        x, weight, bias = node.input
        out, into = self.weights[weight].dims[:2]
        picture = as_picture(w, f"{name}:picture", self.tiles[x][index], into)
        stored = pixel_filter(w, weight, bias, (out, into), self.block)
        product = convolve(w, f"{name}:product", picture, *stored)
        return from_picture(w, name, product, -(-out // self.block))

    def _tiles(self, node: onnx.NodeProto, index: int) -> str:
        """Write a 3×3 convolution of one row tile, with one row of each neighbour."""
        choice = self.forms[node.output[0]]
        w, tiles = self.writer, self.tiles[choice.convolution.source]
        name = f"{node.output[0]}:{index}"
        parts = [tiles[index]]
        first, last = index == 0, index == self.count - 1
        if not first:
            above = tiles[index - 1]
            parts.insert(
                0, w.add("Slice", f"{name}:above", above, w.whole(-1), w.whole(2**31), w.whole(2))
            )
        if not last:
            below = tiles[index + 1]
            parts.append(w.add("Slice", f"{name}:below", below, w.whole(0), w.whole(1), w.whole(2)))
        joined = parts[0]
        if len(parts) > 1:
            joined = w.add("Concat", f"{name}:joined", *parts, axis=2)
        pads = [int(first), 1, int(last), 1]
        return write_blocked_tiles(
            w,
            name,
            node.output[0],
            x=joined,
            choice=choice,
            pads=pads,
            block=self.block,
            alone=True,
        )

    def _group_norm(self, node: onnx.NodeProto) -> list[str]:
        """Write y = s x + t for every row tile, with s and t per channel from sums over all tiles.

        μ = Σ x / n, σ² = Σ x² / n − μ², s = γ / √(σ² + ε), t = β − s μ

        Σ x² and s x + t are convolutions of single channels. The filter of the first is the tile
        itself, so the tail runs one image at a time.
        """
        w, tiles, name = self.writer, self.tiles[node.input[0]], node.output[0]
        settings = attributes(node)
        groups = int(settings["num_groups"])
        channels = self.channels[name]
        pictures: list[str] = []
        sums: list[str] = []
        squares: list[str] = []
        for index, tile in enumerate(tiles):
            picture = as_picture(w, f"{name}:{index}:picture", tile, channels)
            itself = w.add("Reshape", f"{name}:{index}:itself", picture, w.whole(-1, 1, 0, 0))
            lanes = w.add("Reshape", f"{name}:{index}:lanes", tile, w.whole(0, 0, -1, self.block))
            pictures.append(picture)
            sums.append(w.add("ReduceSum", f"{name}:{index}:sum", lanes, w.whole(2)))
            squares.append(convolve(w, f"{name}:{index}:squares", picture, itself, group=channels))
        total, second = (
            w.add(
                "ReduceSum",
                f"{name}:{kind}:group",
                w.add(
                    "Reshape",
                    f"{name}:{kind}:groups",
                    w.add("Sum", f"{name}:{kind}", *found),
                    w.whole(-1, groups, channels // groups),
                ),
                w.whole(2),
            )
            for kind, found in (("sum", sums), ("squares", squares))
        )
        pixels = np.float64(channels // groups * 4 ** self.doubled[node.input[0]])
        count = w.add("Mul", f"{name}:count", "tiles:area", w.constant(f"tiles:{pixels:g}", pixels))
        mean = w.add("Div", f"{name}:mean", total, count)
        square = w.add("Mul", f"{name}:square", mean, mean)
        # Rounding may leave a group of equal values a variance below zero.
        variance = w.add(
            "Relu",
            f"{name}:variance",
            w.add(
                "Sub", f"{name}:difference", w.add("Div", f"{name}:second", second, count), square
            ),
        )
        epsilon = np.float64(settings.get("epsilon", 1e-5))
        shifted = w.add(
            "Add", f"{name}:shifted", variance, w.constant(f"tiles:{epsilon:g}", epsilon)
        )
        inverse = w.add("Reciprocal", f"{name}:inverse", w.add("Sqrt", f"{name}:root", shifted))
        rows = w.whole(groups, -1)
        gamma, beta = (
            w.add("Reshape", f"{name}:{part}", node.input[position], rows)
            for position, part in ((1, "gamma"), (2, "beta"))
        )
        scale = w.add("Mul", f"{name}:scale", inverse, gamma)
        moved = w.add("Mul", f"{name}:moved", mean, scale)
        shift = w.add("Sub", f"{name}:shift", beta, moved)
        scale = w.add("Reshape", f"{name}:scales", scale, w.whole(-1, 1, 1, 1))
        shift = w.add("Reshape", f"{name}:shifts", shift, w.whole(-1))
        return [
            from_picture(
                w,
                f"{name}:{index}",
                convolve(w, f"{name}:{index}:normal", picture, scale, shift, group=channels),
                channels // self.block,
            )
            for index, picture in enumerate(pictures)
        ]
