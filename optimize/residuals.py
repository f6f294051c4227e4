"""Add a linear layer's bias and the residual in one kernel, with the normalisation that follows.

A transformer block is x + f(norm(x)), and f ends with a product and its bias. ONNX Runtime has
``SkipLayerNormalization`` for x + f, its bias and the next normalisation, and ``BiasAdd`` where no
normalisation follows, for the widths of Stable Diffusion 1. Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from bksdm.optimize.graph import attributes, producers_of
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.stored_weights import put_casts_first, stored_sizes
from bksdm.optimize.writer import Writer, declare_domains

DOMAIN = "com.microsoft"
# Channels that bias_add.cc accepts.
BIAS_ADD_WIDTHS = (320, 640, 1280)


@dataclass(frozen=True)
class _Residual:
    """A sum of a product, its bias and what was there before."""

    total: str
    product: str
    bias: str
    skip: str
    width: int


def fuse_residuals(model: onnx.ModelProto) -> tuple[int, int]:
    """Replace ``MatMul → Add → Add``, the latter two, and a ``LayerNormalization``, in place.

    Both sums are of tensors [batch, tokens, channels], which is what stands around a normalisation
    of tokens: what is normalised here has a scale and a bias per channel.

    Returns
    -------
    tuple of int
        Number of normalisations that took their sum, and of sums without one.
    """
    graph = model.graph
    put_casts_first(graph)
    readers: dict[str, list[onnx.NodeProto]] = {value.name: [] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    tokens = _normalised(graph)
    weights = stored_sizes(graph)
    w = Writer()
    skipped: set[str] = set()
    normalised = summed = 0
    residuals = {found.total: found for found in _find(graph, readers, weights)}
    for node in graph.node:
        found = residuals.get(node.output[0])
        if node.output[0] in skipped:
            continue
        if found is None:
            w.nodes.append(node)
            continue
        after = readers[found.total]
        norms = [reader for reader in after if _is_norm(reader, found.total, weights)]
        if len(norms) == 1:
            (norm,) = norms
            kept = len(after) > 1 or found.total in outputs
            w.nodes.append(
                onnx.helper.make_node(
                    "SkipLayerNormalization",
                    [found.product, found.skip, *norm.input[1:], found.bias],
                    [norm.output[0], *(["", "", found.total] if kept else [])],
                    domain=DOMAIN,
                    epsilon=attributes(norm).get("epsilon", 1e-5),
                )
            )
            skipped.add(norm.output[0])
            normalised += 1
        elif found.width in BIAS_ADD_WIDTHS and found.skip in tokens:
            w.add("BiasAdd", found.total, found.product, found.bias, found.skip, domain=DOMAIN)
            summed += 1
        else:
            w.nodes.append(node)
    if normalised or summed:
        w.store(graph)
        keep_needed(graph)
        declare_domains(model, DOMAIN)
    return normalised, summed


def _normalised(graph: onnx.GraphProto) -> set[str]:
    """Return all tensors that a normalisation of tokens reads: [batch, tokens, channels]."""
    return {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}


def _is_norm(node: onnx.NodeProto, x: str, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a node normalises the last axis of ``x``, with stored scale and bias."""
    if node.op_type != "LayerNormalization" or node.domain or len(node.output) != 1:
        return False
    if len(node.input) != 3 or any(name not in weights for name in node.input[1:]):
        return False
    return bool(node.input[0] == x and attributes(node).get("axis", -1) == -1)


def _find(
    graph: onnx.GraphProto,
    readers: Mapping[str, list[onnx.NodeProto]],
    weights: Mapping[str, tuple[int, ...]],
) -> list[_Residual]:
    producers = producers_of(graph)
    found = []
    for node in graph.node:
        if node.op_type != "Add" or not weights.keys().isdisjoint(node.input):
            continue
        for position, name in enumerate(node.input):
            inner = producers.get(name)
            if inner is None or inner.op_type != "Add" or readers[name] != [node]:
                continue
            biases = [part for part in inner.input if part in weights]
            products = [part for part in inner.input if part not in weights and part in producers]
            if len(biases) != 1 or len(products) != 1 or len(weights[biases[0]]) != 1:
                continue
            if producers[products[0]].op_type != "MatMul":
                continue
            (width,) = weights[biases[0]]
            skip = node.input[1 - position]
            found.append(_Residual(node.output[0], products[0], biases[0], skip, width))
            break
    return found
