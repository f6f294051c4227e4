"""The ONNX Runtime engine on small graphs made here."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.errors import BundleError, EngineError
from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.engines.onnxruntime_cuda import CudaNetwork
from bksdm.engines.onnxruntime_session import open_session, reason_of
from bksdm.optimize.attention import decompose_attention, fuse_attention
from bksdm.storage.stored_graph import Prepared


def attention_model(heads=2, width=8, dynamic=False, **settings):
    """Self-attention on [batch, sequence, width], written as the exporter writes it.

    ``dynamic`` puts the shape with the heads together from the batch and three constants.
    """
    float_ = TensorProto.FLOAT
    nodes, initializers = [], []
    merge = numpy_helper.from_array(np.array([0, -1, width]), "merge")
    sizes = [-1, heads, width // heads]
    initializers.append(merge)
    if dynamic:
        initializers += [numpy_helper.from_array(np.array([s]), f"size{s}") for s in sizes]
        nodes += [
            helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
            helper.make_node("Concat", ["batch", *(f"size{s}" for s in sizes)], ["split"], axis=0),
        ]
    else:
        initializers.append(numpy_helper.from_array(np.array([0, *sizes]), "split"))
    rng = np.random.default_rng(0)
    for name in "qkv":
        weight = rng.standard_normal((width, width)).astype(np.float32)
        initializers.append(numpy_helper.from_array(weight, f"proj.{name}"))
        nodes += [
            helper.make_node("MatMul", ["x", f"proj.{name}"], [f"{name}0"]),
            helper.make_node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            helper.make_node("Transpose", [f"{name}1"], [f"{name}2"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("Attention", ["q2", "k2", "v2"], ["a"], scale=0.5, **settings),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["b", "merge"], ["y"]),
    ]
    shape = ["batch", "sequence", width]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("x", float_, shape)],
        [helper.make_tensor_value_info("y", float_, shape)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    onnx.save(attention_model(), path)
    return path


def softmax_attention(model, x, heads=2, is_causal=0):
    """Attention in float64 from the graph's own weights."""
    weights = {w.name: numpy_helper.to_array(w).astype(float) for w in model.graph.initializer}
    batch, sequence, width = x.shape
    q, k, v = (
        (x @ weights[f"proj.{n}"]).reshape(batch, sequence, heads, -1).transpose(0, 2, 1, 3)
        for n in "qkv"
    )
    scores = 0.5 * q @ k.transpose(0, 1, 3, 2)
    if is_causal:
        scores = np.where(np.tri(sequence, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out = (p / p.sum(-1, keepdims=True)) @ v
    return out.transpose(0, 2, 1, 3).reshape(batch, sequence, width)


DEFAULTS = {"is_causal": 0, "qk_matmul_output_mode": 0, "softcap": 0.0}


@pytest.mark.parametrize("settings", [{}, DEFAULTS, {"is_causal": 1}])
@pytest.mark.parametrize("dynamic", [False, True])
def test_fused_attention_equals_float64(model, settings, dynamic):
    proto = attention_model(dynamic=dynamic, **settings)
    onnx.save(proto, model)
    assert fuse_attention(proto) == 1
    assert "MultiHeadAttention" in {node.op_type for node in proto.graph.node}
    assert not {"Attention", "Transpose"} & {node.op_type for node in proto.graph.node}
    x = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
    y = OnnxRuntimeEngine(model)({"x": x})["y"]
    # float32 sums over 8 values: a few units of 2^-24 of values up to 10.
    causal = settings.get("is_causal", 0)
    expected = softmax_attention(onnx.load(model), x, is_causal=causal)
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_decomposed_attention_equals_float64(model, dynamic):
    proto = attention_model(dynamic=dynamic)
    assert decompose_attention(proto, keep=lambda width: width == 4) == 0
    assert decompose_attention(proto, keep=lambda width: width > 4) == 1
    assert "Attention" not in {node.op_type for node in proto.graph.node}
    onnx.save(proto, model)
    x = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
    y = OnnxRuntimeEngine(model)({"x": x})["y"]
    np.testing.assert_allclose(y, softmax_attention(proto, x), atol=2e-5)


def test_attention_that_does_not_fit_is_left_alone():
    proto = attention_model()
    proto.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    assert fuse_attention(proto) == 0
    assert fuse_attention(attention_model(softcap=1.0)) == 0


@pytest.mark.parametrize(("component", "nodes"), [("unet", 18), ("vae_decoder", 1)])
def test_attention_of_exported_graphs_is_fused(nano_bundle, component, nodes):
    proto = onnx.load(nano_bundle / component / "model.onnx", load_external_data=False)
    assert sum(node.op_type == "Attention" for node in proto.graph.node) == nodes
    assert fuse_attention(proto) == nodes


@pytest.mark.parametrize(
    ("feeds", "named"),
    [
        ({"x": np.ones((1, 4, 8))}, "float32"),
        ({"x": np.ones((1, 4, 9), np.float32)}, "shape"),
        ({"x": np.ones((4, 8), np.float32)}, "shape"),
        ({"z": np.ones((1, 4, 8), np.float32)}, "inputs"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(model, feeds, named):
    with pytest.raises(EngineError, match=named):
        OnnxRuntimeEngine(model)(feeds)


def test_an_absent_provider_is_refused(model):
    with pytest.raises(EngineError, match=r"no CUDA provider here .*bksdm-runtime\[gpu\]"):
        CudaNetwork(model, stream=0)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_session_without_its_provider_is_refused(model):
    """ONNX Runtime makes one on the CPU, and says so only in a warning."""
    graph = Prepared(model.read_bytes(), model.parent)
    with pytest.raises(EngineError, match="left out its CUDAExecutionProvider, and"):
        open_session(graph, ort.SessionOptions(), "CUDAExecutionProvider", {"use_tf32": "0"})


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "unet" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"\xffnot a graph")
    with pytest.raises(BundleError, match=r"unet/model\.onnx"):
        OnnxRuntimeEngine(path)


PLACE = "/onnxruntime_src/onnxruntime/core/graph/graph.cc:4479"
SIGNATURE = "bool onnxruntime::Graph::Write(const Path&) [with T = float; int N = 3]"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : No such thing.", "No such thing."),
        (f"[ONNXRuntimeError] : 1 : FAIL : {PLACE} {SIGNATURE} it is full", "it is full"),
        (f"{PLACE} {SIGNATURE} [ONNXRuntimeError] : 1 : FAIL : it is full", "it is full"),
        ("two\n  lines", "two lines"),
        ("Failed to allocate memory for requested buffer of size 9", "not enough memory"),
        ("std::bad_alloc", "not enough memory"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_reasons_are_one_line_without_places_in_code(text, reason):
    assert reason_of(RuntimeError(text)) == reason


def test_an_error_without_words_is_named():
    assert reason_of(RuntimeError()) == "RuntimeError()"
    assert reason_of(MemoryError()) == "not enough memory"


def test_a_scalar_is_fed_beside_a_batch(tmp_path):
    """As the timestep of Optimum's UNets."""
    float_ = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["sample", "timestep"], ["out_sample"])],
        "unet",
        [
            helper.make_tensor_value_info("sample", float_, ["batch", 4]),
            helper.make_tensor_value_info("timestep", float_, []),
        ],
        [helper.make_tensor_value_info("out_sample", float_, ["batch", 4])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), path)
    feeds = {"sample": np.zeros((2, 4), np.float32), "timestep": np.array(3, np.float32)}
    found = OnnxRuntimeEngine(path)(feeds)["out_sample"]
    np.testing.assert_array_equal(found, np.full((2, 4), 3, np.float32))
