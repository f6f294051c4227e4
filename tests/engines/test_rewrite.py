"""Rewritten graphs against float64 and against the graphs they replace."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.engines.rewrite import winograd
from bksdm.engines.rewrite.compose import MadeFor
from bksdm.engines.rewrite.group_norm import expand_group_norm
from bksdm.engines.rewrite.winograd import (
    F2,
    F4,
    TILES,
    Choice,
    Convolution,
    apply_winograd,
    choose,
    convolutions,
)


def conv_model(into=7, out=5, strides=(1, 1), pads=(1, 1, 1, 1)):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((out, into, 3, 3)) / np.sqrt(9 * into)
    initializers = [
        numpy_helper.from_array(weight.astype(np.float32), "weight"),
        numpy_helper.from_array(rng.standard_normal(out).astype(np.float32), "bias"),
    ]
    node = helper.make_node(
        "Conv", ["x", "weight", "bias"], ["y"], strides=strides, pads=pads, kernel_shape=[3, 3]
    )
    return small_model([node], initializers, ["n", into, "h", "w"])


def small_model(nodes, initializers, shape):
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        initializers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model, feeds, folder=None):
    options = ort.SessionOptions()
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def direct(x, weight, bias):
    """A 3×3 convolution in float64: a sum over nine shifted pictures."""
    height, width = x.shape[2:]
    padded = np.pad(x.astype(float), ((0, 0), (0, 0), (1, 1), (1, 1)))
    parts = [
        np.einsum("kc,nchw->nkhw", weight[:, :, i, j],
                  padded[:, :, i : i + height, j : j + width])
        for i in range(3) for j in range(3)
    ]  # fmt: skip
    return sum(parts) + bias[:, None, None]


def transformed_is_faster(self, found, tile):
    """Stand in for the model of costs, by which small pictures gain nothing."""
    return 1.0 if tile is None else 1 / tile.size


@pytest.fixture
def every_gain(monkeypatch):
    """Rewrite whatever can be."""
    monkeypatch.setattr(winograd.CostModel, "__call__", transformed_is_faster)


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"F{tile.size}")
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4), (5, 9), (16, 23), (64, 64)])
def test_winograd_equals_float64(size, tile):
    model = conv_model()
    weight, bias = (numpy_helper.to_array(w).astype(float) for w in model.graph.initializer)
    assert apply_winograd(model, [Choice(c, tile) for c in convolutions(model, 64)]) == 1
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 1
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 3):
        x = np.random.default_rng(1).standard_normal((batch, 7, *size)).astype(np.float32)
        # F(4×4) multiplies by up to 8 · 5² before sums that cancel: Lavin & Gray give it some tens
        # of the error of a direct float32 sum, here 1e-6. F(2×2) adds up to 4² values, once.
        atol = 3e-5 if tile is F4 else 5e-6
        np.testing.assert_allclose(run(model, {"x": x}), direct(x, weight, bias), atol=atol)


@pytest.mark.usefixtures("every_gain")
@pytest.mark.parametrize("other", [{"strides": (2, 2)}, {"pads": (0, 0, 0, 0)}])
def test_other_convolutions_are_left_alone(other):
    assert choose(conv_model(**other), 64, 2**20) == []


@pytest.mark.usefixtures("every_gain")
def test_budget_bounds_what_the_filters_add():
    channels = 7 * 5
    assert choose(conv_model(), 64, 4 * 7 * channels - 1) == []
    for budget, tile in ((4 * 7 * channels, F2), (4 * 27 * channels - 1, F2), (2**20, F4)):
        assert [choice.tile for choice in choose(conv_model(), 64, budget)] == [tile]


@pytest.mark.parametrize("seed", range(5))
def test_choice_saves_as_much_as_the_best_of_all_combinations(seed):
    rng = np.random.default_rng(seed)
    widths = rng.choice([2, 3, 4, 6], 6)
    nodes, weights = [], []
    for index, (into, out) in enumerate(itertools.pairwise(widths)):
        weights += [
            numpy_helper.from_array(np.ones((out, into, 3, 3), np.float32), f"w{index}"),
            numpy_helper.from_array(np.ones(out, np.float32), f"b{index}"),
        ]
        nodes.append(helper.make_node(
            "Conv", [f"x{index}" if index else "x", f"w{index}", f"b{index}"], [f"x{index + 1}"],
            pads=[1] * 4, kernel_shape=[3, 3],
        ))  # fmt: skip
    nodes.append(helper.make_node("Identity", ["x5"], ["y"]))
    model = small_model(nodes, weights, ["n", int(widths[0]), "h", "w"])
    found = convolutions(model, 8)
    assert len(found) == 5
    seconds = {c.node.output[0]: dict(zip((None, *TILES), rng.random(3), strict=True))
               for c in found}  # fmt: skip

    def cost(convolution, tile):
        return seconds[convolution.node.output[0]][tile]

    budget = 2000
    chosen = choose(model, 8, budget, cost)
    assert sum(c.convolution.added_bytes(c.tile) for c in chosen) <= budget
    forms = {choice.output: choice.tile for choice in chosen}
    least = min(
        sum(cost(c, tile) for c, tile in zip(found, tiles, strict=True))
        for tiles in itertools.product((None, *TILES), repeat=len(found))
        if sum(c.added_bytes(t) for c, t in zip(found, tiles, strict=True) if t) <= budget
        and all(t is None or cost(c, None) >= winograd.LEAST_GAIN * cost(c, t)
                for c, t in zip(found, tiles, strict=True))
    )  # fmt: skip
    total = sum(cost(c, forms.get(c.node.output[0])) for c in found)
    assert total == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize(
    ("into", "out", "side", "gains"),
    [
        # Measured on one core: 1.24 and 1.91, 0.97 and 1.66, 1.52 and 1.51, 0.66 and 1.13 times
        # faster.
        (512, 512, 128, (True, True)),
        (320, 320, 64, (True, True)),
        (1280, 1280, 16, (True, True)),
        (128, 128, 512, (False, True)),
        # Filters read for 4 tiles; few products per transformed value.
        (1280, 1280, 8, (False, False)),
        (4, 320, 64, (False, False)),
    ],
)
def test_choice_by_channels_and_size(into, out, side, gains):
    found = Convolution(helper.make_node("Conv", [], []), into, out, side)
    cost = winograd.CostModel()
    faster = (cost(found, None) >= winograd.LEAST_GAIN * cost(found, tile) for tile in TILES)
    assert tuple(faster) == gains


@pytest.mark.parametrize("shape", [(2, 64, 3, 5), (1, 64, 7), (3, 32, 1, 1)])
def test_group_norm_equals_float64(shape):
    rng = np.random.default_rng(0)
    channels = shape[1]
    gamma, beta = rng.standard_normal((2, channels)).astype(np.float32)
    node = helper.make_node(
        "GroupNormalization", ["x", "gamma", "beta"], ["y"], num_groups=32, epsilon=1e-6
    )
    model = small_model(
        [node],
        [numpy_helper.from_array(gamma, "gamma"), numpy_helper.from_array(beta, "beta")],
        ["n", channels, *("hw"[: len(shape) - 2])],
    )
    assert expand_group_norm(model) == 1
    x = (3 + 2 * rng.standard_normal(shape)).astype(np.float32)
    groups = x.astype(float).reshape(shape[0], 32, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(
        groups.var(-1, keepdims=True) + 1e-6
    )
    over = (slice(None), *(None for _ in shape[2:]))
    expected = normal.reshape(shape) * gamma[over] + beta[over]
    # Values up to 10 in float32; a group of one value is exactly zero before beta.
    np.testing.assert_allclose(run(model, {"x": x}), expected, atol=2e-5)


def test_group_norm_of_weights_stored_in_float16():
    """As a bundle has them that shares the checkpoint's file with diffusers."""
    rng = np.random.default_rng(0)
    gamma, beta = rng.standard_normal((2, 8)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["half_gamma"], ["gamma"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["half_beta"], ["beta"], to=TensorProto.FLOAT),
        helper.make_node("GroupNormalization", ["x", "gamma", "beta"], ["y"], num_groups=4),
    ]
    stored = [
        numpy_helper.from_array(gamma, "half_gamma"),
        numpy_helper.from_array(beta, "half_beta"),
    ]
    plain = small_model(nodes, stored, ["n", 8, "h", "w"])
    fast = copy.deepcopy(plain)
    assert expand_group_norm(fast) == 1
    x = rng.standard_normal((2, 8, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(run(fast, {"x": x}), run(plain, {"x": x}), atol=2e-6)


@pytest.mark.usefixtures("every_gain")
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (5, 7)])
@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_rewritten_networks_equal_the_plain_ones(nano_bundle, component, size):
    folder = nano_bundle / component
    plain = onnx.load(folder / "model.onnx", load_external_data=False)
    fast = copy.deepcopy(plain)
    chosen = choose(fast, 8, 2**30)
    assert expand_group_norm(fast) == sum(
        node.op_type == "GroupNormalization" for node in plain.graph.node
    )
    assert apply_winograd(fast, chosen) == len(chosen) > 10
    rng = np.random.default_rng(2)
    feeds = {}
    for value in plain.graph.input:
        axes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        shape = [2, axes[1], *size] if len(axes) == 4 else [2, *axes[1:]]
        feeds[value.name] = rng.standard_normal([n or 77 for n in shape]).astype(np.float32)
    expected = run(plain, feeds, folder)
    found = run(fast, feeds, folder)
    # Dozens of layers, each of which a direct float32 convolution computes to about 1e-6.
    assert np.linalg.norm(found - expected) < 5e-5 * np.linalg.norm(expected)


