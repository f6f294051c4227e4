"""Time an engine on each convolution of a network, in each of its forms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bksdm.engines.protocol import Engine
from bksdm.optimize.choice import Choice
from bksdm.optimize.convolutions import Convolution, convolutions
from bksdm.optimize.rules import Timing
from bksdm.optimize.tiles import Tile
from bksdm.optimize.winograd import apply_winograd

ROUNDS = 5


def time_convolution(
    found: Convolution,
    batch: int,
    row_tiles: int,
    block: int,
    load: Callable[[Path], Engine],
    clock: Callable[[], float],
) -> Timing:
    """Time one convolution, direct and in each of its forms.

    The forms run in turns after one untimed run each; the results are medians.

    Parameters
    ----------
    found : Convolution
        Its sizes.
    batch : int
        Pictures.
    row_tiles : int
        Number of row tiles that it is computed in; one of them is timed.
    block : int
        Channels in a block of the engine's layout; 0 if it has none.
    load : callable
        Returns the engine for a graph that is not to be rewritten further.
    clock : callable
        Returns seconds.
    """
    scale = 1 if found.doubling is None else 2
    side = found.side // scale
    shape = (batch, found.channels_in, -(-side // row_tiles), side)
    generator = np.random.default_rng(0)
    feeds = {"x": generator.standard_normal(shape, np.float32)}
    forms = (None, *found.tiles)
    seconds: list[list[float]] = [[] for _ in forms]
    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for index, tile in enumerate(forms):
            path = Path(folder) / str(index) / "model.onnx"
            path.parent.mkdir()
            path.write_bytes(_graph(found, tile, block, generator).SerializeToString())
            engines.append(load(path))
            path.unlink()
        for number in range(ROUNDS + 1):
            for engine, taken in zip(engines, seconds, strict=True):
                start = clock()
                engine(feeds)
                if number > 0:
                    taken.append(clock() - start)
    direct, *transformed = (row_tiles * float(np.median(taken)) for taken in seconds)
    return Timing(*found.size, direct, tuple(transformed))


def _graph(
    found: Convolution, tile: Tile | None, block: int, generator: np.random.Generator
) -> onnx.ModelProto:
    """Return a graph that consists of the convolution alone, with made-up weights."""
    source = "x" if found.doubling is None else "doubled"
    node = helper.make_node(
        "Conv", [source, "weight", "bias"], ["y"], kernel_shape=[3, 3], pads=[1] * 4
    )
    into, out = found.channels_in, found.channels_out
    weights = {
        "weight": generator.standard_normal((out, into, 3, 3), np.float32) / np.float32(into),
        "bias": generator.standard_normal(out, np.float32),
    }
    nodes = [node]
    if found.doubling is not None:
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
        nodes.insert(
            0,
            helper.make_node(
                "Resize",
                ["x", "", "scales"],
                ["doubled"],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
        )
    shapes: dict[str, list[str | int | None]] = {
        "x": ["batch", into, "height", "width"],
        "y": ["batch", out, "height", "width"],
    }
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    graph = helper.make_graph(
        nodes, "convolution", [x], [y], [numpy_helper.from_array(w, n) for n, w in weights.items()]
    )
    opset = helper.make_opsetid("", 23)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    if tile is not None:
        (alone,) = convolutions(model, found.side)
        apply_winograd(model, [Choice(alone, tile)], block)
    return model
