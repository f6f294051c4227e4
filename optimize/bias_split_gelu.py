"""Compute bias, halves, GELU and product of a gated feed-forward network in one kernel.

ONNX Runtime's ``BiasSplitGelu``: h ⊙ gelu(g) where [h, g] = x + b. Its CUDA kernel is compiled for
three widths, those of Stable Diffusion 1. Not yet run on a GPU.
"""

from __future__ import annotations

import onnx

from bksdm.optimize.feed_forward import find_feed_forward
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.writer import Writer, declare_domains

DOMAIN = "com.microsoft"
# Widths of [h, g] that bias_split_gelu.cc accepts.
WIDTHS = (2560, 5120, 10240)


def fuse_bias_split_gelu(model: onnx.ModelProto) -> int:
    """Replace ``Add → Split → Gelu → Mul`` in place where the kernel takes the width.

    Returns
    -------
    int
        Number of replaced networks.
    """
    found = {}
    for gate in find_feed_forward(model.graph):
        if 2 * gate.width in WIDTHS:
            product, *_, gated, _ = gate.replaced
            found[gated] = (product, gate.up[1])
    w = Writer()
    for node in model.graph.node:
        inputs = found.get(node.output[0])
        if inputs is None:
            w.nodes.append(node)
        else:
            w.add("BiasSplitGelu", node.output[0], *inputs, domain=DOMAIN)
    if found:
        w.store(model.graph)
        keep_needed(model.graph)
        declare_domains(model, DOMAIN)
    return len(found)
