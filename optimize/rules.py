"""Which rewriting rules an engine gains from, and what a graph is made fastest for.

Only values: engines state theirs without loading what rewrites graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bksdm.optimize.tiles import DOUBLED_TILES, PLAIN_TILES, Tile

if TYPE_CHECKING:
    from bksdm.optimize.convolutions import Convolution

# Metadata of a rewritten graph: the least height of its input.
LEAST_ROWS = "bksdm.least_rows"
# Raised with every change of what is rewritten: saved graphs are then stale.
REWRITE = 11


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


@dataclass(frozen=True)
class Rules:
    """Rewriting rules that an engine gains from; docs/cpu.md has the measurements.

    Attributes
    ----------
    attention
        Fuse attention into ONNX Runtime's own operator.
    feed_forward
        Compute gated feed-forward layers in tiles of tokens.
    blocks
        Use ONNX Runtime's blocked layout for Winograd's products, and row tiling for a decoder.
    group_norm
        Write group normalisation as instance normalisation.
    cuda
        Write what ONNX Runtime's CUDA provider has kernels for, pictures with channels last; the
        provider needs its option ``prefer_nhwc``.
    packed
        Make attention's queries, keys and values by one product, which only some of the CUDA
        provider's kernels read as it is.
    winograd
        Cost model by which 3×3 convolutions become products of tiles; None leaves them direct.
    """

    attention: bool = False
    feed_forward: bool = False
    blocks: bool = False
    group_norm: bool = False
    cuda: bool = False
    packed: bool = False
    winograd: CostModel | None = None


ONNXRUNTIME_CUDA = Rules(attention=True, cuda=True)
"""Of ONNX Runtime's CUDA provider on bundles in float16; not yet run on a GPU."""


@dataclass(frozen=True)
class MadeFor:
    """The input that a graph is optimised for; it runs other sizes too.

    Attributes
    ----------
    side
        Height and width of its input.
    measured
        Measured times of convolutions, which decide their forms; None leaves that to the cost
        model.
    """

    side: int = 64
    measured: tuple[Timing, ...] | None = None

    def fields(self) -> dict[str, Any]:
        """Return its fields for a JSON record."""
        return {
            "side": self.side,
            "measured": self.measured and [timing.fields() for timing in self.measured],
        }

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> MadeFor:
        """Return the object of a record that :meth:`fields` made.

        Raises
        ------
        ValueError, TypeError, KeyError
            The record is damaged.
        """
        measured = fields["measured"]
        if measured is not None:
            measured = tuple(Timing.read(entry) for entry in measured)
        return cls(int(fields["side"]), measured)


USUAL = MadeFor()
# Convolutions are direct, and no rule uses tiles in a graph for one latent pixel.
PLAIN = MadeFor(1, ())
