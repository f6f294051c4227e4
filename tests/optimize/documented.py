"""ONNX Runtime's own operators by what its documentation says of them, in standard operators.

The CPU provider has no kernel for most of them, so that a graph with them runs only after this.
What is quoted is from ``docs/ContribOperators.md``. Inside of an operator is float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper, parser

# y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, over groups of channels, channels last;
# "activation: 0 for None, 1 for SiLU". gamma and beta may have another type than x.
NORMALISE = """
  first = Transpose <perm = [0, 3, 1, 2]> (wide)
  parts = Constant <value_int: int = @groups> ()
  axis = Constant <value_ints = [0]> ()
  rest = Constant <value_ints = [-1]> ()
  count = Unsqueeze (parts, axis)
  split = Concat <axis = 0> (axis, count, rest)
  grouped = Reshape (first, split)
  middle = Constant <value_ints = [2]> ()
  mean = ReduceMean (grouped, middle)
  apart = Sub (grouped, mean)
  square = Mul (apart, apart)
  variance = ReduceMean (square, middle)
  little = Constant <value_float: float = @epsilon> ()
  safe = Add (variance, little)
  deviation = Sqrt (safe)
  even = Div (apart, deviation)
  shape = Shape (first)
  picture = Reshape (even, shape)
  normal = Transpose <perm = [0, 2, 3, 1]> (picture)
  gamma32 = Cast <to = 1> (gamma)
  beta32 = Cast <to = 1> (beta)
  scaled = Mul (normal, gamma32)
  moved = Add (scaled, beta32)
  gate = Sigmoid (moved)
  silu = Mul (moved, gate)
  active = Constant <value_int: int = @activation> ()
  asked = Cast <to = 9> (active)
  chosen = Where (asked, silu, moved)
"""
FUNCTIONS = [
    f"""<domain: "com.microsoft", opset_import: ["": 23]>
GroupNorm <groups, activation, channels_last, epsilon> (x, gamma, beta) => (y) {{
  wide = Cast <to = 1> (x)
  {NORMALISE}
  y = CastLike (chosen, x)
}}""",
    # "s = x + skip + bias"; skip may be (N x C). Here it always comes without the optional bias.
    f"""<domain: "com.microsoft", opset_import: ["": 23]>
SkipGroupNorm <groups, activation, channels_last, epsilon> (x, gamma, beta, skip) => (y, s) {{
  whole = Shape (x)
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  three = Constant <value_ints = [3]> ()
  four = Constant <value_ints = [4]> ()
  images = Slice (whole, zero, one)
  width = Slice (whole, three, four)
  pixels = Constant <value_ints = [-1]> ()
  spread = Concat <axis = 0> (images, pixels, width)
  flat = Reshape (x, spread)
  rows = Reshape (skip, spread)
  total = Add (flat, rows)
  s = Reshape (total, whole)
  wide = Cast <to = 1> (s)
  {NORMALISE}
  y = CastLike (chosen, x)
}}""",
    # "after adding bias, hidden state is sliced into two tensors of same size, then left tensor
    # multiplies the Gelu activation result of right tensor"
    """<domain: "com.microsoft", opset_import: ["": 23]>
BiasSplitGelu (x, bias) => (y) {
  wide = Cast <to = 1> (x)
  bias32 = Cast <to = 1> (bias)
  moved = Add (wide, bias32)
  left, right = Split <axis = -1, num_outputs = 2> (moved)
  active = Gelu (right)
  product = Mul (left, active)
  y = CastLike (product, x)
}""",
    # "Add input with bias, then add residual inputs."
    """<domain: "com.microsoft", opset_import: ["": 23]>
BiasAdd (x, bias, skip) => (y) {
  moved = Add (x, bias)
  y = Add (moved, skip)
}""",
    # "Sum of the input and skip inputs (and bias if it exists)", and its layer normalisation.
    """<domain: "com.microsoft", opset_import: ["": 23]>
