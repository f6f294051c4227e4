"""Rewritten graphs against float64 and against the graphs they replace."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.optimize import choice
from bksdm.optimize.blocks import DOMAIN, block_size
from bksdm.optimize.choice import LEAST_GAIN, Choice, MeasuredCost, choose
from bksdm.optimize.convolutions import Convolution, convolutions
from bksdm.optimize.group_norm import expand_group_norm
from bksdm.optimize.rules import CostModel, MadeFor, Timing
from bksdm.optimize.tiles import D4, F2, F4, PLAIN_TILES, TILES
from bksdm.optimize.winograd import apply_winograd


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
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        initializers,
    )
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
        np.einsum("kc,nchw->nkhw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i in range(3)
        for j in range(3)
    ]
    return sum(parts) + bias[:, None, None]


def transformed_is_faster(self, found, tile):
    """Stand in for the model of costs, by which small pictures gain nothing."""
    return 1.0 if tile is None else 1 / tile.size


@pytest.fixture
def every_gain(monkeypatch):
    """Rewrite whatever can be."""
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)


# In blocks of ONNX Runtime's layout and, where channels fill none, as matrix products.
CHANNELS = pytest.mark.parametrize("channels", [(7, 5), (32, 48)])


@CHANNELS
@pytest.mark.parametrize("tile", [F2, F4], ids=lambda tile: tile.name)
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4), (5, 9), (16, 23), (64, 64)])
def test_winograd_equals_float64(size, tile, channels):
    model = conv_model(*channels)
    weight, bias = (numpy_helper.to_array(w).astype(float) for w in model.graph.initializer)
    chosen = [Choice(c, tile) for c in convolutions(model, 64)]
    assert apply_winograd(model, chosen, block_size()) == 1
    blocked = any(node.domain == DOMAIN for node in model.graph.node)
    assert blocked == (channels != (7, 5))
    onnx.checker.check_model(model, full_check=True)
    for batch in (1, 3):
        x = np.random.default_rng(1).standard_normal((batch, channels[0], *size))
        x = x.astype(np.float32)
        # F(4×4) multiplies by up to 8 · 5² before sums that cancel: Lavin & Gray give it some tens
        # of the error of a direct float32 sum, here 1e-6. F(2×2) adds up to 4² values, once.
        atol = 3e-5 if tile is F4 else 5e-6
        np.testing.assert_allclose(run(model, {"x": x}), direct(x, weight, bias), atol=atol)


def test_tiles_are_exact_in_rational_arithmetic():
    """Each form is an identity of polynomials: with small whole numbers float64 rounds nothing."""
    rng = np.random.default_rng(0)
    for tile in TILES:
        d = rng.integers(-9, 9, (tile.reach, tile.reach)).astype(float)
        g = 24.0**2 * rng.integers(-9, 9, (3, 3))
        u, v = tile.g @ g @ tile.g.T, tile.bt @ d @ tile.bt.T
        picture = d.repeat(tile.scale, 0).repeat(tile.scale, 1)
        # A doubled tile begins and ends with half of a pair.
        picture = picture[tile.scale - 1 : tile.size + tile.scale + 1]
        picture = picture[:, tile.scale - 1 : tile.size + tile.scale + 1]
        expected = direct(picture[None, None], g[None, None], np.zeros(1))[0, 0, 1:-1, 1:-1]
        np.testing.assert_allclose(tile.at @ (u * v) @ tile.at.T, expected, rtol=1e-12, atol=1e-9)


def doubled_model(told, into=7, out=5):
    """A convolution of a picture that a Resize doubles, or brings to a size it is told."""
    model = conv_model(into, out)
    graph = model.graph
    graph.node[0].input[0] = "doubled"
    scales, size = ("", "size") if told else ("scales", "")
    resize = helper.make_node(
        "Resize",
        ["x", "", scales, size][: 4 if told else 3],
        ["doubled"],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    graph.node.insert(0, resize)
    if told:
        graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [4]))
    else:
        graph.initializer.append(
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
        )
    return model


@CHANNELS
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4), (5, 9), (16, 23)])
@pytest.mark.parametrize("missing", [None, (0, 0), (1, 0), (0, 1), (1, 1)])
def test_convolutions_of_doubled_pictures_equal_float64(size, missing, channels):
    """Told a size one less than the double, as a UNet is by odd features, they are direct."""
    told = missing is not None
    model = doubled_model(told, *channels)
    weight, bias = (numpy_helper.to_array(w).astype(float) for w in model.graph.initializer[:2])
    (found,) = convolutions(model, 64)
    assert found.side == 128
    assert apply_winograd(model, [Choice(found, D4)], block_size()) == 1
    kinds = [node.op_type for node in model.graph.node]
    assert "Resize" not in kinds
    assert ("If" in kinds) == told
    onnx.checker.check_model(model, full_check=True)
    rows, columns = (2 * n - m for n, m in zip(size, missing or (0, 0), strict=True))
    for batch in (1, 3):
        x = np.random.default_rng(1).standard_normal((batch, channels[0], *size))
        x = x.astype(np.float32)
        feeds = {"x": x}
        if told:
            feeds["size"] = np.array([batch, channels[0], rows, columns])
        doubled = x.repeat(2, 2).repeat(2, 3)[:, :, :rows, :columns]
        # Sums of up to 3² values, as F(2×2)'s.
        np.testing.assert_allclose(run(model, feeds), direct(doubled, weight, bias), atol=5e-6)


def test_pictures_that_are_enlarged_otherwise_are_convolved_directly():
    for name, value in (("scales", [1, 1, 3, 3]), ("mode", b"linear")):
        model = doubled_model(False)
        if name == "scales":
            model.graph.initializer[-1].CopyFrom(
                numpy_helper.from_array(np.array(value, np.float32), name)
            )
        else:
            next(a for a in model.graph.node[0].attribute if a.name == name).s = value
        (found,) = convolutions(model, 8)
        assert found.doubling is None
        assert D4 not in found.tiles


@pytest.mark.usefixtures("every_gain")
@pytest.mark.parametrize("other", [{"strides": (2, 2)}, {"pads": (0, 0, 0, 0)}])
def test_other_convolutions_are_left_alone(other):
    assert choose(conv_model(**other), 64) == []


@pytest.mark.usefixtures("every_gain")
def test_transformed_filters_are_bounded(monkeypatch):
    for points, expected in ((36, [F4]), (35, [F2]), (16, [F2]), (15, [])):
        monkeypatch.setattr(choice, "MOST_FILTER_BYTES", 4 * points * 7 * 5)
        assert [chosen.tile for chosen in choose(conv_model(), 64)] == expected


def test_each_convolution_gets_its_fastest_form():
    (found,) = convolutions(conv_model(), 64)
    for seconds, expected in (
        ((1.0, 0.5, 0.4), F4),
        ((1.0, 0.4, 0.5), F2),
        ((1.0, 2.0, 1.0), None),
        # Too little to be sure of.
        ((1.0, 2.0, 0.99), None),
    ):
        times = dict(zip((None, *PLAIN_TILES), seconds, strict=True))
        chosen = choose(conv_model(), 64, lambda found, tile, times=times: times[tile])
        assert [choice.tile for choice in chosen] == ([] if expected is None else [expected])
    timing = Timing(*found.size, 1.0, (0.5, 0.4))
    assert [c.tile for c in choose(conv_model(), 64, MeasuredCost([timing]))] == [F4]
    assert choose(conv_model(), 32, MeasuredCost([timing])) == []


@pytest.mark.parametrize(
    ("into", "out", "side", "gains"),
    [
        # Measured on two cores: 1.6 and 2.5, 1.3 and 1.9, 1.4 and 1.6, 0.9 and 1.2 times faster.
        (512, 512, 128, (True, True)),
        (320, 320, 64, (True, True)),
        (1280, 1280, 16, (True, True)),
        (128, 128, 512, (False, True)),
        # Filters transformed for 16 tiles or 4; few products per transformed value.
        (1280, 1280, 8, (False, False)),
        (4, 320, 64, (False, False)),
    ],
)
def test_choice_by_channels_and_size(into, out, side, gains):
    found = Convolution(helper.make_node("Conv", [], []), into, out, side)
    cost = CostModel()
    faster = (cost(found, None) >= LEAST_GAIN * cost(found, tile) for tile in PLAIN_TILES)
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
    chosen = choose(fast, 8)
    assert expand_group_norm(fast) == sum(
        node.op_type == "GroupNormalization" for node in plain.graph.node
    )
    assert apply_winograd(fast, chosen, block_size()) == len(chosen) > 10
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
    assert sorted({c.side for c in convolutions(proto, 64)}) == [64, 128, 256, 512]
    unet = onnx.load(nano_bundle / "unet" / "model.onnx", load_external_data=False)
    assert sorted({c.side for c in convolutions(unet, 64)}) == [8, 16, 32, 64]


@pytest.mark.usefixtures("every_gain")
def test_a_stored_graph_keeps_filters_as_they_were(tmp_path, monkeypatch):
    """A backend that folded their transform would take up to four times the memory for them."""
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    onnx.save(conv_model(64, 64), path)
    x = np.random.default_rng(3).standard_normal((2, 64, 12, 12)).astype(np.float32)
    cache = tmp_path / "engines"
    results, known = [], set()
    for made_for in (MadeFor(measured=()), MadeFor()):
        results.append(OnnxRuntimeEngine(path, cache=cache, made_for=made_for)({"x": x})["y"])
        (saved,) = set(cache.rglob("model.onnx")) - known
        known.add(saved)
        graph = onnx.load(saved, load_external_data=False).graph
        kinds = {node.op_type for node in graph.node}
        assert ("Gemm" in kinds) == (made_for.measured is None)
        assert max(np.prod(weight.dims) for weight in graph.initializer) == 9 * 64 * 64
    np.testing.assert_allclose(*results, atol=3e-5)
