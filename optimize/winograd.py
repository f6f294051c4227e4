"""Convolutions as products of tiles, in ordinary ONNX operators.

Over channels the ⊙ of :mod:`~bksdm.optimize.tiles` becomes as many matrix products as a tile
has points. Tiles are transformed by a convolution of one channel, or by a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from bksdm.optimize.blocked_winograd import write_blocked_tiles
from bksdm.optimize.blocks import DOMAIN, enter, leave, order_filter
from bksdm.optimize.choice import Choice
from bksdm.optimize.convolutions import Convolution, may_double
from bksdm.optimize.needed import keep_needed
from bksdm.optimize.tiles import F2
from bksdm.optimize.writer import Writer, declare_domains


def apply_winograd(model: onnx.ModelProto, chosen: Sequence[Choice], block: int = 0) -> int:
    """Rewrite convolutions of a graph in place; it still runs any batch, height and width.

    Parameters
    ----------
    model : ModelProto
        The graph; some of the convolutions may have been rewritten otherwise already.
    chosen : sequence of Choice
        What :func:`~bksdm.optimize.choice.choose` returned for it.
    block : int
        Channels in a block of ONNX Runtime's layout, in which products are computed where the
        numbers of channels allow; 0 for an engine without it.

    Returns
    -------
    int
        Number of rewritten convolutions.
    """
    by_output = {choice.output: choice for choice in chosen}
    written, count = Writer(), 0
    for node in model.graph.node:
        choice = by_output.get(node.output[0]) if node.op_type == "Conv" else None
        if choice is None:
            written.nodes.append(node)
        else:
            _write(written, choice, block)
            count += 1
    written.store(model.graph)
    if block:
        declare_domains(model, DOMAIN)
    # The Resize may not be needed any more, here or in row tiles.
    keep_needed(model.graph)
    return count


def _write(w: Writer, choice: Choice, block: int) -> None:
    """Write a convolution of a picture of any size."""
    found = choice.convolution
    if found.doubling is None or not may_double(found.doubling):
        _write_whole(w, choice, choice.output, block)
        return
    # A size that is an input need not be the double: then this is a convolution of any picture.
    name, resize = choice.output, found.doubling
    sizes = w.add("Slice", f"{name}:told", resize.input[3], w.whole(2), w.whole(4))
    before = w.add("Shape", f"{name}:before", found.source, start=2)
    equal = w.add(
        "Equal", f"{name}:equal", sizes, w.add("Mul", f"{name}:doubles", before, w.whole(2))
    )
    all_equal = w.add(
        "ReduceMin",
        f"{name}:all",
        w.add("Cast", f"{name}:flags", equal, to=onnx.TensorProto.INT32),
        keepdims=1,
    )
    doubled = w.add("Cast", f"{name}:doubled", all_equal, to=onnx.TensorProto.BOOL)
    if _in_blocks(found, block):
        # For both.
        order_filter(w, found.node.input[1], (found.channels_out, found.channels_in), 9, block)
    then, other = (Writer(constants=w.constants, written=set(w.written)) for _ in range(2))
    _write_whole(then, choice, f"{name}:then", block)
    resized, after = onnx.NodeProto(), onnx.NodeProto()
    resized.CopyFrom(resize)
    after.CopyFrom(found.node)
    resized.output[0] = after.input[0] = f"{name}:resized"
    other.nodes.append(resized)
    plain = Choice(replace(found, node=after, doubling=None), F2)
    _write_whole(other, plain, f"{name}:else", block)
    w.add("If", name, doubled, then_branch=_branch(then.nodes), else_branch=_branch(other.nodes))


def _in_blocks(found: Convolution, block: int) -> bool:
    """Return whether a convolution's channels fill whole blocks."""
    return block > 0 and found.channels_in % block == 0 and found.channels_out % block == 0


def _branch(nodes: Sequence[onnx.NodeProto]) -> onnx.GraphProto:
    """Return a branch of an If: no inputs, and the picture that the last node makes."""
    result = nodes[-1].output[0]
    value = helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, [None] * 4)
    return helper.make_graph(nodes, result, [], [value])


