"""Graphs for ONNX Runtime's CUDA provider against those they replace, on the CPU.

Operators that the CPU has no kernel for are computed by what is documented of them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm import models
from bksdm.optimize import channels_last
from bksdm.optimize import compose as compositions
from bksdm.optimize.attention import fuse_attention
from bksdm.optimize.bias_split_gelu import fuse_bias_split_gelu
from bksdm.optimize.causal import state_causal
from bksdm.optimize.channels_last import TO_FIRST, TO_LAST, put_channels_last
from bksdm.optimize.compose import compose
from bksdm.optimize.cuda import write_for_cuda
from bksdm.optimize.cuda_group_norm import fuse_group_norm, has_kernel
from bksdm.optimize.cuda_kernels import take_census
from bksdm.optimize.graph import load_graph
from bksdm.optimize.half import emulate_half
from bksdm.optimize.packed_attention import pack_attention
from bksdm.optimize.quick_gelu import fuse_quick_gelu
from bksdm.optimize.residuals import fuse_residuals
from bksdm.optimize.rules import ONNXRUNTIME_CUDA, USUAL
from bksdm.optimize.variants import apply_variant
from tests.optimize.documented import documented
from tests.optimize.test_feed_forward import CHANNELS, gated_model
from tests.optimize.test_rewrite import small_model

EMOJI = Path(models.__file__).parent / "emoji"
NETWORKS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def opened(model, folder=None):
    """Open a graph as it is written.

    On the CPU, ONNX Runtime 1.32 moves transpositions past a Resize of two axes, and errs.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: session.run(None, feeds)[0].astype(np.float64)


def run(model, feeds, folder=None):
    return opened(model, folder)(feeds)


def kinds(model):
    return [node.op_type for node in model.graph.node]


def weights(**shapes):
    rng = np.random.default_rng(0)
    return [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def example(model, size, seed=0):
    """Return two images' feeds of a network."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        axes = [d.dim_value for d in tensor.shape.dim]
        shape = [2, axes[1], *size] if len(axes) == 4 else [2, *(n or 77 for n in axes[1:])]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        whole = dtype.kind == "i"
        drawn = rng.integers(0, 600, shape) if whole else rng.standard_normal(shape)
        feeds[value.name] = drawn.astype(dtype)
    return feeds


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("channels", "groups", "fits"),
    [
        # Of Stable Diffusion's networks, of the built-in model and of `nano`.
        *((c, 32, True) for c in (128, 256, 320, 512, 640, 960, 1280, 1920, 2560)),
        *((c, 8, True) for c in (16, 32, 48, 96, 144, 192)),
        # A group that is no group, an odd one, the largest, and one beyond.
        *((c, g, f) for c, g, f in ((30, 8, False), (24, 8, False), (1024, 2, True))),
        (1028, 2, False),
    ],
)
def test_group_norm_has_a_kernel_for(channels, groups, fits):
    assert has_kernel(channels, groups) == fits


def block_model(groups=4, read_twice=True, vector=True):
    """A convolution, a vector per image, normalisation, SiLU, a convolution and the residual."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4),
        helper.make_node("ReduceMean", ["x", "sides"], ["v"], keepdims=0),
        helper.make_node("Unsqueeze", ["v", "sides"], ["u"]),
        helper.make_node("Add", ["u", "a"] if vector else ["x", "a"], ["s"]),
        helper.make_node(
            "GroupNormalization", ["s", "gamma", "beta"], ["n"], num_groups=groups, epsilon=1e-3
        ),
        helper.make_node("Sigmoid", ["n"], ["g"]),
        helper.make_node("Mul", ["g", "n"], ["h"]),
        helper.make_node("Conv", ["h", "w2", "b2"], ["c"], pads=[0] * 4),
        helper.make_node("Add", ["c", "s" if read_twice else "h"], ["y"]),
    ]
    stored = weights(w1=(8, 8, 3, 3), b1=(8,), w2=(8, 8, 1, 1), b2=(8,), gamma=(8,), beta=(8,))
    stored.append(numpy_helper.from_array(np.array([2, 3]), "sides"))
    return small_model(nodes, stored, ["n", 8, "h", "w"])


@pytest.mark.parametrize("read_twice", [False, True])
@pytest.mark.parametrize("vector", [False, True])
def test_a_residual_block_is_one_normalisation(read_twice, vector):
    plain = block_model(read_twice=read_twice, vector=vector)
    fast = copy.deepcopy(plain)
    assert put_channels_last(fast) == 2
    assert fuse_group_norm(fast) == (1, 1)
    onnx.checker.check_model(fast)
    found = kinds(fast)
    assert not {"GroupNormalization", "GroupNorm", "Sigmoid", "Mul"} & set(found)
    (norm,) = (node for node in fast.graph.node if node.op_type == "SkipGroupNorm")
    # The sum is made once more only where it is read.
    assert len(norm.output) == 1 + read_twice
    assert found.count("Unsqueeze") == 0
    x = np.random.default_rng(1).standard_normal((2, 8, 5, 3)).astype(np.float32)
    # Sums of 72 float32 products, twice.
    np.testing.assert_allclose(run(documented(fast), {"x": x}), run(plain, {"x": x}), atol=3e-5)


