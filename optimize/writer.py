"""Write the nodes of a graph, and the constants they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import helper, numpy_helper


@dataclass
class Writer:
    """Nodes in order, and the constants that they share."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    # Outputs of the nodes that this wrote.
    written: set[str] = field(default_factory=set)

    def store(self, graph: onnx.GraphProto) -> None:
        """Replace a graph's nodes by those written, and add the constants that it lacks."""
        known = {weight.name for weight in graph.initializer}
        graph.initializer.extend(
            numpy_helper.from_array(value, name)
            for name, value in self.constants.items()
            if name not in known
        )
        nodes = list(self.nodes)
        del graph.node[:]
        graph.node.extend(nodes)

    def add(self, kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        """Write a node with one output, and return the output's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        self.written.add(output)
        return output

    def once(self, kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        """Write a node that several tensors share, once."""
        if output in self.written:
            return output
        return self.add(kind, output, *inputs, **attributes)

    def shares(self, name: str, total: str, count: int) -> str:
        """Write a division of ``total`` into ``count`` nearly equal parts; [count]."""
        edges = self.constant_whole(f"edges:{count}", np.arange(count + 1))
        product = self.add("Mul", f"{name}:product", total, edges)
        bounds = self.add("Div", f"{name}:bounds", product, self.whole(count))
        upper = self.add("Slice", f"{name}:upper", bounds, self.whole(1), self.whole(count + 1))
        lower = self.add("Slice", f"{name}:lower", bounds, self.whole(0), self.whole(count))
        return self.add("Sub", f"{name}:shares", upper, lower)

    def whole(self, *values: int) -> str:
        """Return the name of a constant vector of whole numbers."""
        return self.constant_whole(f"whole:{','.join(str(value) for value in values)}", values)

    def constant_whole(self, name: str, values: ArrayLike) -> str:
        """Name a constant of whole numbers."""
        self.constants[name] = np.asarray(values, np.int64)
        return name

    def constant(self, name: str, value: NDArray[np.floating[Any]] | np.float64) -> str:
        """Name a constant of single precision."""
        self.constants[name] = np.asarray(value, np.float32)
        return name


def declare_domains(model: onnx.ModelProto, *domains: str) -> None:
    """State that a graph has operators of ONNX Runtime's own domains."""
    known = {opset.domain for opset in model.opset_import}
    model.opset_import.extend(helper.make_opsetid(d, 1) for d in domains if d not in known)
