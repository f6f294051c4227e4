"""Compute x · sigmoid(α x) in one kernel: SiLU where α is 1, and the activation of CLIP with 1.702.

ONNX Runtime's ``QuickGelu`` is documented as exactly that.
"""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

from bksdm.optimize.graph import producers_of
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.writer import Writer, declare_domains

DOMAIN = "com.microsoft"


def fuse_quick_gelu(model: onnx.ModelProto) -> int:
    """Replace ``Mul(x, Sigmoid(x))`` and ``Mul(x, Sigmoid(Mul(x, α)))`` in place.

    Returns
    -------
    int
        Number of replaced activations.
    """
    graph = model.graph
    producers = producers_of(graph)
    scalars = {
        weight.name: float(numpy_helper.to_array(weight))
        for weight in graph.initializer
        if not weight.dims and weight.data_location == onnx.TensorProto.DEFAULT
    }
    w = Writer()
    replaced = 0
    for node in graph.node:
        found = _match(node, producers, scalars) if node.op_type == "Mul" else None
        if found is None:
            w.nodes.append(node)
            continue
        x, alpha = found
        w.nodes.append(
            helper.make_node("QuickGelu", [x], list(node.output), domain=DOMAIN, alpha=alpha)
        )
        replaced += 1
    if replaced:
        w.store(graph)
        keep_needed(graph)
        declare_domains(model, DOMAIN)
    return replaced


def _match(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto], scalars: dict[str, float]
) -> tuple[str, float] | None:
    """Return x and α of a product x · sigmoid(α x)."""
    for x, gate in (node.input, reversed(node.input)):
        made = producers.get(gate)
        if made is None or made.op_type != "Sigmoid":
            continue
        if made.input[0] == x:
            return x, 1.0
        scaled = producers.get(made.input[0])
        if scaled is None or scaled.op_type != "Mul" or x not in scaled.input:
            continue
        factors = [scalars[name] for name in scaled.input if name in scalars]
        if len(factors) == 1:
            return x, factors[0]
    return None
