"""A graph that is not the network of its folder is refused by name as it is opened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from bksdm.engines.errors import BundleError, EngineError
from bksdm.models import EMOJI
from bksdm.optimize.tuning import tune_bundle
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


def test_tuning_refuses_another_networks_graph_before_it_measures(bundle):
    exchange(bundle, "vae_decoder", "vae_encoder")
    with pytest.raises(BundleError, match="no vae_decoder, for it has no input latent_sample"):
        tune_bundle(bundle, "onnxruntime", measured=lambda network, found: pytest.fail(network))


def test_weights_that_are_cut_off_are_told_in_one_line(bundle):
    weights = bundle / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, 1_000_000)
    said = rf"^unet: the file of weights is too short for \S+: {weights} has 1000000 bytes of \d+; "
    with pytest.raises(EngineError, match=said + "copy or export it anew$"):
        TextToImage.load(bundle)


@pytest.mark.parametrize("fields", [{"block_out_channels": [16, 32, 64]}, {"up_block_types": 4}])
def test_a_vae_configuration_that_was_edited_is_refused(bundle, fields):
    """Pictures would come out twice as large, and images would not fit their latents."""
    path = bundle / "vae_decoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(BundleError, match=r"vae_decoder/config\.json: block_out_channels has \d"):
        TextToImage.load(bundle)
