"""Write group normalisation in the form that ONNX Runtime's CPU provider runs fastest.

It has no kernel for ``GroupNormalization`` and inlines its definition: a dozen passes over memory,
casts included. ``InstanceNormalization`` has one, and is the same over groups taken as channels.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bksdm.optimize.graph import attributes


def expand_group_norm(model: onnx.ModelProto) -> int:
    """Replace float32 ``GroupNormalization`` nodes in place.

    y = γ (x − μ_g) / √(σ²_g + ε) + β, with mean and variance over each group of channels.

    Returns
    -------
    int
        Number of replaced nodes.
    """
    graph = model.graph
    channels_of = _float_vectors(graph)
    single: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    replaced = 0
    for node in graph.node:
        width = channels_of.get(node.input[1]) if node.op_type == "GroupNormalization" else None
        if width is None:
            nodes.append(node)
            continue
        settings = attributes(node)
        groups, name = int(settings["num_groups"]), node.output[0]
        for key, value in (
            (f"group_norm:{groups}:split", np.array([0, groups, -1])),
            (f"group_norm:{groups}:ones", np.ones(groups, np.float32)),
            (f"group_norm:{groups}:zeros", np.zeros(groups, np.float32)),
            ("group_norm:column", np.array([-1, 1])),
        ):
            single[key] = numpy_helper.from_array(value, key)
        split, ones, zeros = (f"group_norm:{groups}:{part}" for part in ("split", "ones", "zeros"))
        channels = f"group_norm:{width}"
        single[channels] = numpy_helper.from_array(np.array([0, width, -1]), channels)
        x, gamma, beta = node.input
        nodes += [
            helper.make_node("Reshape", [x, split], [f"{name}:groups"]),
            helper.make_node(
                "InstanceNormalization",
                [f"{name}:groups", ones, zeros],
                [f"{name}:normal"],
                epsilon=settings.get("epsilon", 1e-5),
            ),
            helper.make_node("Reshape", [f"{name}:normal", channels], [f"{name}:channels"]),
            helper.make_node("Reshape", [gamma, "group_norm:column"], [f"{name}:gamma"]),
            helper.make_node("Reshape", [beta, "group_norm:column"], [f"{name}:beta"]),
            helper.make_node("Mul", [f"{name}:channels", f"{name}:gamma"], [f"{name}:scaled"]),
            helper.make_node("Add", [f"{name}:scaled", f"{name}:beta"], [f"{name}:shifted"]),
            helper.make_node("Shape", [x], [f"{name}:shape"]),
            helper.make_node("Reshape", [f"{name}:shifted", f"{name}:shape"], [name]),
        ]
        replaced += 1
    graph.initializer.extend(single.values())
    del graph.node[:]
    graph.node.extend(nodes)
    return replaced


def _float_vectors(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the lengths of stored float32 vectors, and of float16 ones that a Cast widens."""
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    vectors = {w.name: w for w in graph.initializer if len(w.dims) == 1}
    found = {name: w.dims[0] for name, w in vectors.items() if w.data_type == single}
    for node in graph.node:
        stored = vectors.get(node.input[0]) if node.op_type == "Cast" else None
        if stored is None or stored.data_type != half:
            continue
        if [attribute.i for attribute in node.attribute if attribute.name == "to"] == [single]:
            found[node.output[0]] = stored.dims[0]
    return found