def _write_whole(w: Writer, choice: Choice, name: str, block: int) -> str:
    """Write a convolution of a whole picture, or of the double of one."""
    found, tile = choice.convolution, choice.tile
    # Padding by a step makes enough tiles; what they cover beyond the picture is cut off.
    top, bottom = 1, tile.step
    size = w.add("Shape", f"{name}:size", found.source, start=2)
    if tile.scale > 1:
        size = w.add("Mul", f"{name}:sizes", size, w.whole(tile.scale))
    if not _in_blocks(found, block):
        pixels = write_tiles(w, f"{name}:whole", found.source, choice, [top, top, bottom, bottom])
        return w.add("Slice", name, pixels, w.whole(0, 0), size, w.whole(2, 3))
    x = enter(w, f"{name}:entered", found.source, found.channels_in, block)
    pixels = write_blocked_tiles(
        w, f"{name}:whole", name, x=x, choice=choice, pads=[top, top, bottom, bottom], block=block
    )
    values = w.add("Mul", f"{name}:values in rows", size, w.whole(1, block))
    cut = w.add("Slice", f"{name}:cut", pixels, w.whole(0, 0), values, w.whole(2, 3))
    return leave(w, name, cut, found.channels_out, block)


def write_tiles(w: Writer, name: str, x: str, choice: Choice, pads: list[int]) -> str:
    """Write a convolution of ``x`` as products of tiles; ``pads`` make whole tiles of it."""
    top, left, bottom, right = pads
    found, tile = choice.convolution, choice.tile
    m, step, reach, points = tile.size, tile.step, tile.reach, tile.points
    bias = found.node.input[2]
    # V = Bᵀ d B, [batch, points, in, tiles]. Channels as depth of one picture put the points
    # before them, where the products want them.
    deep = w.add("Unsqueeze", f"{name}:deep", x, w.whole(1))
    kernels = np.kron(tile.bt, tile.bt).reshape(points, 1, 1, reach, reach)
    tiles = w.add(
        "Conv",
        f"{name}:tiles",
        deep,
        w.constant(f"{tile.name}:input", kernels),
        strides=[1, step, step],
        pads=[0, top, left, 0, bottom, right],
        kernel_shape=[1, reach, reach],
    )
    v = w.add("Reshape", f"{name}:v", tiles, w.whole(0, points, found.channels_in, -1))

    # M = U V, [batch, points, out, tiles].
    product = w.add("MatMul", f"{name}:m", _transformed(w, x, choice), v)

    # Aᵀ M A as one product over the points, then its values to their places in each tile.
    flat = w.add("Reshape", f"{name}:points", product, w.whole(0, points, -1))
    outer = w.constant(f"{tile.name}:output", np.kron(tile.at, tile.at))
    values = w.add("MatMul", f"{name}:values", outer, flat)
    grid = w.add("Shape", f"{name}:grid", tiles, start=3)
    depth = w.add("Concat", f"{name}:depth", w.whole(0, m * m * found.channels_out), grid, axis=0)
    pixels = w.add("Reshape", f"{name}:deeper", values, depth)
    pixels = w.add("DepthToSpace", f"{name}:pixels", pixels, blocksize=m, mode="DCR")
    column = w.add("Reshape", f"{name}:bias", bias, w.whole(-1, 1, 1))
    return w.add("Add", name, pixels, column)


def _transformed(w: Writer, x: str, choice: Choice) -> str:
    """Return U = G g Gᵀ, [points, out, in], transformed at each run: once for all row tiles.

    To store it would take points/9 of the memory and save hardly any time.
    """
    found, tile = choice.convolution, choice.tile
    weight = found.node.input[1]
    name = f"{weight}:{tile.name}"
    points = w.constant(f"{tile.name}:filter", np.kron(tile.g, tile.g))
    # The shape [-1, 9] is computed from the picture: a backend would fold a constant one. Of
    # two numbers ONNX Runtime works out one.
    batch = w.once("Shape", f"{name}:batch", x, start=0, end=1)
    none = w.once("Mul", f"{name}:none", batch, w.whole(0))
    rows = w.once("Add", f"{name}:rows", none, w.whole(-1, 9))
    flat = w.once("Reshape", f"{name}:flat", weight, rows)
    product = w.once("Gemm", f"{name}:product", points, flat, transB=1)
    return w.once(
        "Reshape", name, product, w.whole(tile.points, found.channels_out, found.channels_in)
    )
