"""The end of a network in row tiles against the plain network."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.optimize import row_tiles
from bksdm.optimize.blocks import DOMAIN, block_size
from bksdm.optimize.choice import choose
from bksdm.optimize.row_tiles import apply_row_tiles, find_tail
from bksdm.optimize.rules import CostModel, MadeFor
from bksdm.optimize.winograd import apply_winograd
from tests.optimize.test_rewrite import run, transformed_is_faster


@pytest.fixture
def any_size(monkeypatch):
    """Row tiles and Winograd for pictures that gain nothing from it."""
    monkeypatch.setattr(row_tiles, "LEAST_BYTES", 0)
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)


def graph_of(bundle, component):
    return onnx.load(bundle / component / "model.onnx", load_external_data=False)


def in_row_tiles(model, block):
    """Rewrite a graph's end; return how many tiles it is in."""
    tail = find_tail(model, 8, choose(model, 8), block)
    apply_row_tiles(model, tail, block)
    return tail.count


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("size", [(4, 3), (8, 8), (9, 5), (16, 24)])
def test_a_decoder_in_row_tiles_equals_the_plain_one(nano_bundle, size):
    plain = graph_of(nano_bundle, "vae_decoder")
    fast = copy.deepcopy(plain)
    assert in_row_tiles(fast, block_size()) == 4
    assert sum(node.domain == DOMAIN for node in fast.graph.node) > 4 * 8
    onnx.checker.check_model(fast.SerializeToString())
    x = np.random.default_rng(0).standard_normal((1, 4, *size)).astype(np.float32)
    folder = nano_bundle / "vae_decoder"
    expected, found = (run(model, {"latent_sample": x}, folder) for model in (plain, fast))
    assert found.shape == expected.shape
    # As in test_rewrite.
    assert np.linalg.norm(found - expected) < 5e-5 * np.linalg.norm(expected)


