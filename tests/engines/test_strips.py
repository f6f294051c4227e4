"""The end of a network in strips against the plain network."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest

from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.engines.rewrite import strips
from bksdm.engines.rewrite.choice import CostModel, choose
from bksdm.engines.rewrite.compose import MadeFor
from bksdm.engines.rewrite.strips import apply_strips, find_tail
from tests.engines.test_rewrite import run, transformed_is_faster


@pytest.fixture
def any_size(monkeypatch):
    """Strips and Winograd for pictures that gain nothing from it."""
    monkeypatch.setattr(strips, "LEAST_BYTES", 0)
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)


def graph_of(bundle, component):
    return onnx.load(bundle / component / "model.onnx", load_external_data=False)


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("size", [(4, 3), (8, 8), (9, 5), (16, 24)])
def test_a_decoder_in_strips_equals_the_plain_one(nano_bundle, rewritten, size):
    plain = graph_of(nano_bundle, "vae_decoder")
    fast = copy.deepcopy(plain)
    chosen = choose(fast, 8) if rewritten else []
    assert apply_strips(fast, 8, chosen) == 4
    assert ("DepthToSpace" in {n.op_type for n in fast.graph.node}) == rewritten
    onnx.checker.check_model(fast.SerializeToString())
    x = np.random.default_rng(0).standard_normal((2, 4, *size)).astype(np.float32)
    folder = nano_bundle / "vae_decoder"
    expected, found = (run(model, {"latent_sample": x}, folder) for model in (plain, fast))
    assert found.shape == expected.shape
    # Without Winograd only sums are taken in another order; with it as in test_rewrite.
    tolerance = 5e-5 if rewritten else 5e-6
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.usefixtures("any_size")
def test_groups_of_equal_values_give_no_nan(nano_bundle):
    """Rounding could make their variance negative, and its root NaN."""
    fast = graph_of(nano_bundle, "vae_decoder")
    apply_strips(fast, 8, [])
    for value in (0.0, 1e4):
        x = np.full((1, 4, 8, 8), value, np.float32)
        found = run(fast, {"latent_sample": x}, nano_bundle / "vae_decoder")
        assert np.isfinite(found).all()


@pytest.mark.usefixtures("any_size")
def test_a_network_with_attention_at_its_end_has_no_such_tail(nano_bundle):
    unet = graph_of(nano_bundle, "unet")
    assert find_tail(unet, 8) is None
    assert apply_strips(unet, 8, []) == 0


def test_what_fits_into_a_cache_is_left_alone(nano_bundle):
    decoder = graph_of(nano_bundle, "vae_decoder")
    assert find_tail(decoder, 8) is None
    # The same channels on a picture of 8192 pixels.
    assert find_tail(decoder, 1024).count == 512


@pytest.mark.usefixtures("any_size")
def test_the_engine_runs_pictures_with_fewer_rows_than_strips(nano_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("bksdm.engines.onnxruntime.CACHE_FROM_BYTES", 0)
    path = nano_bundle / "vae_decoder" / "model.onnx"
    plain = graph_of(nano_bundle, "vae_decoder")
    # The second time from the stored graph.
    for _ in range(2):
        engine = OnnxRuntimeEngine(path, cache=tmp_path, made_for=MadeFor(8))
        for rows in (1, 3, 4, 8):
            x = np.random.default_rng(rows).standard_normal((1, 4, rows, 8)).astype(np.float32)
            expected = run(plain, {"latent_sample": x}, path.parent)
            (found,) = engine({"latent_sample": x}).values()
            assert np.linalg.norm(found - expected) < 5e-5 * np.linalg.norm(expected)
