"""Winograd's minimal filtering F(m×m, 3×3) in ordinary ONNX operators.

A 3×3 convolution needs 9 m² multiplications for a tile of m×m values; this needs (m + 2)² (Lavin &
Gray 2016, arXiv 1509.09308): 16 in place of 36 for m = 2, 36 in place of 144 for m = 4. For an
input tile d of (m + 2)², a filter g and an output tile y:

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

Over channels ⊙ becomes (m + 2)² matrix products. The transformed filters are 16/9 and four times as
large as the stored ones, from which the backend folds them when it loads the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from bksdm.engines.rewrite.sides import picture_sides
from bksdm.engines.rewrite.writer import Writer

# Smaller gains may be none.
LEAST_GAIN = 1.05


@dataclass(frozen=True, eq=False)
class Tile:
    """The form F(m×m, 3×3).

    Attributes
    ----------
    size
        Height and width of an output tile, m.
    bt, g, at
        Bᵀ [m + 2, m + 2], G [m + 2, 3] and Aᵀ [m, m + 2] of the module's formula.
    """

    size: int
    bt: NDArray[np.float64]
    g: NDArray[np.float64]
    at: NDArray[np.float64]

    @property
    def reach(self) -> int:
        """Height and width of an input tile."""
        return self.size + 2

    @property
    def points(self) -> int:
        """Multiplications for an output tile."""
        return self.reach**2


F2 = Tile(
    2,
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
    np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], np.float64),
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
)
F4 = Tile(
    4,
    np.array([
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ], np.float64),
    np.array([
        [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
    ], np.float64),
    np.array([
        [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1],
    ], np.float64),
)  # fmt: skip
TILES = (F2, F4)


@dataclass(frozen=True)
class Convolution:
    """A 3×3 convolution with stride 1 and padding 1, on a picture of nominal size."""

    node: onnx.NodeProto
    channels_in: int
    channels_out: int
    side: int

    def added_bytes(self, tile: Tile) -> int:
        """Return what transformed filters take beyond the stored ones."""
        return 4 * (tile.points - 9) * self.channels_in * self.channels_out


Cost = Callable[[Convolution, Tile | None], float]
"""How long a convolution takes in a form, or None for the direct one, in any unit."""


@dataclass(frozen=True)
class CostModel:
    """Operations of a convolution, and those in whose time its bytes move.

    Fitted to an engine's times for the convolutions of a UNet and a VAE decoder on one core. ONNX
    Runtime's own, which are the defaults, deviate from the measured gains by 10 %.

    Attributes
    ----------
    product_speed
        What part of the speed of a large convolution products of small matrices reach.
    value_balance, filter_balance
        Operations in the time of a byte, of a value that is transformed and of a filter.
    """

    product_speed: float = 0.8
    value_balance: float = 14
    filter_balance: float = 8

    def __call__(self, found: Convolution, tile: Tile | None) -> float:
        """Return the cost for one picture."""
        into, out = found.channels_in, found.channels_out
        if tile is None:
            return 2.0 * 9 * into * out * found.side**2
        values, points = tile.size**2, tile.points
        tiles = (-(-found.side // tile.size)) ** 2
        products = tiles * points * (into * out + points * into + values * out)
        moved = tiles * ((values + 4 * points) * into + (2 * points + 6 * values) * out)
        moving = moved * self.value_balance + points * into * out * self.filter_balance
        return 2 * products / self.product_speed + 4 * moving


USUAL_COST = CostModel()


@dataclass(frozen=True)
class Timing:
    """Seconds of the convolutions of one size, direct and in the forms of :data:`TILES`."""

    channels_in: int
    channels_out: int
    side: int
    direct: float
    transformed: tuple[float, ...]

    def fields(self) -> list[float]:
        """Return what a record says of it."""
        sizes = [self.channels_in, self.channels_out, self.side]
        return [*sizes, self.direct, *self.transformed]

    @classmethod
    def read(cls, fields: Sequence[Any]) -> Timing:
        """Return what :meth:`fields` described.

        Raises
        ------
        ValueError, TypeError
            It is damaged.
        """
        into, out, side, direct, *transformed = fields
        if len(transformed) != len(TILES):
            raise ValueError(f"times for {len(transformed)} forms")
        times = tuple(float(seconds) for seconds in transformed)
        return cls(int(into), int(out), int(side), float(direct), times)


class MeasuredCost:
    """What convolutions took; those of other sizes stay direct.

    Parameters
    ----------
    timings : iterable of Timing
        One for each size.
    """

    def __init__(self, timings: Iterable[Timing]) -> None:
        self._by_size = {(t.channels_in, t.channels_out, t.side): t for t in timings}

    def __call__(self, found: Convolution, tile: Tile | None) -> float:
        """Return seconds."""
        timing = self._by_size.get((found.channels_in, found.channels_out, found.side))
        if timing is None:
            return 0.0 if tile is None else math.inf
        return timing.direct if tile is None else timing.transformed[TILES.index(tile)]


@dataclass(frozen=True)
class Choice:
    """A convolution and the form it is rewritten to."""

    convolution: Convolution
    tile: Tile

    @property
    def output(self) -> str:
        """The tensor that the convolution computes."""
        return str(self.convolution.node.output[0])


def apply_winograd(model: onnx.ModelProto, chosen: Sequence[Choice]) -> int:
    """Rewrite convolutions of a graph in place, for any batch, height and width as before.

    Parameters
    ----------
    model : ModelProto
        The graph; some of the convolutions may have been rewritten otherwise already.
    chosen : sequence of Choice
        What :func:`choose` returned for it.

    Returns
    -------
    int
        Number of rewritten convolutions.
    """
    by_output = {choice.output: choice for choice in chosen}
    written, count = Writer(), 0
    for node in model.graph.node:
        choice = by_output.get(node.output[0]) if node.op_type == "Conv" else None
        if choice is None:
            written.nodes.append(node)
        else:
            _write(written, choice)
            count += 1
    written.store(model.graph)
    return count


def choose(model: onnx.ModelProto, side: int, budget: int, cost: Cost = USUAL_COST) -> list[Choice]:
    """Return the forms that save most time within a budget of bytes.

    Parameters
    ----------
    model : ModelProto
        The graph; its float32 convolutions are looked at.
    side : int
        Height and width of the graph's input that the choice is made for.
    budget : int
        Bytes that transformed filters may add.
    cost : callable
        What is to be saved.

    Returns
    -------
    list of Choice
        Convolutions that stay direct are left out. Those that share a filter have one form.
    """
    by_filter: dict[str, list[Convolution]] = {}
    for found in convolutions(model, side):
        by_filter.setdefault(found.node.input[1], []).append(found)
    # A knapsack with one of several forms for each filter: every combination worth keeping, by the
    # bytes that it adds; the filters of a network have few sizes, so there are few.
    best: dict[int, tuple[float, list[Choice]]] = {0: (0.0, [])}
    for sharing in by_filter.values():
        grown = dict(best)
        for tile in TILES:
            costs = [(found, cost(found, None), cost(found, tile)) for found in sharing]
            gaining = [entry for entry in costs if entry[1] >= LEAST_GAIN * entry[2]]
            fitting = [Choice(found, tile) for found, _, _ in gaining]
            saved = sum(direct - transformed for _, direct, transformed in gaining)
            added = sharing[0].added_bytes(tile)
            for size, (so_far, choices) in best.items():
                if size + added > budget or not fitting:
                    continue
                if so_far + saved > grown.get(size + added, (0.0, []))[0]:
                    grown[size + added] = (so_far + saved, choices + fitting)
        best = {}
        most = -1.0
        for size, (saved, choices) in sorted(grown.items(), key=lambda entry: entry[0]):
            if saved > most:
                best[size], most = (saved, choices), saved
    return max(best.values(), key=lambda entry: entry[0])[1]


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


def _write(w: Writer, choice: Choice) -> None:
    """Write a convolution of a picture of any size."""
    name, node, m = choice.output, choice.convolution.node, choice.tile.size
    # Padding by m makes ⌈size / m⌉ tiles; what they cover beyond the picture is cut off.
    pixels = write_tiles(w, f"{name}:whole", node.input[0], choice, [0, 1, 1, 0, m, m])
    size = w.add("Shape", f"{name}:size", node.input[0], start=2)
    w.add("Slice", name, pixels, w.whole(0, 0), size, w.whole(2, 3))


def write_tiles(w: Writer, name: str, x: str, choice: Choice, pads: list[int]) -> str:
    """Write a convolution of ``x`` as products of tiles; ``pads`` make whole tiles of it."""
    found, tile = choice.convolution, choice.tile
    m, reach, points = tile.size, tile.reach, tile.points
    _, weight, bias = found.node.input
    # V = Bᵀ d B, [batch, points, in, tiles]. Channels as depth of one picture put the points
    # before them, where the products want them.
    deep = w.add("Unsqueeze", f"{name}:deep", x, w.whole(1))
    outer = np.einsum("ai,bj->abij", tile.bt, tile.bt).reshape(points, 1, 1, reach, reach)
    tiles = w.add(
        "Conv", f"{name}:tiles", deep, w.constant(f"winograd:{m}:input", outer),
        strides=[1, m, m], pads=pads, kernel_shape=[1, reach, reach],
    )  # fmt: skip
    v = w.add("Reshape", f"{name}:v", tiles, w.whole(0, points, found.channels_in, -1))

    # M = U V, [batch, points, out, tiles].
    product = w.add("MatMul", f"{name}:m", _transformed(w, weight, tile), v)

    # Aᵀ M A as one product over the points, then its values to their places in each tile.
    flat = w.add("Reshape", f"{name}:points", product, w.whole(0, points, -1))
    outer = np.einsum("ai,bj->abij", tile.at, tile.at).reshape(m * m, points)
    values = w.add("MatMul", f"{name}:values", w.constant(f"winograd:{m}:output", outer), flat)
    grid = w.add("Shape", f"{name}:grid", tiles, start=3)
    depth = w.add("Concat", f"{name}:depth", w.whole(0, m * m * found.channels_out), grid, axis=0)
    pixels = w.add("Reshape", f"{name}:deeper", values, depth)
    pixels = w.add("DepthToSpace", f"{name}:pixels", pixels, blocksize=m, mode="DCR")
    column = w.add("Reshape", f"{name}:bias", bias, w.whole(-1, 1, 1))
    return w.add("Add", name, pixels, column)


def _transformed(w: Writer, weight: str, tile: Tile) -> str:
    """Return U = G g Gᵀ, [points, out, in]: one node of constants, which backends fold."""
    name = f"{weight}:winograd:{tile.size}"
    if name not in w.written:
        outer = np.einsum("ai,bj->abij", tile.g, tile.g).reshape(tile.points, 3, 3)
        points = w.constant(f"winograd:{tile.size}:filter", outer)
        w.add("Einsum", name, points, weight, equation="pij,kcij->pkc")
    return name
