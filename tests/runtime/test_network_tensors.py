"""A graph that is not the network of its folder is refused by name as it is opened."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from bksdm.engines.errors import BundleError
from bksdm.models import EMOJI
from bksdm.runtime.network_tensors import TENSORS, require_tensors
from bksdm.runtime.pipeline import TextToImage


def engine(inputs, outputs):
    return SimpleNamespace(inputs=dict.fromkeys(inputs), outputs=dict.fromkeys(outputs))


@pytest.mark.parametrize("network", TENSORS)
def test_every_tensor_of_every_network_is_required(network):
    inputs, outputs = TENSORS[network]
    model = Path("bundle") / network / "model.onnx"
    whole = engine((*inputs, "more"), (*outputs, "other"))
    assert require_tensors(whole, model) is whole
    for name in inputs:
        with pytest.raises(BundleError, match=rf"{network}.*no input {name} \(its inputs: "):
            require_tensors(engine({*inputs} - {name}, outputs), model)
    for name in outputs:
        with pytest.raises(BundleError, match=rf"{network}.*no output {name} \(its outputs: "):
            require_tensors(engine(inputs, {*outputs} - {name}), model)


@pytest.fixture
def bundle(tmp_path):
    return Path(shutil.copytree(EMOJI, tmp_path / "bundle"))


def exchange(bundle, network, other):
    """Put one network's graph in the place of another's, with its weights."""
    for name in ("model.onnx", "weights.safetensors"):
        shutil.copy(bundle / other / name, bundle / network / name)


def test_a_bundle_with_another_networks_graph_is_refused(bundle):
    exchange(bundle, "vae_decoder", "vae_encoder")
    with pytest.raises(BundleError, match="no vae_decoder, for it has no input latent_sample"):
        TextToImage.load(bundle)


def test_an_encoder_that_is_none_is_refused_with_the_first_picture(bundle):
    exchange(bundle, "vae_encoder", "vae_decoder")
    model = TextToImage.load(bundle)
    with pytest.raises(BundleError, match="no vae_encoder, for it has no input sample"):
        model("a", image=Image.new("RGB", (64, 64)), num_inference_steps=1, strength=1)
