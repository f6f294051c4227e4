"""Rounding every tensor to float16, which ONNX Runtime's CPU provider does not do by itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.onnxruntime_session import open_session
from bksdm.optimize.half import LARGEST, emulate_half
from bksdm.optimize.preparing import Composed

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def model_of(nodes, weights, kind=HALF):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", kind, ["n"])],
        [info("y", kind, ["n"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def overflowing():
    nodes = [helper.make_node("Mul", ["x", "a"], ["t"]), helper.make_node("Mul", ["t", "b"], ["y"])]
    return model_of(nodes, {"a": np.array([1000], np.float16), "b": np.array([1e-3], np.float16)})


def test_an_overflow_between_nodes_is_seen():
    x = np.array([1, 100], np.float16)
    hidden, seen = run(overflowing(), x), overflowing()
    emulate_half(seen)
    found = run(seen, x)
    assert found.dtype == np.float16
    assert np.isfinite(hidden).all(), "the reason for this module: see its docstring"
    assert found[0] == pytest.approx(1, rel=1e-3)
    assert np.isinf(found[1])


def test_the_largest_number_is_the_largest():
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], {})
    emulate_half(model)
    assert run(model, np.array([LARGEST], np.float16))[0] == LARGEST


def test_every_node_rounds_as_numpy_does():
    """Equal to the bit: one operation of float16 numbers in float32, rounded, is float16's own."""
    nodes = [
        helper.make_node("Add", ["x", "a"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["r"]),
        helper.make_node("Mul", ["r", "a"], ["p"]),
        helper.make_node("Cast", ["p"], ["wide"], to=FLOAT),
        helper.make_node("Mul", ["wide", "third"], ["t"]),
        helper.make_node("Cast", ["t"], ["back"], to=HALF),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float16([0.1]))),
        helper.make_node("Sub", ["back", "c"], ["y"]),
    ]
    a, third = np.array([1.001], np.float16), np.array([1 / 3], np.float32)
    model = model_of(nodes, {"a": a, "third": third, "shape": np.array([-1], np.int64)})
    emulate_half(model)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float16)
    inner = ((x + a) * a).astype(np.float32) * third
    np.testing.assert_array_equal(run(model, x), inner.astype(np.float16) - np.float16([0.1]))


def test_a_single_precision_graph_is_left_alone():
    model = model_of([helper.make_node("Neg", ["x"], ["y"])], {}, FLOAT)
    emulate_half(model)
    assert [node.op_type for node in model.graph.node] == ["Neg"]


def test_networks_keep_their_interface(nano_bundle_fp16):
    for component in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        path = nano_bundle_fp16 / component / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        before = [(v.name, v.type) for v in (*model.graph.input, *model.graph.output)]
        emulate_half(model)
        assert [(v.name, v.type) for v in (*model.graph.input, *model.graph.output)] == before
        open_session(Composed.of(model, path).prepared(), ort.SessionOptions())
        made = {name for node in model.graph.node for name in node.output}
        roundings = sum(name.endswith(":half") for name in made)
        assert roundings > 20
