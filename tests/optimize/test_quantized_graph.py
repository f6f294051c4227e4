"""Products in int8: what is rounded, by how much, and what channels of their own size gain."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bksdm.optimize.quantized_graph import products, quantize_graph
from bksdm.optimize.rounding import LEVELS, ON_CPU, ON_GPU, ON_GPU_FP8, RAW

RNG = np.random.default_rng(0)
WEIGHTS = {
    "a.conv.weight": RNG.standard_normal((6, 4, 3, 3)).astype(np.float32),
    "a.linear.weight": RNG.standard_normal((6, 4)).astype(np.float32),
    "a.gemm.weight": RNG.standard_normal((6, 4)).astype(np.float32),
}
SHAPES = {"Conv": (2, 4, 5, 7), "MatMul": (2, 9, 4), "Gemm": (3, 4)}


def network(kind, dtype=np.float32):
    """One product, of a weight that is stored in float16 and transposed where a checkpoint's is."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    name = {"Conv": "a.conv.weight", "MatMul": "a.linear.weight", "Gemm": "a.gemm.weight"}[kind]
    nodes = [helper.make_node("Cast", [name], ["wide"], to=number)]
    attributes = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {}
    weight = "wide"
    if kind == "MatMul":
        nodes.append(helper.make_node("Transpose", ["wide"], ["moved"], perm=[1, 0]))
        weight = "moved"
    elif kind == "Gemm":
        attributes = {"transB": 1}
    nodes.append(helper.make_node(kind, ["x", weight], ["y"], **attributes))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", number, SHAPES[kind])],
        [helper.make_tensor_value_info("y", number, list("nchw")[: len(SHAPES[kind])])],
        [numpy_helper.from_array(WEIGHTS[name].astype(np.float16), name)],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ), name


def run(model, x):
    session = ReferenceEvaluator(model)
    return session.run(None, {"x": x})[0].astype(np.float64)


def stored_in(model):
    tensors = {weight.name: weight for weight in model.graph.initializer}
    return lambda name: numpy_helper.to_array(tensors[name])


def extremes_of(x):
    other = tuple(a for a in range(x.ndim) if a != (1 if x.ndim == 4 else x.ndim - 1))
    return np.stack([x.min(axis=other), x.max(axis=other)])


def quantized(model, x, keep=lambda name: False, rounding=ON_CPU):
    weight_of = stored_in(model)
    count = quantize_graph(model, {"x": extremes_of(x)}, weight_of, keep, rounding)
    onnx.checker.check_model(model, full_check=True)
    return count


@pytest.mark.parametrize("kind", SHAPES)
def test_a_product_is_as_near_as_its_roundings(kind):
    """Each weight is off by half a step of its channel at most, each input by half a step."""
    model, name = network(kind)
    x = RNG.standard_normal(SHAPES[kind]).astype(np.float32)
    expected = run(model, x)
    assert quantized(model, x) == 1
    weight = WEIGHTS[name].astype(np.float16).astype(np.float64)
    flat = weight.reshape(6, -1)
    weight_step = np.abs(flat).max(axis=1) / LEVELS
    x_step = (max(x.max(), 0) - min(x.min(), 0)) / RAW
    # |Σ (x+δ)(w+γ) − Σ x w| ≤ Σ |x||γ| + |δ||w| + |δ||γ|
    terms = flat.shape[1]
    bound = terms * np.abs(x).max() * weight_step / 2 + x_step / 2 * (
        np.abs(flat).sum(axis=1) + terms * weight_step / 2
    )
    error = np.abs(run(model, x) - expected)
    channels = 1 if kind == "Conv" else error.ndim - 1
    worst = error.max(axis=tuple(a for a in range(error.ndim) if a != channels))
    assert (worst <= bound * (1 + 1e-5)).all()
    assert (worst > 0).all()


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_product_in_fp8_is_as_near_as_its_three_bits(kind):
    """E4M3 keeps four digits, so that each number is off by a sixteenth of itself at most."""
    model, name = network(kind, np.float16)
    # Within what is not lost below the smallest number, 2⁻⁹ of 448.
    x = RNG.uniform(0.5, 2, SHAPES[kind]) * RNG.choice([-1, 1], SHAPES[kind])
    x = x.astype(np.float16)
    weight = RNG.uniform(0.5, 2, WEIGHTS[name].shape).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, name))
    expected = run(model, x)
    assert quantized(model, x, rounding=ON_GPU_FP8) == 1
    # |Σ (x+δ)(w+γ) − Σ x w| ≤ Σ |x||w| (2·2⁻⁴ + 2⁻⁸), and a rounding of the result to float16
    bound = (np.abs(x).astype(float) @ np.abs(weight.T).astype(float)) * (2 / 16 + 1 / 256) * 1.01
    error = np.abs(run(model, x) - expected)
    assert (error <= bound).all()
    assert error.max() > 0


