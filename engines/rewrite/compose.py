"""Apply to a graph every rule that the engine which runs it gains from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from bksdm.engines.errors import EngineError
from bksdm.engines.protocol import GraphEdit
from bksdm.engines.rewrite.attention import fuse_attention
from bksdm.engines.rewrite.feed_forward import split_feed_forward
from bksdm.engines.rewrite.group_norm import expand_group_norm
from bksdm.engines.rewrite.strips import apply_strips, find_tail
from bksdm.engines.rewrite.winograd import (
    TILES,
    Choice,
    Cost,
    CostModel,
    MeasuredCost,
    Timing,
    apply_winograd,
    choose,
    convolutions,
)

# Metadata of a rewritten graph: the least height of its input.
LEAST_ROWS = "bksdm.least_rows"
# Raised with every change of what is rewritten: saved graphs are then stale.
REWRITE = 6
# Bytes that Winograd's filters may add to a network: those that save most time for their size, so
# that full-size BK-SDM-Small still takes less memory than in PyTorch.
WINOGRAD_BUDGET = 3 * 2**27


@dataclass(frozen=True)
class Rules:
    """Which rewritings an engine gains from; docs/cpu.md has the measurements.

    Attributes
    ----------
    attention
        As ONNX Runtime's own operator.
    feed_forward
        Gated feed-forward layers in strips of tokens.
    strips
        The end of a decoder in strips of rows.
    group_norm
        As instance normalisation.
    winograd
        3×3 convolutions as products of tiles: what the model of their costs is.
    """

    attention: bool = False
    feed_forward: bool = False
    strips: bool = False
    group_norm: bool = False
    winograd: CostModel | None = None


RULES = {
    "onnxruntime": Rules(
        attention=True, feed_forward=True, strips=True, group_norm=True, winograd=CostModel()
    ),
    "onnxruntime:cuda": Rules(attention=True),
    "onnxruntime:tensorrt": Rules(attention=True),
    "openvino": Rules(winograd=CostModel(0.9, 25, 4)),
}


@dataclass(frozen=True)
class MadeFor:
    """What a graph is made fastest for; it takes other pictures too.

    Attributes
    ----------
    side
        Height and width of its input.
    winograd_budget
        Bytes that a float32 network may grow by for faster convolutions.
    measured
        Seconds of convolutions where they were measured; the model of costs otherwise.
    """

    side: int = 64
    winograd_budget: int = WINOGRAD_BUDGET
    measured: tuple[Timing, ...] = ()

    def fields(self) -> dict[str, Any]:
        """Return what a record says of it."""
        return {
            "side": self.side,
            "winograd_budget": self.winograd_budget,
            "measured": [timing.fields() for timing in self.measured],
        }

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> MadeFor:
        """Return what :meth:`fields` described.

        Raises
        ------
        ValueError, TypeError, KeyError
            It is damaged.
        """
        measured = tuple(Timing.read(entry) for entry in fields["measured"])
        return cls(int(fields["side"]), int(fields["winograd_budget"]), measured)


USUAL = MadeFor()


def compose(
    model: Path, engine: str, made_for: MadeFor, edit: GraphEdit | None = None
) -> onnx.ModelProto:
    """Return the graph as an engine runs it fastest; the weights stay in their file.

    Parameters
    ----------
    model : Path
        ``model.onnx``.
    engine : str
        A key of :data:`RULES`.
    made_for : MadeFor
        Sizes and limits.
    edit : GraphEdit, optional
        What makes another network of the graph's, before all else.

    Raises
    ------
    EngineError
        The file is no ONNX graph.
    """
    proto, rules = load_graph(model), RULES[engine]
    if edit is not None:
        edit.apply(proto)
    side = made_for.side
    chosen = choose_forms(proto, engine, made_for)
    if rules.attention:
        fuse_attention(proto)
    if rules.feed_forward:
        split_feed_forward(proto, side)
    if rules.strips:
        least_rows = apply_strips(proto, side, chosen)
        onnx.helper.set_model_props(proto, {LEAST_ROWS: str(least_rows)})
    if rules.group_norm:
        expand_group_norm(proto)
    apply_winograd(proto, chosen)
    return proto


def choose_forms(proto: onnx.ModelProto, engine: str, made_for: MadeFor) -> list[Choice]:
    """Return which convolutions of a graph an engine computes by Winograd's forms."""
    cost: Cost | None = RULES[engine].winograd
    if cost is None:
        return []
    if made_for.measured:
        cost = MeasuredCost(made_for.measured)
    return choose(proto, made_for.side, made_for.winograd_budget, cost)


def load_graph(model: Path) -> onnx.ModelProto:
    """Read a graph without its weights.

    Raises
    ------
    EngineError
        The file is no ONNX graph.
    """
    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise EngineError(f"{model.parent.name}/{model.name}: not an ONNX file") from error


def describe_rewrite(model: Path, made_for: MadeFor, engine: str = "onnxruntime") -> str:
    """Return in words how an engine runs the convolutions of a graph."""
    proto = load_graph(model)
    chosen = choose_forms(proto, engine, made_for)
    tail = find_tail(proto, made_for.side) if RULES[engine].strips else None
    added = {c.convolution.node.input[1]: c.convolution.added_bytes(c.tile) for c in chosen}
    forms = Counter(choice.tile for choice in chosen)
    total = len(convolutions(proto, made_for.side))
    text = "".join(f"{forms[t]} by Winograd's F({t.size}x{t.size}), " for t in TILES if forms[t])
    text += f"{total - len(chosen)} of {total} 3x3 convolutions direct"
    if added:
        text += f", {sum(added.values()) / 1e6:.0f} MB more"
    if tail is not None:
        text += f", the last {len(proto.graph.node) - tail.start} nodes in {tail.count} strips"
    return text
