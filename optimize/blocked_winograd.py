"""Convolutions as products of tiles in the layout of :mod:`~bksdm.optimize.blocks`.

The formula is that of :mod:`~bksdm.optimize.tiles`. Transforms are ordinary operators on
blocks of channels, the products convolutions of single pixels, one for each point of a tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.optimize.blocks import DOMAIN, convolve, order_filter
from bksdm.optimize.choice import Choice
from bksdm.optimize.tiles import Tile
from bksdm.optimize.writer import Writer


def write_blocked_tiles(
    w: Writer,
    name: str,
    shared: str,
    x: str,
    choice: Choice,
    pads: list[int],
    block: int,
    *,
    alone: bool = False,
) -> str:
    """Write a convolution of a picture in blocks, and return its result.

    Parameters
    ----------
    w : Writer
        Receives the nodes.
    name, shared : str
        Name of the result, and of the constants that all row tiles of a picture share.
    x : str
        The picture in blocks.
    choice : Choice
        The convolution and its form.
    pads : list of int
        Rows and columns at the top, the left, the bottom and the right that make whole tiles of it.
    block : int
        Channels in a block.
    alone : bool
        The batch is one picture.
    """
    found, tile = choice.convolution, choice.tile
    tiles = _transform(w, name, shared, x=x, tile=tile, pads=pads, block=block)
    v = w.add("Reshape", f"{name}:v", tiles, w.whole(0, tile.points * found.channels_in, -1, 0))
    # M = U V, a product of matrices for each point. A bias at the point 1 of rows and columns,
    # which all values of a tile have in common, is one of the result.
    filters = _filter(w, shared, choice, x, block)
    product = convolve(w, f"{name}:m", v, *filters, group=tile.points)
    across = w.once("Shape", f"{shared}:across", tiles, start=3, end=4)
    place = _place_alone if alone else _place
    return place(w, name, shared, product, across, tile, -(-found.channels_out // block), block)


def _transform(
    w: Writer, name: str, shared: str, x: str, tile: Tile, pads: list[int], block: int
) -> str:
    """Write V = Bᵀ d B, [batch, points of columns, points of rows · …, tiles across, block].

    Blocks of channels as depth of one picture leave the points before them, where the products want
    them.
    """
    reach, side = tile.reach, len(tile.bt)
    top, left, bottom, right = pads
    taps = w.constant(f"{tile.name}:taps", tile.bt.reshape(side, 1, 1, reach, 1))
    deep = w.add("Unsqueeze", f"{name}:deep", x, w.whole(1))

    def along(result: str, source: str, before: int, after: int) -> str:
        return w.add(
            "Conv",
            result,
            source,
            taps,
            kernel_shape=[1, reach, 1],
            strides=[1, tile.step, 1],
            pads=[0, before, 0, 0, after, 0],
        )

    rows = along(f"{name}:rows", deep, top, bottom)
    row = w.once("Shape", f"{shared}:row", x, start=3)
    width = w.once("Div", f"{shared}:width", row, w.whole(block))
    pixels = w.once("Concat", f"{shared}:pixels", w.whole(0, 1, -1), width, w.whole(block), axis=0)
    lines = w.add("Reshape", f"{name}:lines", rows, pixels)
    return along(f"{name}:tiles", lines, left, right)


def _output_matrix(tile: Tile) -> NDArray[np.floating[Any]]:
    """Return Aᵀ ⊗ Aᵀ for points of columns before those of rows, [m², points]."""
    m, side = tile.at.shape
    rows = np.kron(tile.at, tile.at).reshape(m * m, side, side)
    columns: NDArray[np.floating[Any]] = rows.swapaxes(1, 2).reshape(m * m, -1)
    return columns


def _place(
    w: Writer,
    name: str,
    shared: str,
    product: str,
    across: str,
    tile: Tile,
    blocks: int,
    block: int,
) -> str:
    """Write Aᵀ M A as one product over the points, and its values to their places in each tile."""
    m = tile.size
    flat = w.add("Reshape", f"{name}:points", product, w.whole(0, tile.points, -1))
    outer = w.constant(f"{tile.name}:output of blocks", _output_matrix(tile))
    results = w.add("MatMul", f"{name}:results", outer, flat)
    grid = w.once(
        "Concat", f"{shared}:grid", w.whole(0, m, m, blocks, -1), across, w.whole(block), axis=0
    )
    values = w.add("Reshape", f"{name}:values", results, grid)
    placed = w.add("Transpose", f"{name}:placed", values, perm=[0, 3, 4, 1, 5, 2, 6])
    row = w.once("Mul", f"{shared}:row out", across, w.whole(m * block))
    rows = w.once("Concat", f"{shared}:rows out", w.whole(0, blocks, -1), row, axis=0)
    return w.add("Reshape", name, placed, rows)


def _place_alone(
    w: Writer,
    name: str,
    shared: str,
    product: str,
    across: str,
    tile: Tile,
    blocks: int,
    block: int,
) -> str:
    """Write the same with operators that run on all threads, unlike a transposition.

    A product for each row of tiles leaves rows in place; what brings pictures with channels last
    into blocks does the columns.
    """
    m = tile.size
    of_blocks = w.once("Mul", f"{shared}:blocks across", across, w.whole(block))
    grid = w.once("Concat", f"{shared}:grid", w.whole(tile.points, -1, 1), of_blocks, axis=0)
    flat = w.add("Reshape", f"{name}:points", product, grid)
    outer = w.constant(f"{tile.name}:output of a row", _output_matrix(tile)[None, None])
    results = w.add(
        "FusedMatMul", f"{name}:results", outer, flat, transBatchB=1, domain="com.microsoft"
    )
    values = w.add("Reshape", f"{name}:values", results, w.whole(-1, 1, m, 0))
    placed = w.add("ReorderInput", f"{name}:placed", values, domain=DOMAIN, channels_last=1)
    row = w.once("Mul", f"{shared}:row out", of_blocks, w.whole(m))
    rows = w.once("Concat", f"{shared}:rows out", w.whole(1, blocks, -1), row, axis=0)
    return w.add("Reshape", name, placed, rows)


def _filter(w: Writer, name: str, choice: Choice, x: str, block: int) -> tuple[str, str]:
    """Return U = G g Gᵀ in blocks, transformed at each run, and the bias of every point.

    To store it would take points/9 of the memory and save hardly any time.
    """
    found, tile = choice.convolution, choice.tile
    weight, bias = found.node.input[1:]
    into, out, side = found.channels_in, found.channels_out, len(tile.g)
    padded = out + -out % block
    ordered = order_filter(w, weight, (out, into), 9, block)
    # The shape [-1, 9] is computed from the picture: a backend would fold a constant one. Of
    # two numbers ONNX Runtime works out one.
    batch = w.once("Shape", f"{name}:batch", x, start=0, end=1)
    none = w.once("Mul", f"{name}:none", batch, w.whole(0))
    nine = w.once("Add", f"{name}:nine", none, w.whole(-1, 9))
    flat = w.once("Reshape", f"{name}:flat", ordered, nine)
    matrix = np.kron(tile.g, tile.g).reshape(side, side, 9).swapaxes(0, 1).reshape(-1, 9)
    points = w.constant(f"{tile.name}:blocked filter", matrix)
    product = w.once("Gemm", f"{name}:product", points, flat, transB=1)
    u = w.once("Reshape", f"{name}:u", product, w.whole(tile.points * padded, into, 1, 1))
    before = (side + 1) * padded
    after = tile.points * padded - before - out
    return u, w.once("Pad", f"{name}:biases", bias, w.whole(before, after))
