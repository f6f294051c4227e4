"""State causal attention as such, where a graph says it by a mask.

A mask is read for every pair of tokens and keeps attention from kernels that take none. Bringing it
to the batch takes arithmetic with shapes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bksdm.engines.protocol import Array
from bksdm.optimize.graph import producers_of
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.weights import find_files, read_weights


def state_causal(model: onnx.ModelProto, path: Path) -> int:
    """Replace masks that let every token see itself and those before it by ``is_causal``, in place.

    Parameters
    ----------
    model : ModelProto
        Its ``Attention`` nodes attend to their own tokens: as many queries as keys.
    path : Path
        ``model.onnx``, beside which the masks may lie.

    Returns
    -------
    int
        Number of nodes that lost their mask.

    Raises
    ------
    EngineError
        A file of the weights is missing or too short.
    """
    masked = [
        node
        for node in model.graph.node
        if node.op_type == "Attention" and not node.domain and len(node.input) == 4
    ]
    if not masked:
        return 0
    producers = producers_of(model.graph)
    causal = _triangles(model, path)
    stated = 0
    for node in masked:
        made = producers.get(node.input[3])
        mask = made.input[0] if made is not None and made.op_type == "Expand" else node.input[3]
        if mask in causal:
            del node.input[3]
            kept = [a for a in node.attribute if a.name != "is_causal"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("is_causal", 1)])
            stated += 1
    keep_needed(model.graph)
    return stated


def _triangles(model: onnx.ModelProto, path: Path) -> set[str]:
    """Return the stored masks [1, 1, tokens, tokens] that are true up to their diagonal."""
    found = [
        weight
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.BOOL and len(weight.dims) == 4
    ]
    network = path.parent.name
    stored: dict[str, Array] = {}
    if any(weight.data_location == onnx.TensorProto.EXTERNAL for weight in found):
        stored = read_weights(model, find_files(model, path.parent, network), network)
    triangles = set()
    for weight in found:
        inside = weight.name not in stored
        mask = numpy_helper.to_array(weight) if inside else stored[weight.name]
        if mask.shape[:2] == (1, 1) and np.array_equal(
            mask[0, 0], np.tri(*mask.shape[2:], dtype=bool)
        ):
            triangles.add(weight.name)
    return triangles
