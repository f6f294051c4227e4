"""Cut a UNet in two, so that its deep features can serve several steps.

Features deep inside a UNet hardly change from one step to the next, while what is near its output
does (Ma et al. 2024, "DeepCache", arXiv 2312.00858). The last layer of the last block takes two
tensors: deep features, and what the input's first convolution makes. The whole network shows its
deep features as a second output; the shallow one takes them as an input and is only that
convolution, that layer, and what follows.
"""

from __future__ import annotations

import onnx
from onnx import helper

from bksdm.engines.errors import EngineError
from bksdm.engines.variants import DEEP_FEATURES
from bksdm.optimize.needed import keep_needed


def show_deep_features(model: onnx.ModelProto) -> None:
    """Add the deep features to a UNet's outputs, in place: [batch, channels, height, width].

    A graph without such a layer does not change.
    """
    graph = model.graph
    join = _last_join(graph)
    if join is not None:
        graph.node.append(helper.make_node("Identity", [join.input[0]], [DEEP_FEATURES]))
        graph.output.append(_picture_of(graph))


def keep_shallow(model: onnx.ModelProto) -> None:
    """Reduce a UNet, in place, to what follows its deep features, which become its last input.

    Raises
    ------
    EngineError
        The graph has no such layer.
    """
    graph = model.graph
    join = _last_join(graph)
    if join is None:
        raise EngineError("unet: joins no features along the channels, so none can be reused")
    join.input[0] = DEEP_FEATURES
    graph.input.append(_picture_of(graph))
    keep_needed(graph)


def joins(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that concatenate two tensors along the channels, the first to run first.

    In a UNet these join features of its second half with those of its first, the newest first.
    """
    return [
        node
        for node in graph.node
        if node.op_type == "Concat"
        and [a.i for a in node.attribute if a.name == "axis"] == [1]
        and len(node.input) == 2
    ]


def _last_join(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    return next(reversed(joins(graph)), None)


def _picture_of(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """Describe the deep features: as many as the sample's images, and as large."""
    sample = graph.input[0]
    dims = [d.dim_param or d.dim_value for d in sample.type.tensor_type.shape.dim]
    shape = [dims[0], "channels", *dims[2:]]
    return helper.make_tensor_value_info(DEEP_FEATURES, sample.type.tensor_type.elem_type, shape)
