"""Rewritten networks beside the plain ones, on the latents of whole trajectories."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnxruntime as ort
import pytest

from bksdm.engines.onnxruntime import tensor_specs
from bksdm.engines.registry import open_engine
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.tokenizer import Tokenizer


class Plain:
    """A graph as it was exported, in ONNX Runtime with nothing of ours."""

    def __init__(self, model):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())

    def __call__(self, feeds):
        return dict(zip(self.outputs, self._session.run(list(self.outputs), feeds), strict=True))


class Watched:
    """Runs the plain network, and the rewritten one beside it."""

    def __init__(self, plain, rewritten):
        self._plain, self._rewritten = plain, rewritten
        self.inputs, self.outputs, self.errors = plain.inputs, plain.outputs, []

    def __call__(self, feeds):
        expected = self._plain(feeds)
        for name, found in self._rewritten(feeds).items():
            difference = np.linalg.norm(found - expected[name])
            self.errors.append(float(difference / np.linalg.norm(expected[name])))
        return expected


def compare(folder, steps, size):
    """Return errors of every call by network, and the pictures' largest difference in levels."""
    bundle = Bundle.open(folder)
    load = partial(open_engine, "onnxruntime", threads=None, cache=None, side=bundle.sample_size)
    watched = {
        name: Watched(Plain(bundle.model(name)), load(bundle.model(name)))
        for name in ("text_encoder", "unet", "vae_decoder")
    }
    tokenizer = Tokenizer.load(folder / "tokenizer")
    encode = PromptEncoder(tokenizer, lambda skipped: watched["text_encoder"])
    predict = NoisePredictor(watched["unet"])
    executor = HostExecutor(encode, predict, watched["vae_decoder"], bundle.scaling_factor)
    arguments = {"num_inference_steps": steps, "seed": 4, "height": size, "width": size}
    plain = TextToImage(bundle, executor)
    expected = plain("a yellow banana", **arguments).pixels
    found = TextToImage.load(folder)("a yellow banana", **arguments).pixels
    difference = np.abs(found.astype(int) - expected.astype(int)).max()
    return {name: network.errors for name, network in watched.items()}, int(difference)


@pytest.mark.slow
def test_the_built_in_model_at_50_steps():
    errors, levels = compare(EMOJI, 50, 128)
    assert [len(calls) for calls in errors.values()] == [1, 51, 1]
    # Winograd's sums lose a few bits more than direct ones: 9e-7 was measured.
    assert max(max(calls) for calls in errors.values()) < 5e-6
    assert levels <= 1


@pytest.mark.slow
def test_full_size_small_at_2_steps(tmp_path):
    from bksdm.export.dummy import create_dummy
    from bksdm.export.exporter import export

    create_dummy("small", tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle")
    errors, levels = compare(tmp_path / "bundle", 2, 512)
    # The same numbers on 16 times as many values: 1e-5 was measured.
    assert max(max(calls) for calls in errors.values()) < 5e-5
    assert levels <= 1
