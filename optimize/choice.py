"""Choose the forms of a graph's convolutions that save most time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from bksdm.optimize.convolutions import Convolution, convolutions
from bksdm.optimize.tiles import DOUBLED_TILES, PLAIN_TILES, Tile

# Smaller gains may be none.
LEAST_GAIN = 1.05
# A transformed filter lasts as long as its convolution; larger ones would set the peak of a UNet.
MOST_FILTER_BYTES = 240 * 2**20

Cost = Callable[[Convolution, Tile | None], float]
"""How long a convolution takes in a form, or None for the direct one, in any unit."""


@dataclass(frozen=True)
class CostModel:
    """Cost of a convolution: its operations, and its bytes converted to operations.

    Fitted to an engine's times for the convolutions of a UNet, which runs batches of two, and of a
    VAE decoder. ONNX Runtime's own, which are the defaults, deviate from the measured gains by 9 %.

    Attributes
    ----------
    product_speed
        What part of the speed of a large convolution products of small matrices reach.
    value_balance, filter_balance
        Operations in the time of a byte, of a value that is transformed and of a filter, which is
        transformed and read.
    """

    product_speed: float = 0.75
    value_balance: float = 8
    filter_balance: float = 18

    def __call__(self, found: Convolution, tile: Tile | None) -> float:
        """Return the cost for one picture."""
        into, out = found.channels_in, found.channels_out
        if tile is None:
            doubled = 0.0 if found.doubling is None else 4 * 1.25 * into * self.value_balance
            return (2.0 * 9 * into * out + doubled) * found.side**2
        values, points = tile.size**2, tile.points
        tiles = (-(-found.side // tile.size)) ** 2
        products = tiles * points * (into * out + tile.reach**2 * into + values * out)
        read = tile.step**2
        moved = tiles * ((read + 4 * points) * into + (2 * points + 6 * values) * out)
        moving = moved * self.value_balance + points * into * out * self.filter_balance
        return 2 * products / self.product_speed + 4 * moving


USUAL_COST = CostModel()


@dataclass(frozen=True)
class Timing:
    """Seconds of the convolutions of one size, direct and in each of their forms."""

    channels_in: int
    channels_out: int
    side: int
    doubled: bool
    direct: float
    transformed: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int, int, bool]:
        """The properties on which the time depends."""
        return self.channels_in, self.channels_out, self.side, self.doubled

    def fields(self) -> list[Any]:
        """Return its fields for a JSON record."""
        return [*self.size, self.direct, *self.transformed]

    @classmethod
    def read(cls, fields: Sequence[Any]) -> Timing:
        """Return the object of a record that :meth:`fields` made.

        Raises
        ------
        ValueError, TypeError
            The record is damaged.
        """
        into, out, side, doubled, direct, *transformed = fields
        if len(transformed) != len(DOUBLED_TILES if doubled else PLAIN_TILES):
            raise ValueError(f"times for {len(transformed)} forms")
        times = tuple(float(seconds) for seconds in transformed)
        return cls(int(into), int(out), int(side), bool(doubled), float(direct), times)


class MeasuredCost:
    """Cost by measured times; convolutions of sizes that were not measured stay direct.

    Parameters
    ----------
    timings : iterable of Timing
        One for each size.
    """

    def __init__(self, timings: Iterable[Timing]) -> None:
        self._by_size = {timing.size: timing for timing in timings}

    def __call__(self, found: Convolution, tile: Tile | None) -> float:
        """Return seconds."""
        timing = self._by_size.get(found.size)
        if timing is None:
            return 0.0 if tile is None else math.inf
        return timing.direct if tile is None else timing.transformed[found.tiles.index(tile)]


@dataclass(frozen=True)
class Choice:
    """A convolution and the form it is rewritten to."""

    convolution: Convolution
    tile: Tile

    @property
    def output(self) -> str:
        """The tensor that the convolution computes."""
        return str(self.convolution.node.output[0])


def choose(model: onnx.ModelProto, side: int, cost: Cost = USUAL_COST) -> list[Choice]:
    """Return the forms that save most time; convolutions that stay direct are left out.

    Parameters
    ----------
    model : ModelProto
        The graph; only its float32 convolutions are considered.
    side : int
        Height and width of the graph's input that the choice is made for.
    cost : callable
        Returns the cost to minimise.
    """
    chosen = []
    for found in convolutions(model, side):
        into_out = found.channels_in * found.channels_out
        fitting = [t for t in found.tiles if 4 * t.points * into_out <= MOST_FILTER_BYTES]
        best = min(fitting, key=lambda tile: cost(found, tile), default=None)
        if best is not None and cost(found, None) >= LEAST_GAIN * cost(found, best):
            chosen.append(Choice(found, best))
    return chosen