def test_resolution_is_followed_through_the_network(nano_bundle):
    """The decoder starts at the side of the latents and ends at eight times as much."""
    proto = onnx.load(nano_bundle / "vae_decoder" / "model.onnx", load_external_data=False)
    assert sorted({c.side for c in winograd.convolutions(proto, 64)}) == [64, 128, 256, 512]
    unet = onnx.load(nano_bundle / "unet" / "model.onnx", load_external_data=False)
    assert sorted({c.side for c in winograd.convolutions(unet, 64)}) == [8, 16, 32, 64]
    assert choose(proto, 64, 0) == []


@pytest.mark.usefixtures("every_gain")
def test_engine_runs_what_the_budget_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("bksdm.engines.onnxruntime.CACHE_FROM_BYTES", 0)
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    onnx.save(conv_model(64, 64), path)
    x = np.random.default_rng(3).standard_normal((2, 64, 12, 12)).astype(np.float32)
    cache = tmp_path / "engines"
    results = []
    for budget in (0, 2**20):
        made_for = MadeFor(winograd_budget=budget)
        results.append(OnnxRuntimeEngine(path, cache=cache, made_for=made_for)({"x": x})["y"])
        (saved,) = cache.rglob("model.onnx")
        kinds = {node.op_type for node in onnx.load(saved).graph.node}
        assert ("DepthToSpace" in kinds) == bool(budget)
        # Folded when the graph was saved, not again in every run.
        assert "Einsum" not in kinds
    np.testing.assert_allclose(*results, atol=3e-5)
