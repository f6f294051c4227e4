"""Count a graph's operators, and those that ONNX Runtime's CUDA provider has no kernel for.

Such a node runs on the CPU, with a copy to it and one back in the middle of the network. The tables
say what onnxruntime-gpu 1.31.1 assigns to its CUDA provider in float16, asked for each operator of
opset 23 by a graph of one node with ``session.record_ep_graph_assignment_info``. They list what
such networks are made of; what is not listed counts as without.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx

VERSION = "1.31.1"
STANDARD = {
    *("Abs", "Add", "Attention", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant"),
    *("ConstantOfShape", "Conv", "ConvTranspose", "Cos", "DepthToSpace", "Div", "Erf", "Exp"),
    *("Expand", "Flatten", "Floor", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "HardSigmoid"),
    *("HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "Log", "MatMul", "Max", "Min"),
    *("Mish", "Mul", "Neg", "PRelu", "Pad", "Pow", "RMSNormalization", "Reciprocal", "ReduceMax"),
    *("ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Shape", "Sigmoid", "Sign"),
    *("Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh"),
    *("Tile", "Transpose", "Unsqueeze", "Where"),
}
CONTRIBUTED = {
    *("BiasAdd", "BiasGelu", "BiasSplitGelu", "FastGelu", "GroupNorm", "MultiHeadAttention"),
    *("NhwcConv", "QuickGelu", "SkipGroupNorm", "SkipLayerNormalization"),
}
KERNELS = {"": STANDARD, "com.microsoft": CONTRIBUTED}
# What computes with sizes, which ONNX Runtime leaves to the CPU.
ARITHMETIC = {
    *("Add", "Cast", "Concat", "Div", "Gather", "Mul", "Reshape", "Slice"),
    *("Squeeze", "Sub", "Unsqueeze"),
}


@dataclass(frozen=True)
class Census:
    """How many nodes a graph has of which operator.

    Attributes
    ----------
    operators
        All of them, by name.
    without_kernel
        Those without a CUDA kernel for float16 in :data:`VERSION`.
    of_sizes
        Those that compute with sizes of tensors. ``Shape`` is none: it copies nothing.
    """

    operators: Counter[str]
    without_kernel: Counter[str]
    of_sizes: Counter[str]

    @property
    def leaves_gpu(self) -> bool:
        """Whether a node runs on the CPU."""
        return bool(self.without_kernel or self.of_sizes)

    def __str__(self) -> str:
        listed = _listed(self.operators)
        text = f"{self.operators.total()} nodes ({listed})"
        if not self.leaves_gpu:
            return f"{text}, all with a CUDA kernel"
        for nodes, what in ((self.without_kernel, "without one"), (self.of_sizes, "on sizes")):
            if nodes:
                text += f", {nodes.total()} {what} ({_listed(nodes)})"
        return text


def take_census(model: onnx.ModelProto) -> Census:
    """Count the nodes of a graph; what is computed from weights alone is folded and not counted."""
    constant = {weight.name for weight in model.graph.initializer} | {""}
    operators: Counter[str] = Counter()
    without: Counter[str] = Counter()
    of_sizes: Counter[str] = Counter()
    sizes: set[str] = set()
    for node in model.graph.node:
        if constant.issuperset(node.input):
            constant.update(node.output)
            continue
        operators[node.op_type] += 1
        if node.op_type == "Shape":
            sizes.update(node.output)
        elif node.op_type in ARITHMETIC and _reads_only(node, sizes, constant):
            sizes.update(node.output)
            of_sizes[node.op_type] += 1
        elif node.op_type not in KERNELS.get(node.domain, ()):
            without[node.op_type] += 1
    return Census(operators, without, of_sizes)


def _reads_only(node: onnx.NodeProto, sizes: set[str], constant: set[str]) -> bool:
    """Return whether a node reads sizes, and beside them only constants."""
    moving = set(node.input) - constant
    return bool(moving) and moving <= sizes


def _listed(nodes: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(nodes.items()))
