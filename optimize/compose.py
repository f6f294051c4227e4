"""Apply to a graph all rewriting rules that its engine gains from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from bksdm.engines.protocol import GraphEdit
from bksdm.optimize.attention import fuse_attention
from bksdm.optimize.blocks import block_size
from bksdm.optimize.choice import Choice, Cost, CostModel, MeasuredCost, Timing, choose
from bksdm.optimize.convolutions import convolutions
from bksdm.optimize.feed_forward import split_feed_forward
from bksdm.optimize.group_norm import expand_group_norm
from bksdm.optimize.strips import Tail, apply_strips, find_tail
from bksdm.optimize.tiles import TILES
from bksdm.optimize.winograd import apply_winograd
from bksdm.storage.graph import load_graph

# Metadata of a rewritten graph: the least height of its input.
LEAST_ROWS = "bksdm.least_rows"
# Raised with every change of what is rewritten: saved graphs are then stale.
REWRITE = 9


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
    winograd
        Cost model by which 3×3 convolutions become products of tiles; None leaves them direct.
    """

    attention: bool = False
    feed_forward: bool = False
    blocks: bool = False
    group_norm: bool = False
    winograd: CostModel | None = None


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


def compose(
    model: Path, rules: Rules, made_for: MadeFor, edit: GraphEdit | None = None
) -> onnx.ModelProto:
    """Return the graph rewritten for an engine; the weights stay in their file.

    Parameters
    ----------
    model : Path
        ``model.onnx``.
    rules : Rules
        Rules of the engine.
    made_for : MadeFor
        Input to optimise for.
    edit : GraphEdit, optional
        Change of the network that is applied before the rules.

    Raises
    ------
    BundleError
        The file is missing, or no ONNX graph.
    """
    proto = load_graph(model)
    if edit is not None:
        edit.apply(proto)
    side = made_for.side
    chosen, tail = choose_forms(proto, rules, made_for)
    block = block_size() if rules.blocks else 0
    if rules.attention:
        fuse_attention(proto)
    if rules.feed_forward:
        split_feed_forward(proto, side)
    if tail is not None:
        apply_strips(proto, tail, block)
    least_rows = 0 if tail is None else tail.count
    onnx.helper.set_model_props(proto, {LEAST_ROWS: str(least_rows)})
    if rules.group_norm:
        expand_group_norm(proto)
    apply_winograd(proto, chosen, block)
    return proto


def choose_forms(
    proto: onnx.ModelProto, rules: Rules, made_for: MadeFor
) -> tuple[list[Choice], Tail | None]:
    """Return the convolutions to rewrite, and the end to compute in row tiles."""
    cost: Cost | None = rules.winograd
    if cost is None:
        return [], None
    if made_for.measured is not None:
        cost = MeasuredCost(made_for.measured)
    chosen = choose(proto, made_for.side, cost)
    tail = find_tail(proto, made_for.side, chosen, block_size()) if rules.blocks else None
    return chosen, tail


def describe_rewrite(model: Path, made_for: MadeFor, rules: Rules) -> str:
    """Return in words how an engine runs the convolutions of a graph."""
    proto = load_graph(model)
    chosen, tail = choose_forms(proto, rules, made_for)
    forms = {choice.output: choice.tile for choice in (*chosen, *(tail.forms if tail else ()))}
    tiles = Counter(forms.values())
    total = len(convolutions(proto, made_for.side))
    if not total:
        others = _count_3x3(proto)
        return f"{others or 'no'} 3x3 convolutions{' as exported' if others else ''}"
    text = "".join(f"{tiles[tile]} by {tile.name}, " for tile in TILES if tiles[tile])
    text += f"{total - len(forms)} of {total} 3x3 convolutions direct"
    if tail is not None:
        text += f", the end in {tail.count} row tiles"
    return text


def _count_3x3(proto: onnx.ModelProto) -> int:
    """Count all 3×3 convolutions, including those that no rule can rewrite."""
    dims = {weight.name: list(weight.dims) for weight in proto.graph.initializer}
    kernels = []
    for node in proto.graph.node:
        if node.op_type == "Conv":
            stated = [list(a.ints) for a in node.attribute if a.name == "kernel_shape"]
            kernels.append(stated[0] if stated else dims.get(node.input[1], [])[2:])
    return kernels.count([3, 3])
