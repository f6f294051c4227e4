"""Gated feed-forward networks in tiles against float64 and against the graphs they replace."""

from __future__ import annotations

import copy
from math import erf

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bksdm.optimize import feed_forward
from bksdm.optimize.feed_forward import split_feed_forward
from tests.optimize.test_rewrite import run, small_model

CHANNELS, WIDTH = 6, 10


def gated_model(split_sizes=False, approximate="none", twice=False):
    rng = np.random.default_rng(0)
    sizes = {
        "w1": (CHANNELS, 2 * WIDTH),
        "b1": (2 * WIDTH,),
        "w2": (WIDTH, CHANNELS),
        "b2": (CHANNELS,),
    }
    values = {name: rng.standard_normal(size) for name, size in sizes.items()}
    split = ["wide"]
    initializers = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items()]
    if split_sizes:
        split.append("sizes")
        initializers.append(numpy_helper.from_array(np.array([WIDTH, WIDTH]), "sizes"))
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["product"]),
        helper.make_node("Add", ["product", "b1"], ["wide"]),
        helper.make_node(
            "Split", split, ["h", "g"], axis=2, **({} if split_sizes else {"num_outputs": 2})
        ),
        helper.make_node("Gelu", ["g"], ["gelu"], approximate=approximate),
        helper.make_node("Mul", ["h", "gelu"], ["gated"]),
        helper.make_node("MatMul", ["gated", "w2"], ["narrow"]),
        # A sum may have its parts in either order.
        helper.make_node("Add", ["b2", "narrow"], ["z" if twice else "y"]),
    ]
    if twice:
        nodes.append(helper.make_node("Add", ["z", "narrow"], ["y"]))
    return small_model(nodes, initializers, ["n", "s", CHANNELS])


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize("shape", [(2, 8), (1, 1), (3, 5)])
def test_tiles_equal_float64(monkeypatch, tiles, shape):
    monkeypatch.setattr(feed_forward, "picture_sides", lambda model, side: {"x": 48})
    monkeypatch.setattr(feed_forward, "TOKENS", 2 * 48**2 // tiles)
    model = gated_model()
    w1, b1, w2, b2 = (numpy_helper.to_array(v).astype(float) for v in model.graph.initializer)
    assert split_feed_forward(model, 48) == 1
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Gelu") == tiles
    assert "MatMul" not in kinds
    x = np.random.default_rng(1).standard_normal((*shape, CHANNELS)).astype(np.float32)
    h, g = np.split(x.astype(float) @ w1 + b1, 2, axis=-1)
    gelu = g * 0.5 * (1 + np.vectorize(erf)(g / np.sqrt(2)))
    expected = (h * gelu) @ w2 + b2
    # Sums of ten float32 products.
    np.testing.assert_allclose(run(model, {"x": x}), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", [{"split_sizes": True}, {"approximate": "tanh"}, {"twice": True}])
def test_other_networks_are_left_alone(other):
    model = gated_model(**other)
    before = model.SerializeToString()
    assert split_feed_forward(model, 48) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_a_unet_in_tiles_equals_the_plain_one(nano_bundle, monkeypatch, size):
    monkeypatch.setattr(feed_forward, "TOKENS", 4)
    folder = nano_bundle / "unet"
    plain = onnx.load(folder / "model.onnx", load_external_data=False)
    fast = copy.deepcopy(plain)
    assert split_feed_forward(fast, 8) == sum(n.op_type == "Gelu" for n in plain.graph.node) > 0
    assert any(n.op_type == "Split" for n in fast.graph.node)
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.standard_normal((1, 4, *size)).astype(np.float32),
        "timestep": np.array([500], np.float32),
        "encoder_hidden_states": rng.standard_normal((1, 77, width(plain))).astype(np.float32),
    }
    expected, found = (run(model, feeds, folder) for model in (plain, fast))
    # The same products; only their sums may be taken in another order.
    assert np.linalg.norm(found - expected) < 5e-6 * np.linalg.norm(expected)


def width(model):
    (states,) = (v for v in model.graph.input if v.name == "encoder_hidden_states")
    return states.type.tensor_type.shape.dim[2].dim_value
