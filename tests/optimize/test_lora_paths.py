"""Networks that take the factors of LoRAs as inputs, beside those whose weights hold the sums."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from bksdm.engines.errors import EngineError
from bksdm.engines.lora_inputs import (
    ALL,
    ATTENTION,
    SCOPES,
    TRANSFORMER,
    covers,
    factor_names,
    layer_of,
    scope_of,
    with_factors,
    without_factors,
)
from bksdm.engines.registry import make_engine
from bksdm.engines.variants import DEEP, SAMPLE_OF_ROW
from bksdm.optimize.compose import compose
from bksdm.optimize.graph import attributes
from bksdm.optimize.rules import MadeFor, Rules

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
# Of layers in a network of float32, beside the same sums in float64: what a rounding of each of
# some 160 layers adds up to, in the largest value.
CLOSE = 4e-6


def _factors(engine, generator):
    """Random factors, of another rank for every layer."""
    factors = {}
    for name, spec in engine.inputs.items():
        if ".lora_" in name:
            rank = 1 + len(name.rpartition(".lora_")[0]) % 5
            shape = [rank if isinstance(size, str) else size for size in spec.shape]
            values = 0.2 * generator.standard_normal(shape) / np.sqrt(max(shape))
            factors[name] = values.astype(spec.dtype)
    return factors


def _merged(model, factors, path):
    """A session of the network as it was exported, with the products in its weights."""
    proto = onnx.load(str(model))
    weights = {weight.name: weight for weight in proto.graph.initializer}
    for node in proto.graph.node:
        layer = layer_of(node.input[1]) if node.op_type in ("MatMul", "Gemm", "Conv") else None
        if layer is None or factor_names(layer)[0] not in factors:
            continue
        down, up = (factors[name].astype(np.float64) for name in factor_names(layer))
        weight = weights[node.input[1]]
        values = numpy_helper.to_array(weight).astype(np.float64)
        product = None if node.op_type == "Conv" else down @ up
        if node.op_type == "Conv":
            product = np.einsum("or,tri->oit", up, down).reshape(values.shape)
        turned = node.op_type == "Gemm" and attributes(node).get("transB")
        summed = values + (product.T if turned else product)
        weight.CopyFrom(numpy_helper.from_array(summed.astype(np.float32), weight.name))
    onnx.save(proto, path)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def _assert_close(found, expected, plain):
    scale = np.abs(expected).max()
    assert np.abs(expected - plain).max() > 0.003 * scale
    assert np.abs(found - expected).max() < CLOSE * scale


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_unet(nano_bundle, tmp_path, backend, scope):
    """Rewritten with Winograd's products and feed-forward tiles; rows share their latents."""
    model, generator = nano_bundle / "unet" / "model.onnx", np.random.default_rng(0)
    variant = with_factors(DEEP, scope)
    engine = make_engine(backend, model, 1, None, made_for=MadeFor(64), variant=variant)
    factors = _factors(engine, generator)
    sample = generator.standard_normal((1, 4, 40, 64)).astype(np.float32)
    text = generator.standard_normal((2, 77, 32)).astype(np.float32)
    timestep = np.array([500.0], engine.inputs["timestep"].dtype)
    feeds = {"sample": sample, "timestep": timestep, "encoder_hidden_states": text}
    shared = {SAMPLE_OF_ROW: np.array([0, 0])}
    found = engine({**feeds, **shared, **factors})["out_sample"]
    rows = {**feeds, "sample": np.repeat(sample, 2, 0), "timestep": np.repeat(timestep, 2)}
    path = str(tmp_path / "merged.onnx")
    expected, plain = (
        _merged(model, taken, path).run(["out_sample"], rows)[0] for taken in (factors, {})
    )
    _assert_close(found, expected, plain)


@pytest.mark.parametrize("scope", [ATTENTION, ALL])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_text_encoder(nano_bundle, tmp_path, backend, scope):
    model, generator = nano_bundle / "text_encoder" / "model.onnx", np.random.default_rng(0)
    engine = make_engine(backend, model, 1, None, made_for=MadeFor(8), variant=scope)
    factors = _factors(engine, generator)
    ids = generator.integers(0, 100, (2, 77)).astype(engine.inputs["input_ids"].dtype)
    path, output = str(tmp_path / "merged.onnx"), ["last_hidden_state"]
    found = engine({"input_ids": ids, **factors})[output[0]]
    expected, plain = (
        _merged(model, taken, path).run(output, {"input_ids": ids})[0] for taken in (factors, {})
    )
    _assert_close(found, expected, plain)


def test_scopes():
    to_q, proj, conv = f"{BLOCK}.attn1.to_q", "up_blocks.0.attentions.1.proj_in", "conv_in"
    assert [scope_of(names) for names in ([to_q], [to_q, proj], [conv, to_q])] == list(SCOPES)
    assert scope_of([f"{BLOCK}.attn2.to_out.0"]) == ATTENTION
    assert scope_of([f"{BLOCK}.ff.net.0.proj"]) == TRANSFORMER
    assert scope_of(["encoder.layers.3.self_attn.out_proj"]) == ATTENTION
    assert scope_of(["encoder.layers.3.mlp.fc1"]) == TRANSFORMER
    assert covers(ALL, "time_embedding.linear_1")
    assert without_factors(with_factors("deep", ALL)) == ("deep", ALL)
    assert without_factors(with_factors("", ALL)) == ("", ALL)
    assert without_factors("clip-skip-1") == ("clip-skip-1", "")


def test_a_network_whose_layers_have_no_names(tmp_path):
    """As torch's older exporter calls them."""
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in "xy")
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "onnx::MatMul_7")
    node = onnx.helper.make_node("MatMul", ["x", weight.name], ["y"])
    graph = onnx.helper.make_graph([node], "unet", [x], [y], [weight])
    (tmp_path / "unet").mkdir()
    path = tmp_path / "unet" / "model.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(EngineError, match="layers are named; export the bundle with `bksdm"):
        compose(path, Rules(), MadeFor(8), ALL)
