"""Make the networks that a ControlNet takes part in: of the UNet, and of its own graph.

A ControlNet (Zhang et al. 2023, arXiv 2302.05543) adds to the features that the second half of a
UNet takes from the first, and to what is between. Its own first layers see only the picture, not
the step: they run once for all evaluations.
"""

from __future__ import annotations

import onnx
from onnx import helper

from bksdm.engines.errors import EngineError
from bksdm.engines.variants import CONTROL_IMAGE, DOWN_RESIDUAL, HINT_FEATURES, MID_RESIDUAL
from bksdm.optimize.feature_reuse import joins
from bksdm.optimize.graph import attributes
from bksdm.optimize.needed import keep_needed


def take_residuals(model: onnx.ModelProto) -> None:
    """Give a UNet an input for each residual, which it adds, in place.

    As ``down_block_additional_residuals`` and ``mid_block_additional_residual`` of diffusers'
    ``UNet2DConditionModel``: what its first half computes of its own features stays as it is.

    Raises
    ------
    EngineError
        The graph joins no features, has no mid block, or does not say how many channels there are.
    """
    graph = model.graph
    found = joins(graph)
    if not found or found[0].input[0] == found[0].input[1]:
        raise EngineError("unet: has no mid block, to which a ControlNet adds")
    known = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    sample = graph.input[0].type.tensor_type
    batch = sample.shape.dim[0].dim_param
    # The features are taken in the reverse of the order in which they are made.
    wanted = [(found[0], 0, MID_RESIDUAL)]
    wanted += [(node, 1, f"{DOWN_RESIDUAL}{k}") for k, node in enumerate(reversed(found))]
    added: dict[str, list[onnx.NodeProto]] = {}
    for node, position, name in wanted:
        feature, summed = node.input[position], f"{name}:sum"
        if feature not in known or not known[feature][1].dim_value:
            raise EngineError("unet: does not say its features' channels; export it anew")
        # Height and width may also be 1, for zeros.
        shape = [batch, known[feature][1].dim_value, f"{name}_height", f"{name}_width"]
        graph.input.append(helper.make_tensor_value_info(name, sample.elem_type, shape))
        add = helper.make_node("Add", [feature, name], [summed], f"{name}:add")
        added.setdefault(node.output[0], []).append(add)
        node.input[position] = summed
    nodes = [new for node in graph.node for new in (*added.get(node.output[0], ()), node)]
    del graph.node[:]
    graph.node.extend(nodes)


def keep_hint(model: onnx.ModelProto) -> None:
    """Reduce a ControlNet, in place, to the layers that see only the picture.

    Raises
    ------
    EngineError
        It has none.
    """
    graph = model.graph
    _, hint = _where_it_joins(graph)
    graph.node.append(helper.make_node("Identity", [hint], [HINT_FEATURES]))
    picture = next(value for value in graph.input if value.name == CONTROL_IMAGE)
    del graph.output[:]
    graph.output.append(_features(picture, _batch_of(picture), "out_"))
    keep_needed(graph)


def take_hint(model: onnx.ModelProto) -> None:
    """Let a ControlNet, in place, take what these layers make as an input.

    Raises
    ------
    EngineError
        It has no such layers.
    """
    graph = model.graph
    node, hint = _where_it_joins(graph)
    node.input[list(node.input).index(hint)] = HINT_FEATURES
    sample = graph.input[0]
    for other in graph.node:
        # The tracer takes the batch from either.
        if other.op_type == "Shape" and attributes(other).get("end") == 1:
            other.input[:] = [
                sample.name if name == CONTROL_IMAGE else name for name in other.input
            ]
    graph.input.append(_features(sample, _batch_of(sample)))
    keep_needed(graph)


def _where_it_joins(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, str]:
    """Return the first node that takes from picture and latents, and what it takes of the one."""
    seen = {CONTROL_IMAGE}
    latents = {graph.input[0].name}
    for node in graph.node:
        of_picture = [name for name in node.input if name in seen]
        of_latents = [name for name in node.input if name in latents]
        if of_picture and of_latents:
            return node, of_picture[0]
        # What is computed of a size is no feature.
        if node.op_type != "Shape":
            seen.update(node.output if of_picture else ())
            latents.update(node.output if of_latents else ())
    raise EngineError("controlnet: nowhere adds features of a picture to those of latents")


def _batch_of(value: onnx.ValueInfoProto) -> str:
    return str(value.type.tensor_type.shape.dim[0].dim_param)


def _features(like: onnx.ValueInfoProto, batch: str, prefix: str = "") -> onnx.ValueInfoProto:
    """Describe the features, of the type of another tensor, and as large as the latents."""
    shape = [batch, "channels", f"{prefix}height", f"{prefix}width"]
    return helper.make_tensor_value_info(HINT_FEATURES, like.type.tensor_type.elem_type, shape)
