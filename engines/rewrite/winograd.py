"""Winograd's minimal filtering F(4×4, 3×3) in ordinary ONNX operators.

A 3×3 convolution needs 144 multiplications for a tile of 4×4 values; this needs 36 (Lavin & Gray
2016, arXiv 1509.09308). For an input tile d of 6×6, a filter g and an output tile y:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

Over channels ⊙ becomes 36 matrix products. The transformed filters are four times as large; the
backend folds them from the stored ones when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from bksdm.engines.rewrite.sides import picture_sides
from bksdm.engines.rewrite.writer import Writer

BT = np.array([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
], np.float64)  # fmt: skip
G = np.array([
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
], np.float64)  # fmt: skip
AT = np.array([
    [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1],
], np.float64)  # fmt: skip

# Floating-point operations in the time that one byte takes to or from memory.
BALANCE = 6
# Products of small matrices reach about this part of what a large convolution reaches.
PRODUCT_SPEED = 0.8
# Predicted gains below this were none when measured.
LEAST_GAIN = 1.5


@dataclass(frozen=True)
class Convolution:
    """A 3×3 convolution with stride 1 and padding 1, on a picture of nominal size."""

    node: onnx.NodeProto
    channels_in: int
    channels_out: int
    side: int

    @property
    def gain(self) -> float:
        """How many times faster than the direct form the transformed one should be."""
        tiles = (-(-self.side // 4)) ** 2
        both = self.channels_in * self.channels_out
        direct = 2 * 9 * both * self.side**2
        products = (
            2 * tiles * (36 * both + 36 * 36 * self.channels_in + 16 * 36 * self.channels_out)
        )
        moved = 4 * tiles * (160 * self.channels_in + 168 * self.channels_out) + 4 * 36 * both
        return direct / (products / PRODUCT_SPEED + moved * BALANCE)

    @property
    def added_bytes(self) -> int:
        """What the transformed filters take beyond the stored ones."""
        return 4 * (36 - 9) * self.channels_in * self.channels_out


def apply_winograd(model: onnx.ModelProto, chosen: Sequence[Convolution]) -> int:
    """Rewrite convolutions of a graph in place, for any batch, height and width as before.

    Parameters
    ----------
    model : ModelProto
        The graph; some of the convolutions may have been rewritten otherwise already.
    chosen : sequence of Convolution
        What :func:`choose` returned for it.

    Returns
    -------
    int
        Number of rewritten convolutions.
    """
    by_output = {found.node.output[0]: found for found in chosen}
    written, count = Writer(), 0
    for node in model.graph.node:
        found = by_output.get(node.output[0]) if node.op_type == "Conv" else None
        if found is None:
            written.nodes.append(node)
        else:
            _write(written, node, found.channels_out, found.channels_in)
            count += 1
    written.store(model.graph)
    return count


def choose(model: onnx.ModelProto, side: int, budget: int) -> list[Convolution]:
    """Return the float32 convolutions of a graph that gain from being rewritten.

    Parameters
    ----------
    model : ModelProto
        The graph.
    side : int
        Height and width of the graph's input that the choice is made for.
    budget : int
        Bytes that transformed filters may add; the largest pictures, which save most time per
        byte, come first.
    """
    chosen: list[Convolution] = []
    filters: set[str] = set()
    for found in sorted(convolutions(model, side), key=lambda c: c.side, reverse=True):
        weight = found.node.input[1]
        added = 0 if weight in filters else found.added_bytes
        if found.gain >= LEAST_GAIN and added <= budget:
            budget -= added
            filters.add(weight)
            chosen.append(found)
    return chosen


def convolutions(model: onnx.ModelProto, side: int) -> list[Convolution]:
    """Return the convolutions that could be rewritten, with the sizes they work on."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    sides = picture_sides(model, side)
    found = []
    for node in model.graph.node:
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv" and _fits(node, settings, weights):
            out, into = weights[node.input[1]].dims[:2]
            found.append(Convolution(node, into, out, sides[node.output[0]]))
    return found


def _fits(
    node: onnx.NodeProto, settings: dict[str, object], weights: dict[str, onnx.TensorProto]
) -> bool:
    weight = weights.get(node.input[1])
    return (
        weight is not None
        and weight.data_type == onnx.TensorProto.FLOAT
        and list(weight.dims[2:]) == [3, 3]
        and settings.get("group", 1) == 1
        and settings.get("strides", [1, 1]) == [1, 1]
        and settings.get("dilations", [1, 1]) == [1, 1]
        and settings.get("pads") == [1, 1, 1, 1]
        and len(node.input) == 3
    )


def _write(w: Writer, node: onnx.NodeProto, out: int, into: int) -> None:
    """Write a convolution of ``into`` channels to ``out`` channels, of any size."""
    x, weight, bias = node.input
    name = node.output[0]
    # Padding by 4 makes ⌈size / 4⌉ tiles; what they cover beyond the picture is cut off.
    pixels = write_tiles(w, f"{name}:whole", x, weight, bias, out, into, [0, 1, 1, 0, 4, 4])
    size = w.add("Shape", f"{name}:size", x, start=2)
    w.add("Slice", name, pixels, w.whole(0, 0), size, w.whole(2, 3))


def write_tiles(
    w: Writer, name: str, x: str, weight: str, bias: str, out: int, into: int, pads: list[int]
) -> str:  # fmt: skip
    """Write a convolution as products of tiles; ``pads`` make whole tiles of the picture."""
    # V = Bᵀ d B, [batch, 36, in, tiles]. Channels as depth of one picture put the 36 points
    # before them, where the products want them.
    deep = w.add("Unsqueeze", f"{name}:deep", x, w.whole(1))
    outer = np.einsum("ai,bj->abij", BT, BT).reshape(36, 1, 1, 6, 6)
    tiles = w.add(
        "Conv", f"{name}:tiles", deep, w.constant("winograd:input", outer),
        strides=[1, 4, 4], pads=pads, kernel_shape=[1, 6, 6],
    )  # fmt: skip
    v = w.add("Reshape", f"{name}:v", tiles, w.whole(0, 36, into, -1))

    # M = U V, [batch, 36, out, tiles].
    m = w.add("MatMul", f"{name}:m", _transformed(w, weight), v)

    # Aᵀ M A as one product over the 36 points, then 16 values to their places in each tile.
    points = w.add("Reshape", f"{name}:points", m, w.whole(0, 36, -1))
    outer = np.einsum("ai,bj->abij", AT, AT).reshape(16, 36)
    values = w.add("MatMul", f"{name}:values", w.constant("winograd:output", outer), points)
    grid = w.add("Shape", f"{name}:grid", tiles, start=3)
    depth = w.add("Concat", f"{name}:depth", w.whole(0, 16 * out), grid, axis=0)
    pixels = w.add("Reshape", f"{name}:deeper", values, depth)
    pixels = w.add("DepthToSpace", f"{name}:pixels", pixels, blocksize=4, mode="DCR")
    column = w.add("Reshape", f"{name}:bias", bias, w.whole(-1, 1, 1))
    return w.add("Add", name, pixels, column)


def _transformed(w: Writer, weight: str) -> str:
    """Return U = G g Gᵀ, [36, out, in]: one node of constants, which backends fold."""
    name = f"{weight}:winograd"
    if name not in w.written:
        outer = np.einsum("ai,bj->abij", G, G).reshape(36, 3, 3)
        points = w.constant("winograd:filter", outer)
        w.add("Einsum", name, points, weight, equation="pij,kcij->pkc")
    return name