SkipLayerNormalization <epsilon> (x, skip, gamma, beta, bias) => (y, mean, inverse, s) {
  moved = Add (x, bias)
  s = Add (moved, skip)
  wide = Cast <to = 1> (s)
  last = Constant <value_ints = [-1]> ()
  mean = ReduceMean (wide, last)
  apart = Sub (wide, mean)
  square = Mul (apart, apart)
  variance = ReduceMean (square, last)
  little = Constant <value_float: float = @epsilon> ()
  safe = Add (variance, little)
  deviation = Sqrt (safe)
  inverse = Reciprocal (deviation)
  even = Mul (apart, inverse)
  gamma32 = Cast <to = 1> (gamma)
  beta32 = Cast <to = 1> (beta)
  scaled = Mul (even, gamma32)
  moved32 = Add (scaled, beta32)
  y = CastLike (moved32, x)
}""",
    # "Compute x * Sigmoid(alpha * x)."
    """<domain: "com.microsoft", opset_import: ["": 23]>
QuickGelu <alpha> (x) => (y) {
  wide = Cast <to = 1> (x)
  factor = Constant <value_float: float = @alpha> ()
  scaled = Mul (wide, factor)
  gate = Sigmoid (scaled)
  product = Mul (wide, gate)
  y = CastLike (product, x)
}""",
]
# "packed QKV with shape (batch_size, kv_sequence_length, num_heads, 3, head_size)", "packed KV with
# shape (batch_size, kv_sequence_length, num_heads, 2, head_size)"
PACKED = {
    1: ("qkv", "q, k, v = Split <axis = 3, num_outputs = 3> (qkv)"),
    2: ("q, kv", "k, v = Split <axis = 3, num_outputs = 2> (kv)"),
    3: ("q, k, v", ""),
}
ATTENTION = """<domain: "com.microsoft", opset_import: ["": 23]>
MultiHeadAttention{count} <num_heads{attributes}> ({inputs}) => (y) {{
  {split}
  rows = Constant <value_ints = [0, 0, -1]> ()
  queries = Reshape (q, rows)
  keys = Reshape (k, rows)
  values = Reshape (v, rows)
  y = Attention <
    q_num_heads: int = @num_heads, kv_num_heads: int = @num_heads{settings}
  > (queries, keys, values)
}}"""


def documented(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of standard operators only."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    texts = dict.fromkeys(FUNCTIONS)
    for node in whole.graph.node:
        if node.op_type == "MultiHeadAttention":
            texts.setdefault(_attention(node))
            # A function has one form of inputs.
            node.op_type += str(len(node.input))
    whole.functions.extend(parser.parse_function(text) for text in texts)
    for node in whole.graph.node:
        if node.op_type in ("GroupNorm", "SkipGroupNorm"):
            (last,) = (a.i for a in node.attribute if a.name == "channels_last")
            assert last == 1
    plain = inliner.inline_local_functions(whole)
    assert not {node.domain for node in plain.graph.node} - {""}
    for node in plain.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name != "value":
            value = helper.get_attribute_value(node.attribute[0])
            dtype = np.float32 if isinstance(value, float) else np.int64
            tensor = numpy_helper.from_array(np.array(value, dtype))
            node.attribute[0].CopyFrom(helper.make_attribute("value", tensor))
    kept = [opset for opset in plain.opset_import if not opset.domain]
    del plain.opset_import[:]
    plain.opset_import.extend(kept)
    return plain


def _attention(node: onnx.NodeProto) -> str:
    names = [a.name for a in node.attribute if a.name != "num_heads"]
    stated = {
        "scale": "scale: float = @scale",
        "unidirectional": "is_causal: int = @unidirectional",
    }
    inputs, split = PACKED[len(node.input)]
    return ATTENTION.format(
        count=len(node.input),
        attributes="".join(f", {name}" for name in names),
        settings="".join(f", {stated[name]}" for name in names),
        inputs=inputs,
        split=split,
    )
