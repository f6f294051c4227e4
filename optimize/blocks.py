"""Write nodes in the layout in which ONNX Runtime's convolutions run on a CPU.

In it, channels come in blocks of the size of a vector register: a picture is
[batch, channels / block, height, width, block]. ONNX Runtime converts to it and back around every
convolution; products run a quarter to a half faster in it than as matrix products. Ordinary
operators can stand between two convolutions, as they read the same memory with any shape: they see
a picture in blocks as [batch, channels / block, height, width · block], and the operators of the
layout see it as [batch, channels, height, width].
"""

from __future__ import annotations

import functools

import numpy as np
from onnx import TensorProto, helper

from bksdm.engines.onnxruntime_package import load_onnxruntime
from bksdm.optimize.writer import Writer

DOMAIN = "com.microsoft.nchwc"


@functools.cache
def block_size() -> int:
    """Return the channels per block on this processor; 0 if it does not use the layout."""
    ort = load_onnxruntime()
    shape = (1, 16, 1, 2)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    reorder = helper.make_node("ReorderInput", ["x"], ["y"], domain=DOMAIN)
    model = helper.make_model(
        helper.make_graph([reorder], "blocks", [x], [y]),
        opset_imports=[helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.arange(32, dtype=np.float32).reshape(shape)})
    # The second pixel of the first channel comes after the first block's first pixel.
    size = int(np.flatnonzero(found == 1)[0])
    return size if size in (8, 16) else 0


def enter(w: Writer, name: str, x: str, channels: int, block: int) -> str:
    """Bring a picture [batch, channels, height, width] into blocks."""
    blocked = w.add("ReorderInput", f"{name}:blocked", x, domain=DOMAIN)
    return from_picture(w, name, blocked, channels // block)


def leave(w: Writer, name: str, x: str, channels: int, block: int) -> str:
    """Bring a picture out of blocks."""
    picture = as_picture(w, f"{name}:picture", x, -(-channels // block) * block)
    return w.add("ReorderOutput", name, picture, domain=DOMAIN, channels=channels)


def as_picture(w: Writer, name: str, x: str, channels: int) -> str:
    """Shape a picture in blocks as the operators of the layout take it."""
    return w.add("Reshape", name, x, w.whole(0, channels, 0, -1))


def from_picture(w: Writer, name: str, x: str, blocks: int) -> str:
    """Shape a picture in blocks as ordinary operators take it."""
    return w.add("Reshape", name, x, w.whole(0, blocks, 0, -1))


def convolve(w: Writer, name: str, picture: str, *filters: str, group: int = 1) -> str:
    """Write a convolution without padding; a filter and a bias are in blocks, too."""
    return w.add(
        "Conv", name, picture, *filters, domain=DOMAIN, group=group, strides=[1, 1], pads=[0] * 4
    )


def pixel_filter(
    w: Writer, weight: str, bias: str, channels: tuple[int, int], block: int
) -> tuple[str, str]:
    """Return filter and bias of a convolution of single pixels in blocks."""
    out, into = channels
    missing = -out % block
    ordered = order_filter(w, weight, channels, 1, block)
    shaped = w.once("Reshape", f"{weight}:pixel", ordered, w.whole(out + missing, into, 1, 1))
    return shaped, w.once("Pad", f"{bias}:padded", bias, w.whole(0, missing))


def order_filter(w: Writer, weight: str, channels: tuple[int, int], taps: int, block: int) -> str:
    """Return a constant filter as [out / block, in / block, in a block, out of a block, taps]."""
    out, into = channels
    missing, padded = -out % block, weight
    if missing:
        padded = w.once("Pad", f"{weight}:padded", weight, w.whole(*[0] * 4, missing, *[0] * 3))
    apart = w.once(
        "Reshape",
        f"{weight}:apart",
        padded,
        w.whole((out + missing) // block, block, into // block, block, taps),
    )
    return w.once("Transpose", f"{weight}:ordered", apart, perm=[0, 2, 3, 1, 4])
