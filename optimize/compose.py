"""Apply to a graph all rewriting rules that its engine gains from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from bksdm.engines.lora_inputs import without_factors
from bksdm.engines.variants import CONTROLLED, DEEP, HINTED, SHALLOW
from bksdm.optimize.attention import fuse_attention
from bksdm.optimize.blocks import block_size
from bksdm.optimize.causal import state_causal
from bksdm.optimize.choice import Choice, Cost, MeasuredCost, choose, direct_cost
from bksdm.optimize.convolutions import convolutions
from bksdm.optimize.cuda import WIDEST_HEAD, write_for_cuda
from bksdm.optimize.feed_forward import split_feed_forward
from bksdm.optimize.graph import load_graph
from bksdm.optimize.group_norm import expand_group_norm
from bksdm.optimize.lora_paths import Factors, add_paths, declare_factors
from bksdm.optimize.row_tiles import Tail, apply_row_tiles, find_tail
from bksdm.optimize.rules import LEAST_ROWS, MadeFor, Rules
from bksdm.optimize.shared_rows import share_rows
from bksdm.optimize.tiles import TILES
from bksdm.optimize.variants import apply_variant
from bksdm.optimize.winograd import apply_winograd


def compose(model: Path, rules: Rules, made_for: MadeFor, variant: str = "") -> onnx.ModelProto:
    """Return the graph rewritten for an engine; the weights stay in their file.

    Parameters
    ----------
    model : Path
        ``model.onnx``.
    rules : Rules
        Rules of the engine.
    made_for : MadeFor
        Input to optimise for.
    variant : str
        Of :mod:`bksdm.engines.variants`, and of :mod:`bksdm.engines.lora_inputs`.

    Raises
    ------
    BundleError
        The file is missing, or no ONNX graph.
    EngineError
        It has not what the variant needs.
    """
    proto = load_graph(model)
    variant, scope = without_factors(variant)
    apply_variant(proto, variant)
    if variant in (DEEP, SHALLOW, CONTROLLED, HINTED) and not rules.cuda:
        # The loop on a GPU gives every row its latents.
        share_rows(proto)
    factors: Factors = declare_factors(proto, scope) if scope else {}
    side = made_for.side
    chosen, tail = choose_forms(proto, rules, made_for)
    block = block_size() if rules.blocks else 0
    if rules.cuda:
        state_causal(proto, model)
    if rules.attention:
        fuse_attention(proto, WIDEST_HEAD if rules.cuda else None)
    if rules.cuda:
        write_for_cuda(proto, rules.packed)
    if rules.feed_forward:
        split_feed_forward(proto, side, factors)
    if tail is not None:
        apply_row_tiles(proto, tail, block)
    least_rows = 0 if tail is None else tail.count
    onnx.helper.set_model_props(proto, {LEAST_ROWS: str(least_rows)})
    if rules.group_norm:
        expand_group_norm(proto)
    if factors:
        add_paths(proto, factors)
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
        # No measurements at all leave every convolution direct.
        cost = MeasuredCost(made_for.measured, cost if made_for.measured else direct_cost)
    chosen = choose(proto, made_for.side, cost)
    tail = find_tail(proto, made_for.side, chosen, block_size()) if rules.blocks else None
    return chosen, tail


def tiles_rows(model: Path, rules: Rules, made_for: MadeFor) -> bool:
    """Return whether an engine computes the end of a graph in row tiles."""
    return choose_forms(load_graph(model), rules, made_for)[1] is not None


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
