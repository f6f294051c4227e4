"""Winograd's minimal filtering F(4×4, 3×3) in ordinary ONNX operators.

A 3×3 convolution needs 144 multiplications for a tile of 4×4 values; this needs 36 (Lavin & Gray
2016, arXiv 1509.09308). For an input tile d of 6×6, a filter g and an output tile y:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

Over channels ⊙ becomes 36 matrix products. The transformed filters are four times as large; the
backend folds them from the stored ones when it loads the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
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
            written.convolution(node, found.channels_out, found.channels_in)
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
class Writer:
    """Nodes in order, and the constants that they share."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    _filters: set[str] = field(default_factory=set)

    def convolution(self, node: onnx.NodeProto, out: int, into: int) -> None:
        """Write a convolution of ``into`` channels to ``out`` channels, of any size."""
        x, weight, bias = node.input
        name = node.output[0]
        # Padding by 4 makes ⌈size / 4⌉ tiles; what they cover beyond the picture is cut off.
        pixels = self.tiles(f"{name}:whole", x, weight, bias, out, into, [0, 1, 1, 0, 4, 4])
        size = self.add("Shape", f"{name}:size", x, start=2)
        self.add("Slice", name, pixels, self.whole(0, 0), size, self.whole(2, 3))

    def tiles(
        self, name: str, x: str, weight: str, bias: str, out: int, into: int, pads: list[int]
    ) -> str:  # fmt: skip
        """Write a convolution as products of tiles; ``pads`` make whole tiles of the picture."""
        # V = Bᵀ d B, [batch, 36, in, tiles]. Channels as depth of one picture put the 36 points
        # before them, where the products want them.
        deep = self.add("Unsqueeze", f"{name}:deep", x, self.whole(1))
        outer = np.einsum("ai,bj->abij", BT, BT).reshape(36, 1, 1, 6, 6)
        tiles = self.add(
            "Conv", f"{name}:tiles", deep, self.constant("winograd:input", outer),
            strides=[1, 4, 4], pads=pads, kernel_shape=[1, 6, 6],
        )  # fmt: skip
        v = self.add("Reshape", f"{name}:v", tiles, self.whole(0, 36, into, -1))

        # M = U V, [batch, 36, out, tiles].
        m = self.add("MatMul", f"{name}:m", self._transformed(weight), v)

        # Aᵀ M A as one product over the 36 points, then 16 values to their places in each tile.
        points = self.add("Reshape", f"{name}:points", m, self.whole(0, 36, -1))
        outer = np.einsum("ai,bj->abij", AT, AT).reshape(16, 36)
        values = self.add(
            "MatMul", f"{name}:values", self.constant("winograd:output", outer), points
        )
        grid = self.add("Shape", f"{name}:grid", tiles, start=3)
        depth = self.add("Concat", f"{name}:depth", self.whole(0, 16 * out), grid, axis=0)
        pixels = self.add("Reshape", f"{name}:deeper", values, depth)
        pixels = self.add("DepthToSpace", f"{name}:pixels", pixels, blocksize=4, mode="DCR")
        column = self.add("Reshape", f"{name}:bias", bias, self.whole(-1, 1, 1))
        return self.add("Add", name, pixels, column)

    def _transformed(self, weight: str) -> str:
        """Return U = G g Gᵀ, [36, out, in]: one node of constants, which backends fold."""
        name = f"{weight}:winograd"
        if name not in self._filters:
            self._filters.add(name)
            outer = np.einsum("ai,bj->abij", G, G).reshape(36, 3, 3)
            points = self.constant("winograd:filter", outer)
            self.add("Einsum", name, points, weight, equation="pij,kcij->pkc")
        return name

    def store(self, graph: onnx.GraphProto) -> None:
        """Replace a graph's nodes by those written, and add the constants that it lacks."""
        known = {weight.name for weight in graph.initializer}
        graph.initializer.extend(
            numpy_helper.from_array(value, name)
            for name, value in self.constants.items()
            if name not in known
        )
        nodes = list(self.nodes)
        del graph.node[:]
        graph.node.extend(nodes)

    def add(self, kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        """Write a node with one output, and return the output's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def whole(self, *values: int) -> str:
        """Return the name of a constant vector of whole numbers."""
        return self.constant_whole(f"whole:{','.join(str(value) for value in values)}", values)

    def constant_whole(self, name: str, values: ArrayLike) -> str:
        """Name a constant of whole numbers."""
        self.constants[name] = np.asarray(values, np.int64)
        return name

    def constant(self, name: str, value: NDArray[np.float64] | np.float64) -> str:
        """Name a constant of single precision."""
        self.constants[name] = np.asarray(value, np.float32)
        return name
