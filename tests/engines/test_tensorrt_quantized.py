"""Bundles in int8 and fp8 for TensorRT: graphs of float16 with rounded products, built for real."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto

from bksdm.cli import main
from bksdm.optimize.quantizing import quantize_bundle
from bksdm.runtime.bundle import Bundle

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@pytest.fixture(scope="module", params=TYPES)
def quantized(request, nano_bundle_fp16, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "nano"
    made = quantize_bundle(nano_bundle_fp16, folder, ["a dog"], steps=2, to=request.param)
    return request.param, folder, made


def test_its_pictures_are_near_those_in_float16(quantized):
    precision, folder, made = quantized
    assert Bundle.open(folder).precision == precision
    # Of random weights, and 64x64: int8 gives 37 dB and more here, fp8 of matrix products 41.
    assert min(made.pictures) > 33
    assert made.products > 10


def test_zero_is_the_middle_and_numbers_around_are_float16(quantized):
    precision, folder, made = quantized
    graph = onnx.load(Bundle.open(folder).model("unet"), load_external_data=False).graph
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {node.attribute[0].i for node in rounded} == {TYPES[precision]}
    types = {weight.name: weight.data_type for weight in graph.initializer}
    reads = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert all(len(node.input) == 2 for node in (*rounded, *reads))
    assert {types[node.input[1]] for node in (*rounded, *reads)} == {TensorProto.FLOAT16}
    of_weights = [node for node in reads if node.input[0] in types]
    assert {types[node.input[0]] for node in of_weights} == {TYPES[precision]}
    assert len(of_weights) == made.products


def test_tensorrt_takes_every_product_in_its_type(quantized, capsys):
    precision, folder, made = quantized
    assert main(["build", str(folder), "--engine", "tensorrt-rtx", "--target", "sm89,sm120"]) == 0
    (record,) = folder.glob("engines/*/engine.json")
    built = json.loads(record.read_text())
    assert built["precision"] == precision
    tensors = built["plans"]["unet"]["tensors"]
    # What each product multiplies is rounded, and what several take is so once.
    assert made.products < tensors[precision] <= 2 * made.products
    # The path of the timestep, as in float16.
    assert tensors["float"] == 9
    capsys.readouterr()


def test_what_cannot_be_built_is_refused(quantized, nano_bundle, tmp_path, capsys):
    precision, folder, _ = quantized
    if precision == "fp8":
        assert main(["build", str(folder), "--target", "sm89,sm86"]) == 2
        assert "sm86 has no products in fp8" in capsys.readouterr().err
    else:
        quantize_bundle(nano_bundle, tmp_path / "cpu", ["a dog"], steps=1)
        assert main(["build", str(tmp_path / "cpu"), "--target", "sm89"]) == 2
        assert "is int8; quantize one that was exported with --dtype float16" in (
            capsys.readouterr().err
        )