def test_a_convolution_stays_as_it_is_in_fp8():
    model, _ = network("Conv", np.float16)
    x = RNG.standard_normal(SHAPES["Conv"]).astype(np.float16)
    assert quantized(model, x, rounding=ON_GPU_FP8) == 0


@pytest.mark.parametrize("kind", SHAPES)
def test_zero_is_the_middle_for_a_gpu(kind):
    """Half a step of what flows in is then of its largest magnitude's, whatever its sign."""
    model, name = network(kind, np.float16)
    x = RNG.uniform(-1, 3, SHAPES[kind]).astype(np.float16)
    expected = run(model, x)
    assert quantized(model, x, rounding=ON_GPU) == 1
    weight = WEIGHTS[name].astype(np.float16).astype(np.float64)
    flat = weight.reshape(6, -1)
    x_step = np.abs(x).max() / LEVELS
    weight_step = np.abs(flat).max(axis=1) / LEVELS
    terms = flat.shape[1]
    bound = terms * 3 * weight_step / 2 + x_step / 2 * (
        np.abs(flat).sum(axis=1) + terms * weight_step / 2
    )
    error = np.abs(run(model, x) - expected)
    channels = 1 if kind == "Conv" else error.ndim - 1
    worst = error.max(axis=tuple(a for a in range(error.ndim) if a != channels))
    # Scales and results are float16.
    rounding = np.abs(expected).max() * 2**-9 * terms**0.5
    assert (worst <= bound * 1.01 + rounding).all()
    assert (worst > 0).all()


@pytest.mark.parametrize("kind", SHAPES)
def test_weights_are_stored_in_one_byte_each(kind):
    model, name = network(kind)
    quantized(model, RNG.standard_normal(SHAPES[kind]).astype(np.float32))
    types = {w.name: w.data_type for w in model.graph.initializer}
    (stored,) = (w for w in model.graph.initializer if len(w.dims) > 1)
    assert types[stored.name] == TensorProto.INT8
    assert np.prod(stored.dims) == WEIGHTS[name].size
    assert name not in types
    # −128 would have no counterpart.
    assert np.abs(numpy_helper.to_array(stored).astype(int)).max() == LEVELS


def test_a_channel_that_is_much_larger_takes_the_levels_of_none():
    """Rounded together, channels of size 1 beside one of 1000 would be zero."""
    model, _ = network("MatMul")
    x = RNG.standard_normal(SHAPES["MatMul"]).astype(np.float32)
    x[..., 2] *= 1000
    # What the large channel says does not count for the others' error.
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            (WEIGHTS["a.linear.weight"] * [1, 1, 1e-3, 1]).astype(np.float16), "a.linear.weight"
        )
    )
    expected = run(model, x)
    quantized(model, x)
    assert any(node.op_type == "Mul" for node in model.graph.node)
    error = np.linalg.norm(run(model, x) - expected) / np.linalg.norm(expected)
    assert error < 0.02


def test_channels_of_one_size_are_not_divided():
    model, _ = network("Conv")
    quantized(model, RNG.standard_normal(SHAPES["Conv"]).astype(np.float32))
    assert not any(node.op_type == "Mul" for node in model.graph.node)


def test_what_is_kept_stays_to_the_bit():
    model, name = network("Gemm")
    before = model.SerializeToString()
    assert quantized(model, np.ones(SHAPES["Gemm"], np.float32), keep=lambda n: n == name) == 0
    assert model.SerializeToString() == before


def test_what_multiplies_no_stored_weight_is_no_product():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"])],
        "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
    )
    assert list(products(graph)) == []
