"""Weights outside of a graph, wherever in it they are named, on every CPU engine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.errors import EngineError
from bksdm.engines.registry import cpu_engines, make_engine
from bksdm.optimize.graph import load_graph
from bksdm.optimize.rules import PLAIN
from bksdm.optimize.weights import find_files, read_weights, weight_files

W = np.arange(64, dtype=np.float32).reshape(8, 8)
X = np.eye(8, dtype=np.float32)[None]


def outside(name, offset=0):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=W.shape)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": "w.bin", "offset": str(offset), "length": str(W.nbytes)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def as_weight(offset):
    return [helper.make_node("MatMul", ["x", "w"], ["y"])], [outside("w", offset)]


def as_constant(offset):
    nodes = [
        helper.make_node("Constant", [], ["w"], value=outside("w", offset)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return nodes, []


def in_branches(offset):
    """Both branches call different values the same, as they may."""

    def branch(own, weights):
        nodes, shape = [helper.make_node("MatMul", ["x", "w"], ["z"])], ["b", 8, 8]
        result = helper.make_tensor_value_info("z", TensorProto.FLOAT, shape)
        return helper.make_graph([*own, *nodes], "branch", [], [result], weights)

    constant = helper.make_node("Constant", [], ["w"], value=outside("w", offset))
    nodes = [
        helper.make_node(
            "If",
            ["yes"],
            ["y"],
            then_branch=branch([constant], []),
            else_branch=branch([], [outside("w")]),
        )
    ]
    return nodes, [numpy_helper.from_array(np.array(True), "yes")]


def model_of(nodes, weights):
    shape = ["b", 8, 8]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "unet"
    path.mkdir()
    (path / "w.bin").write_bytes((W + 1).tobytes() + W.tobytes())
    return path


@pytest.mark.parametrize("engine", cpu_engines())
@pytest.mark.parametrize("form", [as_weight, as_constant, in_branches])
def test_every_engine_finds_them(folder, engine, form):
    pytest.importorskip(engine)
    (folder / "model.onnx").write_bytes(model_of(*form(W.nbytes)).SerializeToString())
    run = make_engine(engine, folder / "model.onnx", 1, None, PLAIN)
    np.testing.assert_array_equal(run({"x": X})["y"][0], W)


def test_they_are_mapped_and_named(folder):
    proto = model_of(*as_weight(W.nbytes))
    assert weight_files(proto) == ["w.bin"]
    files = find_files(proto, folder, "unet")
    found = read_weights(proto, files, "unet")["w"]
    np.testing.assert_array_equal(found, W)
    # Written to, as OpenVINO may: what is in the file stays.
    found[:] = 0
    np.testing.assert_array_equal(read_weights(proto, files, "unet")["w"], W)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("offset", "-1", "too short for w"),
        ("offset", "300", "too short for w"),
        ("offset", "many", "damaged offset"),
        ("location", "../w.bin", "outside its folder"),
        ("location", "", "outside its folder"),
        ("location", "v.bin", r"v\.bin is missing"),
    ],
)
def test_a_wrong_place_is_refused(folder, field, value, named):
    tensor = outside("w")
    for entry in tensor.external_data:
        if entry.key == field:
            entry.value = value
    proto = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor])
    with pytest.raises(EngineError, match=f"unet: .*{named}"):
        read_weights(proto, find_files(proto, folder, "unet"), "unet")


def test_an_empty_file_is_refused(folder):
    (folder / "w.bin").write_bytes(b"")
    proto = model_of(*as_weight(0))
    with pytest.raises(EngineError, match=r"unet: .*w\.bin"):
        read_weights(proto, find_files(proto, folder, "unet"), "unet")


def test_a_graph_without_any_has_no_files(folder):
    proto = model_of([helper.make_node("Identity", ["x"], ["y"])], [])
    onnx.save(proto, folder / "model.onnx")
    assert find_files(load_graph(folder / "model.onnx"), folder, "unet") == {}
