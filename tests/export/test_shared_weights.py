"""Graphs that read the checkpoint's own float16 file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from bksdm.engines.errors import ExportError
from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.export.shared_weights import share_weights
from bksdm.storage.graph_file import GraphFile


@pytest.fixture
def weights():
    random = np.random.default_rng(0)
    shapes = {"a.weight": (6, 4), "a.bias": (6,), "text_model.b.weight": (3, 6)}
    return {name: random.standard_normal(s).astype(np.float16) for name, s in shapes.items()}


@pytest.fixture
def graph(weights, tmp_path):
    """Y = (x · a.weightᵀ + a.bias) + b.weight with a batch axis before it, times two."""
    single = {name.removeprefix("text_model."): w.astype("f4") for name, w in weights.items()}
    initializers = [
        numpy_helper.from_array(np.ascontiguousarray(single["a.weight"].T), "a.weight.T"),
        numpy_helper.from_array(single["a.bias"], "a.bias"),
        numpy_helper.from_array(single["b.weight"][None], "b.weight"),
        numpy_helper.from_array(np.array(2, "f4"), "val_1"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight.T"], ["p"]),
        helper.make_node("Add", ["p", "a.bias"], ["q"]),
        helper.make_node("Add", ["q", "b.weight"], ["r"]),
        helper.make_node("Mul", ["r", "val_1"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["batch", 3, 4])],
        [info("y", TensorProto.FLOAT, ["batch", 3, 6])],
        initializers,
    )
    path = tmp_path / "plain.onnx"
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path)
    return path


def test_the_graph_computes_the_same_from_the_checkpoints_file(graph, weights, tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    save_file(weights, folder / "w.safetensors")
    share_weights(graph, folder / "w.safetensors", folder / "model.onnx")
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype("f4")
    expected = OnnxRuntimeEngine(graph)({"x": x})["y"]
    found = OnnxRuntimeEngine(folder / "model.onnx")({"x": x})["y"]
    # The same float32 values enter the same operators.
    np.testing.assert_array_equal(found, expected)
    assert GraphFile.read(folder / "model.onnx").parameters == 6 * 4 + 6 + 3 * 6
    assert GraphFile.read(folder / "model.onnx").dtype == "float16"
    # Nothing of the weights is stored a second time.
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    inside = {w.name for w in proto.graph.initializer if w.data_location != TensorProto.EXTERNAL}
    assert inside == {"val_1", "b.weight:shape"}


def test_other_weights_are_refused(graph, weights, tmp_path):
    path = tmp_path / "w.safetensors"
    target = tmp_path / "model.onnx"
    save_file({**weights, "a.bias": weights["a.bias"] + 1}, path)
    with pytest.raises(ExportError, match=r"a\.bias differs"):
        share_weights(graph, path, target)
    save_file({**weights, "a.bias": weights["a.bias"].astype("f4")}, path)
    with pytest.raises(ExportError, match=r"no float16 tensor a\.bias"):
        share_weights(graph, path, target)
    with pytest.raises(ExportError, match="must lie beside"):
        share_weights(graph, path, tmp_path / "elsewhere" / "model.onnx")
    assert not target.exists()
