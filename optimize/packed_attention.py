"""Make queries, keys and values of attention by one product, packed as ONNX Runtime takes them.

``MultiHeadAttention`` takes [batch, tokens, heads, 3, width] in place of all three where a network
attends to its own tokens, and [batch, tokens, heads, 2, width] for keys and values where it attends
to the text. Two products of three, or one of two, are saved. What that is worth depends on the
kernel that ONNX Runtime 1.31 chooses: those made for compute capability 7.5 to 8.9 read packed
tensors, while for flash attention (8.0 and later) a further kernel unpacks them first, which is
spared with three tensors. Not yet run on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx

from bksdm.optimize.graph import attributes, producers_of
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.stored_weights import stored_sizes
from bksdm.optimize.writer import Writer


def pack_attention(model: onnx.ModelProto) -> tuple[int, int]:
    """Pack the inputs of ``MultiHeadAttention`` where they are products of one tensor, in place.

    The products have stored weights, no bias, and no other reader. Packed weights are computed from
    the stored ones, and folded when a graph is loaded.

    Returns
    -------
    tuple of int
        Number of nodes that take queries, keys and values in one, and keys and values.
    """
    graph = model.graph
    producers = producers_of(graph)
    weights = stored_sizes(graph)
    readers = Counter(name for node in graph.node for name in node.input)

    def products(names: Sequence[str]) -> list[onnx.NodeProto]:
        """Return the products of one tensor and weights of one shape that make all of these."""
        found = [producers[name] for name in names if name in producers and readers[name] == 1]
        of_weights = [n for n in found if n.op_type == "MatMul" and n.input[1] in weights]
        sources = {(node.input[0], weights[node.input[1]]) for node in of_weights}
        return of_weights if len(of_weights) == len(names) and len(sources) == 1 else []

    w = Writer()
    counts: Counter[int] = Counter()
    for node in graph.node:
        found: list[onnx.NodeProto] = []
        if node.op_type == "MultiHeadAttention" and len(node.input) == 3:
            found = products(node.input) or products(node.input[1:])
        if not found:
            w.nodes.append(node)
            continue
        counts[len(found)] += 1
        packed = _write_product(w, node.output[0], found, attributes(node)["num_heads"], weights)
        replacement = onnx.NodeProto()
        replacement.CopyFrom(node)
        replacement.input[:] = [*node.input[: -len(found)], packed]
        w.nodes.append(replacement)
    w.store(graph)
    keep_needed(graph)
    return counts[3], counts[2]


def _write_product(
    w: Writer,
    name: str,
    products: list[onnx.NodeProto],
    heads: int,
    weights: Mapping[str, tuple[int, ...]],
) -> str:
    """Write several products of one tensor as one, [batch, tokens, heads, products, width]."""
    count = len(products)
    rows, columns = weights[products[0].input[1]]
    width = columns // heads
    parts = [
        w.add(
            "Reshape",
            f"{product.output[0]}:apart",
            product.input[1],
            w.whole(rows, heads, 1, width),
        )
        for product in products
    ]
    joined = w.add("Concat", f"{name}:joined", *parts, axis=2)
    weight = w.add("Reshape", f"{name}:weight", joined, w.whole(rows, count * columns))
    product = w.add("MatMul", f"{name}:product", products[0].input[0], weight)
    return w.add("Reshape", f"{name}:packed", product, w.whole(0, 0, heads, count, width))
