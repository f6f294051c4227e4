"""Winograd's minimal filtering F(4×4, 3×3) in ordinary ONNX operators.

A 3×3 convolution needs 144 multiplications for a tile of 4×4 values; this needs 36 (Lavin & Gray
2016, arXiv 1509.09308). For an input tile d of 6×6, a filter g and an output tile y:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

Over channels ⊙ becomes 36 matrix products. The transformed filters are four times as large; the
backend folds them from the stored ones when it loads the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

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
LEAST_GAIN = 1.6


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


def apply_winograd(model: onnx.ModelProto, side: int, budget: int) -> int:
    """Rewrite the float32 convolutions of a graph that gain from it, in place.

    Parameters
    ----------
    model : ModelProto
        Any batch, height and width can be run afterwards, as before.
    side : int
        Height and width of the graph's input that the choice is made for.
    budget : int
        Bytes that transformed filters may add; the largest pictures, which save most time per
        byte, come first.

    Returns
    -------
    int
        Number of rewritten convolutions.
    """
    chosen = {found.node.output[0] for found in choose(model, side, budget)}
    weights = {weight.name: weight for weight in model.graph.initializer}
    written = _Writer()
    for node in model.graph.node:
        if node.op_type == "Conv" and node.output[0] in chosen:
            out, into = weights[node.input[1]].dims[:2]
            written.convolution(node, out, into)
        else:
            written.nodes.append(node)
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in written.constants.items()
    )
    del model.graph.node[:]
    model.graph.node.extend(written.nodes)
    return len(chosen)


def choose(model: onnx.ModelProto, side: int, budget: int) -> list[Convolution]:
    """Return the convolutions that :func:`apply_winograd` rewrites."""
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
    pictures = (v for v in model.graph.input if len(v.type.tensor_type.shape.dim) == 4)
    sides = {value.name: side for value in pictures}
    found = []
    for node in model.graph.node:
        known = [sides[name] for name in node.input if name in sides]
        here = max(known, default=0)
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            strides = settings.get("strides", [1, 1])
            if _fits(node, settings, weights):
                out, into = weights[node.input[1]].dims[:2]
                found.append(Convolution(node, into, out, here))
            here = -(-here // strides[0])
        elif node.op_type == "Resize":
            # Every one in a Stable Diffusion network doubles height and width.
            here *= 2
        # The time embedding takes its batch from the picture's shape, but has no side.
        if known and node.op_type != "Shape":
            sides.update(dict.fromkeys(node.output, here))
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


@dataclass
class _Writer:
    """Nodes in order, and the constants that they share."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    _filters: set[str] = field(default_factory=set)

    def convolution(self, node: onnx.NodeProto, out: int, into: int) -> None:
        """Write a convolution of ``into`` channels to ``out`` channels as products of tiles."""
        x, weight, bias = node.input
        name = node.output[0]
        # V = Bᵀ d B, [batch, 36, in, tiles]. Channels as depth of one picture put the 36 points
        # before them, where the products want them; padding by 4 makes ⌈size / 4⌉ tiles.
        deep = self._add("Unsqueeze", f"{name}:deep", x, self._whole(1))
        outer = np.einsum("ai,bj->abij", BT, BT).reshape(36, 1, 1, 6, 6)
        tiles = self._add(
            "Conv", f"{name}:tiles", deep, self._constant("winograd:input", outer),
            strides=[1, 4, 4], pads=[0, 1, 1, 0, 4, 4], kernel_shape=[1, 6, 6],
        )  # fmt: skip
        v = self._add("Reshape", f"{name}:v", tiles, self._whole(0, 36, into, -1))

        # M = U V, [batch, 36, out, tiles].
        m = self._add("MatMul", f"{name}:m", self._transformed(weight), v)

        # Aᵀ M A as one product over the 36 points, then 16 values to their places in each tile.
        points = self._add("Reshape", f"{name}:points", m, self._whole(0, 36, -1))
        outer = np.einsum("ai,bj->abij", AT, AT).reshape(16, 36)
        values = self._add(
            "MatMul", f"{name}:values", self._constant("winograd:output", outer), points
        )
        grid = self._add("Shape", f"{name}:grid", tiles, start=3)
        depth = self._add("Concat", f"{name}:depth", self._whole(0, 16 * out), grid, axis=0)
        pixels = self._add("Reshape", f"{name}:deeper", values, depth)
        pixels = self._add("DepthToSpace", f"{name}:pixels", pixels, blocksize=4, mode="DCR")
        size = self._add("Shape", f"{name}:size", x, start=2)
        cut = self._add("Slice", f"{name}:cut", pixels, self._whole(0, 0), size, self._whole(2, 3))
        column = self._add("Reshape", f"{name}:bias", bias, self._whole(-1, 1, 1))
        self._add("Add", name, cut, column)

    def _transformed(self, weight: str) -> str:
        """Return U = G g Gᵀ, [36, out, in]: one node of constants, which backends fold."""
        name = f"{weight}:winograd"
        if name not in self._filters:
            self._filters.add(name)
            outer = np.einsum("ai,bj->abij", G, G).reshape(36, 3, 3)
            points = self._constant("winograd:filter", outer)
            self._add("Einsum", name, points, weight, equation="pij,kcij->pkc")
        return name

    def _add(self, kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _whole(self, *sizes: int) -> str:
        name = f"winograd:{','.join(str(size) for size in sizes)}"
        self.constants[name] = np.array(sizes, np.int64)
        return name

    def _constant(self, name: str, value: NDArray[np.float64]) -> str:
        self.constants[name] = value.astype(np.float32)
        return name
