"""What a graph computes of its tensors' sizes, as expressions that can be compared."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import numpy_helper

from bksdm.optimize.graph import producers_of

# A number, ("size", tensor, axis), or (operator, expression, expression).
Size = int | tuple[Any, ...]

ARITHMETIC = {"Add", "Sub", "Mul", "Div"}
SAME_VALUES = {"Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity"}


class Sizes:
    """Whole numbers that a graph computes from constants and from sizes of its tensors."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producers = producers_of(graph)
        self._weights = {weight.name: weight for weight in graph.initializer}
        self._inputs = {value.name for value in graph.input}

    def entries(self, name: str) -> list[Size] | None:
        """Return the entries of a vector, or the one of a scalar; None if they are unknown."""
        weight = self._weights.get(name)
        if weight is not None:
            return self._constants(weight)
        node = self._producers.get(name)
        if node is None:
            return None
        if node.op_type == "Shape":
            settings = {a.name: a.i for a in node.attribute}
            start, end = settings.get("start", 0), settings.get("end", -1)
            known = 0 <= start <= end
            return [("size", node.input[0], axis) for axis in range(start, end)] if known else None
        parts = [self.entries(part) for part in self._parts(node)]
        if not parts or any(part is None for part in parts):
            return None
        found = [entry for part in parts if part is not None for entry in part]
        if node.op_type in ARITHMETIC:
            return [(node.op_type, *found)] if len(found) == 2 else None
        return found

    def is_batch(self, size: Size) -> bool:
        """Return whether it is the number of images: the first size of an input of the graph."""
        return (
            isinstance(size, tuple)
            and size[0] == "size"
            and size[2] == 0
            and (size[1] in self._inputs)
        )

    def _parts(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs that a node's values come from; none for other operators."""
        if node.op_type in SAME_VALUES:
            return [node.input[0]]
        return list(node.input) if node.op_type in {"Concat", *ARITHMETIC} else []

    @staticmethod
    def _constants(weight: onnx.TensorProto) -> list[Size] | None:
        small = len(weight.dims) < 2 and weight.data_location == onnx.TensorProto.DEFAULT
        if weight.data_type != onnx.TensorProto.INT64 or not small:
            return None
        return [int(value) for value in numpy_helper.to_array(weight).reshape(-1)]