class ReorderInput(OpRun):
    """Into blocks of eight channels, as on a processor with AVX2."""

    op_domain = DOMAIN

    def _run(self, x, channels_last=0):
        shape = x.shape if not channels_last else np.moveaxis(x, 3, 1).shape
        if channels_last:
            blocks = x.reshape(shape[0], -1, shape[1] // 8, 8).swapaxes(1, 2)
        else:
            blocks = x.reshape(shape[0], shape[1] // 8, 8, -1).swapaxes(2, 3)
        return (np.ascontiguousarray(blocks).reshape(shape),)


class ReorderOutput(OpRun):
    """And back, without what fills the last block."""

    op_domain = DOMAIN

    def _run(self, x, channels=None):
        blocks = x.reshape(len(x), x.shape[1] // 8, -1, 8).swapaxes(2, 3)
        return (np.ascontiguousarray(blocks).reshape(x.shape)[:, :channels],)


class Conv(OpRun):
    """Of pictures in blocks, with a filter in blocks: of single pixels, or of single channels."""

    op_domain = DOMAIN

    def _run(self, x, weight, bias=None, group=1, **_):
        batch, channels, height, width = x.shape
        out = len(weight)
        if out == channels == group:
            picture = x.reshape(batch, out // 8, height * width, 8)
            taps = weight.reshape(out // 8, -1, 8)
            alone = taps.shape[1] == 1
            result = picture * taps if alone else (picture * taps).sum(2, keepdims=True)
            shape = (batch, out, height, width) if alone else (batch, out, 1, 1)
        else:
            picture = x.reshape(batch, group, channels // group // 8, height * width, 8)
            filters = weight.reshape(group, out // group // 8, channels // group // 8, 8, 8)
            result = np.einsum("bgisc,goick->bgosk", picture, filters)
            shape = (batch, out, height, width)
        if bias is not None:
            result = result + bias.reshape(1, *result.shape[1:-2], 1, 8)
        return (result.reshape(shape).astype(np.float32),)


class FusedMatMul(OpRun):
    """With the first axis of B before its last but one."""

    op_domain = "com.microsoft"

    def _run(self, a, b, transBatchB=None):
        assert transBatchB
        return (a @ np.moveaxis(b, 0, -2),)


@pytest.mark.usefixtures("any_size")
def test_blocks_of_eight_channels_equal_the_plain_graph(nano_bundle):
    """Which this processor may not have: by the definitions of the operators."""
    path = nano_bundle / "vae_decoder" / "model.onnx"
    plain = onnx.load(path)
    fast = copy.deepcopy(plain)
    chosen = choose(fast, 8)
    in_row_tiles(fast, 8)
    assert apply_winograd(fast, chosen, 8) > 4
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 4)).astype(np.float32)
    own = [ReorderInput, ReorderOutput, Conv, FusedMatMul]
    (found,) = ReferenceEvaluator(fast, new_ops=own).run(None, {"latent_sample": x})
    expected = run(plain, {"latent_sample": x})
    assert np.linalg.norm(found - expected) < 5e-5 * np.linalg.norm(expected)


@pytest.mark.usefixtures("any_size")
def test_groups_of_equal_values_give_no_nan(nano_bundle):
    """Rounding could make their variance negative, and its root NaN."""
    fast = graph_of(nano_bundle, "vae_decoder")
    in_row_tiles(fast, block_size())
    for value in (0.0, 1e4):
        x = np.full((1, 4, 8, 8), value, np.float32)
        found = run(fast, {"latent_sample": x}, nano_bundle / "vae_decoder")
        assert np.isfinite(found).all()


@pytest.mark.usefixtures("any_size")
def test_a_network_with_attention_at_its_end_has_no_such_tail(nano_bundle):
    unet = graph_of(nano_bundle, "unet")
    assert find_tail(unet, 8, choose(unet, 8), block_size()) is None


def test_what_gains_nothing_is_left_alone(nano_bundle, monkeypatch):
    decoder = graph_of(nano_bundle, "vae_decoder")
    block = block_size()
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)
    chosen = choose(decoder, 8)
    # It fits into a cache.
    assert find_tail(decoder, 8, chosen, block) is None
    # The same channels on a picture of 8192 pixels.
    assert find_tail(decoder, 1024, chosen, block).count == 512
    assert find_tail(decoder, 1024, [], block) is None
    # Without the layout.
    assert find_tail(decoder, 1024, chosen, 0) is None
    # With a channel that is in no block.
    assert find_tail(decoder, 1024, chosen, 32) is None


def set_attribute(node, name, value):
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def make_strided(model):
    """A convolution that halves the picture."""
    set_attribute(last(model, "Conv"), "strides", [2, 2])


def make_half(model):
    """A filter in float16."""
    name = last(model, "Conv").input[1]
    weight = next(w for w in model.graph.initializer if w.name == name)
    weight.data_type = onnx.TensorProto.FLOAT16


def make_bilinear(model):
    """An upsampling that repeats no pixels; no tail starts there."""
    set_attribute(last(model, "Resize"), "mode", "linear")


def add_skip(model):
    """A doubled picture that another operator takes too."""
    nodes = model.graph.node
    doubled, conv = last(model, "Resize"), last(model, "Conv")
    position = list(nodes).index(conv)
    nodes.insert(position, helper.make_node("Mul", [doubled.output[0]] * 2, ["skip"]))


def end_doubled(model):
    """An upsampling at the end, whose picture no convolution takes."""
    doubled = copy.deepcopy(last(model, "Resize"))
    output = model.graph.output[0].name
    final = model.graph.node[-1]
    final.output[0] = doubled.input[0] = "small"
    doubled.output[0] = output
    model.graph.node.append(doubled)


def last(model, kind):
    return [node for node in model.graph.node if node.op_type == kind][-1]


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("change", [make_strided, make_half, make_bilinear, add_skip, end_doubled])
def test_what_row_tiles_cannot_take_is_left_alone(nano_bundle, change):
    decoder = graph_of(nano_bundle, "vae_decoder")
    assert find_tail(decoder, 8, choose(decoder, 8), block_size()) is not None
    change(decoder)
    assert find_tail(decoder, 8, choose(decoder, 8), block_size()) is None


@pytest.mark.usefixtures("any_size")
def test_the_engine_runs_any_pictures(nano_bundle, tmp_path, monkeypatch):
    path = nano_bundle / "vae_decoder" / "model.onnx"
    plain = graph_of(nano_bundle, "vae_decoder")
    # Several, and with fewer rows than tiles; the second time from the stored graph.
    for _ in range(2):
        engine = OnnxRuntimeEngine(path, cache=tmp_path, made_for=MadeFor(8))
        for rows in (1, 3, 4, 8):
            x = np.random.default_rng(rows).standard_normal((2, 4, rows, 8)).astype(np.float32)
            expected = run(plain, {"latent_sample": x}, path.parent)
            (found,) = engine({"latent_sample": x}).values()
            assert np.linalg.norm(found - expected) < 5e-5 * np.linalg.norm(expected)
