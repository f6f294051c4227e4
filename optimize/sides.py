"""The sizes of a network's tensors, for a picture of a given size."""

from __future__ import annotations

import onnx

from bksdm.engines.variants import is_residual
from bksdm.optimize.graph import attributes


def picture_sides(model: onnx.ModelProto, side: int) -> dict[str, int]:
    """Return height and width of all tensors that stem from the picture, including tokens.

    Parameters
    ----------
    model : ModelProto
        A network of Stable Diffusion, where every Resize doubles height and width.
    side : int
        Height and width of its input.
    """
    pictures = (
        value
        for value in model.graph.input
        # What is added to smaller features is as small as these.
        if len(value.type.tensor_type.shape.dim) == 4 and not is_residual(value.name)
    )
    sides = {value.name: side for value in pictures}
    for node in model.graph.node:
        known = [sides[name] for name in node.input if name in sides]
        # The time embedding takes its batch from the picture's shape, but has no side.
        if not known or node.op_type == "Shape":
            continue
        here = max(known)
        settings = attributes(node)
        if node.op_type == "Conv":
            here = -(-here // settings.get("strides", [1])[0])
        elif node.op_type == "Resize":
            here *= 2
        sides.update(dict.fromkeys(node.output, here))
    return sides
