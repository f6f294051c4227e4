"""Choose the forms of a graph's convolutions that save most time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx

from bksdm.optimize.convolutions import Convolution, convolutions
from bksdm.optimize.rules import CostModel, Timing
from bksdm.optimize.tiles import Tile

# Smaller gains may be none.
LEAST_GAIN = 1.05
# A transformed filter lasts as long as its convolution; larger ones would set the peak of a UNet.
MOST_FILTER_BYTES = 240 * 2**20

Cost = Callable[[Convolution, Tile | None], float]
"""How long a convolution takes in a form, or None for the direct one, in any unit."""


USUAL_COST = CostModel()


def direct_cost(found: Convolution, tile: Tile | None) -> float:
    """Return costs by which every convolution stays direct."""
    return 0.0 if tile is None else math.inf


class MeasuredCost:
    """Cost by measured times.

    Parameters
    ----------
    timings : iterable of Timing
        One for each size.
    others : Cost
        Of convolutions of sizes that were not measured.
    """

    def __init__(self, timings: Iterable[Timing], others: Cost = direct_cost) -> None:
        self._by_size = {timing.size: timing for timing in timings}
        self._others = others

    def __call__(self, found: Convolution, tile: Tile | None) -> float:
        """Return seconds, or what the cost of others is in."""
        timing = self._by_size.get(found.size)
        if timing is None:
            return self._others(found, tile)
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
