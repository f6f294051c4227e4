"""Find the convolutions of a graph that can be rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from bksdm.optimize.graph import attributes
from bksdm.optimize.sides import picture_sides
from bksdm.optimize.tiles import DOUBLED_TILES, PLAIN_TILES, Tile


@dataclass(frozen=True)
class Convolution:
    """A 3×3 convolution with stride 1 and padding 1, on a picture of nominal size.

    Attributes
    ----------
    node
        The convolution.
    channels_in, channels_out
        Of its filter.
    side
        Height and width of its output.
    doubling
        The Resize before it, if there is one.
    """

    node: onnx.NodeProto
    channels_in: int
    channels_out: int
    side: int
    doubling: onnx.NodeProto | None = None

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The forms other than the direct one in which it could be computed."""
        return PLAIN_TILES if self.doubling is None else DOUBLED_TILES

    @property
    def source(self) -> str:
        """The tensor that the rewritten form reads."""
        node = self.node if self.doubling is None else self.doubling
        return str(node.input[0])

    @property
    def size(self) -> tuple[int, int, int, bool]:
        """The properties on which its time depends."""
        return self.channels_in, self.channels_out, self.side, self.doubling is not None


def convolutions(model: onnx.ModelProto, side: int) -> list[Convolution]:
    """Return the convolutions that could be rewritten, with the sizes they work on.

    Parameters
    ----------
    model : ModelProto
        The graph; only its float32 convolutions are considered.
    side : int
        Height and width of its input.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    sides = picture_sides(model, side)
    doubling = {
        node.output[0]: node
        for node in model.graph.node
        if node.op_type == "Resize" and (always_doubles(node, weights) or may_double(node))
    }
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv" and _fits(node, weights):
            out, into = weights[node.input[1]].dims[:2]
            doubled = doubling.get(node.input[0])
            found.append(Convolution(node, into, out, sides[node.output[0]], doubled))
    return found


def always_doubles(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Return whether a Resize repeats rows and columns of pictures of every size."""
    scales = weights.get(node.input[2]) if len(node.input) == 3 else None
    return (
        scales is not None
        and _repeats(node)
        and scales.data_location != onnx.TensorProto.EXTERNAL
        and numpy_helper.to_array(scales).tolist() == [1, 1, 2, 2]
    )


def may_double(node: onnx.NodeProto) -> bool:
    """Return whether a Resize repeats rows and columns of pictures of some sizes.

    In a UNet, the size is an input: that of the features it is joined with, which may be odd.
    """
    return len(node.input) == 4 and not node.input[2] and _repeats(node)


def _repeats(node: onnx.NodeProto) -> bool:
    settings = attributes(node)
    return (
        settings.get("mode", b"nearest") == b"nearest"
        and settings.get("coordinate_transformation_mode") == b"asymmetric"
        and settings.get("nearest_mode") == b"floor"
        and "axes" not in settings
    )


def _fits(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    weight = weights.get(node.input[1])
    settings = attributes(node)
    return (
        weight is not None
        and weight.data_type == onnx.TensorProto.FLOAT
        and list(weight.dims[2:]) == [3, 3]
        and settings.get("group", 1) == 1
        and settings.get("strides", [1, 1]) == [1, 1]
        and settings.get("dilations", [1, 1]) == [1, 1]
        and settings.get("pads") == [1, 1, 1, 1]
        and len(node.input) == 3
    )