def test_a_normalisation_without_a_kernel_stays():
    """Groups of one channel: standard operators, with channels first."""
    plain = block_model(groups=8)
    fast = copy.deepcopy(plain)
    write_for_cuda(fast)
    assert kinds(fast).count("GroupNormalization") == 1
    x = np.random.default_rng(1).standard_normal((2, 8, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(run(documented(fast), {"x": x}), run(plain, {"x": x}), atol=3e-5)
    assert take_census(fast).without_kernel == {"GroupNormalization": 1}


@pytest.mark.parametrize("told", [False, True])
def test_pictures_are_enlarged_and_joined_with_channels_last(told):
    size, scales = ("size", "") if told else ("", "scales")
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["x", "w1"], ["half"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Shape", ["a"], ["size"]),
        helper.make_node(
            "Resize",
            ["half", "", scales, size],
            ["b"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Concat", ["b", "a"], ["c"], axis=1),
        helper.make_node("Mul", ["c", "two"], ["d"]),
        helper.make_node("Conv", ["d", "w2"], ["y"]),
    ]
    stored = weights(w1=(6, 4, 3, 3), w2=(5, 12, 1, 1))
    stored.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    stored.append(numpy_helper.from_array(np.float32(2), "two"))
    plain = small_model(nodes, stored, ["n", 4, "h", "w"])
    fast = copy.deepcopy(plain)
    assert put_channels_last(fast) == 3
    for side in (6, *((7,) if told else ())):
        x = np.random.default_rng(1).standard_normal((2, 4, side, 4)).astype(np.float32)
        np.testing.assert_allclose(run(fast, {"x": x}), run(plain, {"x": x}), atol=3e-5)


def transposed_back(model):
    """Count transpositions of pictures that no convolution's takes back."""
    made = {name: node for node in model.graph.node for name in node.output}
    read = {name: node for node in model.graph.node for name in node.input}
    left = 0
    for node in model.graph.node:
        order = list(node.attribute[0].ints) if node.op_type == "Transpose" else []
        before, after = made.get(node.input[0]), read.get(node.output[0])
        if order == TO_FIRST:
            left += after is None or after.op_type != "Conv"
        elif order == TO_LAST:
            left += before is None or before.op_type != "Conv"
    return left


@pytest.mark.parametrize("name", ["nano", "emoji"])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_equal_the_plain_ones(nano_bundle, name, network):
    """The built-in model has its weights stored in float16."""
    path = (nano_bundle if name == "nano" else EMOJI) / network / "model.onnx"
    plain = onnx.load(path, load_external_data=False)
    fast = compose(path, ONNXRUNTIME_CUDA, USUAL)
    census = take_census(fast)
    assert not census.leaves_gpu, str(census)
    assert not {"Attention", "GroupNormalization", "Sigmoid"} & set(kinds(fast))
    # That of the output alone; the input's is the provider's, before its first convolution.
    assert transposed_back(fast) == (network != "text_encoder")
    expecting, finding = (opened(model, path.parent) for model in (plain, documented(fast)))
    scale = 8 if network == "vae_encoder" else 1
    sizes = [(0, 0)] if network == "text_encoder" else [(8, 8), (8, 12), (9, 7)]
    for height, width in sizes:
        feeds = example(plain, (scale * height, scale * width))
        # The same float32 operations; means and sums are taken in another order.
        assert relative(finding(feeds), expecting(feeds)) < 3e-6


@pytest.mark.parametrize("variant", ["deep", "shallow"])
def test_a_unet_in_two_parts_equals_the_plain_ones(nano_bundle, variant):
    path = nano_bundle / "unet" / "model.onnx"
    plain = load_graph(path)
    apply_variant(plain, variant)
    fast = compose(path, ONNXRUNTIME_CUDA, USUAL, variant)
    assert not take_census(fast).leaves_gpu
    feeds = example(plain, (8, 8))
    if variant == "shallow":
        deep = plain.graph.input[-1].name
        feeds[deep] = np.random.default_rng(1).standard_normal((2, 16, 8, 8)).astype(np.float32)
    expected, found = (run(m, feeds, path.parent) for m in (plain, documented(fast)))
    assert relative(found, expected) < 3e-6


@pytest.mark.parametrize("network", ["text_encoder", "unet"])
def test_float16_is_as_exact_as_in_the_plain_graph(nano_bundle_fp16, network):
    """Every tensor between two operators rounded, as on a GPU; inside of one is float32."""
    path = nano_bundle_fp16 / network / "model.onnx"
    plain, exact = (onnx.load(path, load_external_data=False) for _ in range(2))
    feeds = example(plain, (8, 8))
    emulate_half(exact)
    for node in exact.graph.node:
        # The same without a rounding.
        if node.op_type == "Cast" and node.output[0].endswith(":half"):
            node.attribute[0].i = TensorProto.FLOAT
    expected = run(exact, feeds, path.parent)
    errors = []
    for model in (plain, documented(compose(path, ONNXRUNTIME_CUDA, USUAL))):
        emulate_half(model)
        errors.append(relative(run(model, feeds, path.parent), expected))
    # Weights are rounded in all; fewer tensors between operators are.
    assert errors[1] < 1.1 * errors[0] < 5e-3


@pytest.mark.parametrize(("width", "fused"), [(1280, 1), (2560, 1), (5120, 1), (10, 0), (640, 0)])
def test_gated_feed_forward_of_the_widths_that_have_a_kernel(monkeypatch, width, fused):
    monkeypatch.setattr("tests.optimize.test_feed_forward.WIDTH", width)
    plain = gated_model()
    fast = copy.deepcopy(plain)
    assert fuse_bias_split_gelu(fast) == fused
    assert ("Gelu" in kinds(fast)) == (not fused)
    if fused:
        x = np.random.default_rng(1).standard_normal((2, 3, CHANNELS)).astype(np.float32)
        assert relative(run(documented(fast), {"x": x}), run(plain, {"x": x})) < 1e-6


def residual_model(width, ends):
    """Two linear layers with residuals; a normalisation between them, and after them if asked."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g0", "c0"], ["n0"], axis=-1),
        helper.make_node("MatMul", ["n0", "w0"], ["p0"]),
        helper.make_node("Add", ["p0", "b0"], ["l0"]),
        helper.make_node("Add", ["l0", "x"], ["s0"]),
        helper.make_node("LayerNormalization", ["s0", "g1", "c1"], ["n1"], epsilon=1e-3),
        helper.make_node("MatMul", ["n1", "w1"], ["p1"]),
        helper.make_node("Add", ["b1", "p1"], ["l1"]),
        helper.make_node("Add", ["s0", "l1"], ["s1" if ends else "y"]),
    ]
    if ends:
        nodes.append(helper.make_node("LayerNormalization", ["s1", "g0", "c0"], ["y"]))
    names = {name: (width,) for name in ("g0", "c0", "b0", "g1", "c1", "b1")}
    stored = weights(**names, w0=(width, width), w1=(width, width))
    return small_model(nodes, stored, ["n", "s", width])


@pytest.mark.parametrize(
    ("width", "ends", "fused"),
    [(320, False, (1, 1)), (320, True, (2, 0)), (8, False, (1, 0)), (8, True, (2, 0))],
)
def test_residuals_take_bias_and_normalisation(width, ends, fused):
    plain = residual_model(width, ends)
    fast = copy.deepcopy(plain)
    assert fuse_residuals(fast) == fused
    left = kinds(fast)
    assert left.count("LayerNormalization") == 1
    assert left.count("Add") == (0 if sum(fused) == 2 else 2)
    x = np.random.default_rng(1).standard_normal((2, 3, width)).astype(np.float32)
    assert relative(run(documented(fast), {"x": x}), run(plain, {"x": x})) < 1e-6


@pytest.mark.parametrize("other", ["twice", "no bias", "scale of its own"])
def test_other_sums_are_left_alone(other):
    model = residual_model(8, ends=False)
    graph = model.graph
    if other == "twice":
        graph.node.append(helper.make_node("Add", ["l0", "l1"], ["z"]))
        graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    elif other == "no bias":
        for node in graph.node:
            if node.output[0] in ("l0", "l1"):
                node.op_type, node.input[:] = "Identity", [f"p{node.output[0][1]}"]
    else:
        graph.node.insert(0, helper.make_node("Neg", ["g1"], ["scale"]))
        next(n for n in graph.node if n.output[0] == "n1").input[1] = "scale"
    assert fuse_residuals(model) == (0, 0)


@pytest.mark.parametrize("alpha", [None, 1.702])
@pytest.mark.parametrize("first", [False, True])
def test_activations_by_a_sigmoid_are_one_node(alpha, first):
    scaled = [] if alpha is None else [helper.make_node("Mul", ["alpha", "x"], ["t"])]
    nodes = [
        *scaled,
        helper.make_node("Sigmoid", ["t" if scaled else "x"], ["g"]),
        helper.make_node("Mul", ["x", "g"] if first else ["g", "x"], ["y"]),
    ]
    stored = [numpy_helper.from_array(np.float32(alpha or 1), "alpha")]
    plain = small_model(nodes, stored, ["n", "s", 7])
    fast = copy.deepcopy(plain)
    assert fuse_quick_gelu(fast) == 1
    assert kinds(fast) == ["QuickGelu"]
    x = np.random.default_rng(1).standard_normal((2, 3, 7)).astype(np.float32)
    for model in (fast, documented(fast)):
        np.testing.assert_allclose(run(model, {"x": x}), run(plain, {"x": x}), atol=1e-6)
    other = copy.deepcopy(plain)
    other.graph.node[-1].input[1 if first else 0] = "alpha"
    assert fuse_quick_gelu(other) == 0


def test_only_a_mask_of_what_comes_before_is_causal(nano_bundle, tmp_path):
    path = nano_bundle / "text_encoder" / "model.onnx"
    model = onnx.load(path)
    (mask,) = (w for w in model.graph.initializer if w.data_type == TensorProto.BOOL)
    for seen, expected in ((np.tri(77, dtype=bool), 2), (np.ones((77, 77), bool), 0)):
        mask.CopyFrom(numpy_helper.from_array(seen[None, None], mask.name))
        for outside in (False, True):
            place = tmp_path / f"{expected}-{outside}" / "text_encoder" / "model.onnx"
            place.parent.mkdir(parents=True)
            kept = copy.deepcopy(model)
            onnx.save(kept, place, save_as_external_data=outside, size_threshold=0)
            graph = onnx.load(place, load_external_data=False)
            assert state_causal(graph, place) == expected
            assert sum(len(n.input) == 3 for n in graph.graph.node if n.op_type == "Attention") == (
                expected
            )


def test_a_census_names_what_leaves_the_gpu():
    nodes = [
        helper.make_node("Cast", ["half"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Concat", ["shape", "one"], ["wider"], axis=0),
        helper.make_node("Reshape", ["x", "wider"], ["r"]),
        helper.make_node("Elu", ["r"], ["e"]),
        helper.make_node("QuickGelu", ["e"], ["q"], domain="com.microsoft"),
        helper.make_node("QuickGelu", ["q"], ["y"], domain="com.example"),
    ]
    stored = [
        numpy_helper.from_array(np.ones(3, np.float16), "half"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    census = take_census(small_model(nodes, stored, ["n", "s"]))
    assert census.operators.total() == 6
    assert census.without_kernel == {"Elu": 1, "QuickGelu": 1}
    assert census.of_sizes == {"Concat": 1}
    assert str(census).endswith("2 without one (1 Elu, 1 QuickGelu), 1 on sizes (1 Concat)")


def test_packed_attention_equals_the_plain_one(nano_bundle):
    path = nano_bundle / "unet" / "model.onnx"
    plain = onnx.load(path, load_external_data=False)
    fast = compose(path, replace(ONNXRUNTIME_CUDA, packed=True), USUAL)
    assert not take_census(fast).leaves_gpu
    inputs = [len(n.input) for n in fast.graph.node if n.op_type == "MultiHeadAttention"]
    assert sorted(inputs) == [1] * 9 + [2] * 9
    feeds = example(plain, (8, 8))
    expected, found = (run(m, feeds, path.parent) for m in (plain, documented(fast)))
    assert relative(found, expected) < 3e-6


def test_attention_with_a_bias_is_not_packed(nano_bundle):
    model = onnx.load(nano_bundle / "vae_decoder" / "model.onnx", load_external_data=False)
    assert fuse_attention(model) == 1
    assert pack_attention(model) == (0, 0)


def test_a_wide_head_is_written_as_products(nano_bundle, monkeypatch):
    """As that of a full-size VAE, of 512."""
    monkeypatch.setattr(compositions, "WIDEST_HEAD", 8)
    path = nano_bundle / "vae_decoder" / "model.onnx"
    plain = onnx.load(path, load_external_data=False)
    fast = compose(path, ONNXRUNTIME_CUDA, USUAL)
    assert "MultiHeadAttention" not in kinds(fast)
    assert kinds(fast).count("Softmax") == 1
    assert not take_census(fast).leaves_gpu
    feeds = example(plain, (5, 6))
    expected, found = (run(m, feeds, path.parent) for m in (plain, documented(fast)))
    assert relative(found, expected) < 3e-6


def test_a_unet_without_the_kernels_is_right_too(nano_bundle, monkeypatch):
    monkeypatch.setattr(channels_last, "has_kernel", lambda channels, groups: False)
    path = nano_bundle / "unet" / "model.onnx"
    plain = onnx.load(path, load_external_data=False)
    fast = compose(path, ONNXRUNTIME_CUDA, USUAL)
    assert take_census(fast).without_kernel == {"GroupNormalization": 34}
    feeds = example(plain, (9, 7))
    expected, found = (run(m, feeds, path.parent) for m in (plain, documented(fast)))
    assert relative(found, expected) < 3e-6
