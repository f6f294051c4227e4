"""LoRAs merged at export: the weights and the pictures are those of diffusers' fused pipeline."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from bksdm.cli import main
from bksdm.engines.digest import sha256_of
from bksdm.engines.errors import ExportError
from bksdm.export.lora import read_lora, split_scale
from bksdm.export.merge import check, merge
from bksdm.export.networks import TextEncoder, Unet, load_network, weightless
from bksdm.export.quiet import quiet
from bksdm.export.reference import open_pipeline
from bksdm.runtime.pipeline import TextToImage

from ..parity.pictures import assert_same_pictures, pictures

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# Linear layers and convolutions of 1 and 3, in blocks of all kinds.
UNET = [*ATTENTION, "proj_in", "ff.net.0.proj", "conv1", "conv_in", "time_emb_proj",
        "conv_shortcut", "linear_1", "downsamplers.0.conv", "upsamplers.0.conv"]  # fmt: skip
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def _adapters(checkpoint, unet, text_encoder, targets=UNET):
    """A pipeline with random adapters; both factors, unlike those that a training starts from."""
    pipeline = open_pipeline(checkpoint)
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=targets, **unet))
    pipeline.text_encoder.add_adapter(LoraConfig(r=3, target_modules=TEXT, **text_encoder))
    generator = torch.Generator().manual_seed(0)
    for model in (pipeline.unet, pipeline.text_encoder):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return pipeline


def _save(pipeline, path, convert, **headers):
    models = (pipeline.unet, pipeline.text_encoder)
    layers = [convert(get_peft_model_state_dict(model)) for model in models]
    StableDiffusionPipeline.save_lora_weights(path.parent, *layers, weight_name=path.name, **headers)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def plain(nano_checkpoint, folder):
    """peft's names, ``lora_A`` and ``lora_B``, and no metadata."""
    adapters = _adapters(nano_checkpoint, {"lora_alpha": 4}, {"lora_alpha": 3})
    return _save(adapters, folder / "plain.safetensors", dict)


@pytest.fixture(scope="module")
def original(nano_checkpoint):
    return _merged(nano_checkpoint)


def _fused(checkpoint, *files):
    """Return the weights of diffusers' pipeline after fusing one file after another."""
    return _weights(_fused_pipeline(checkpoint, *files))


def _fused_pipeline(checkpoint, *files):
    pipeline = open_pipeline(checkpoint)
    with quiet():
        for path, scale in files:
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
            pipeline.fuse_lora(lora_scale=scale)
            pipeline.unload_lora_weights()
    return pipeline


def _weights(pipeline):
    return {name: getattr(pipeline, name).state_dict() for name in PREFIXES}


def _merged(checkpoint, *files):
    """Return the weights after our own merge."""
    weights = {}
    for kind in (TextEncoder, Unet):
        with quiet():
            model = load_network(kind, checkpoint).model
        for path, scale in files:
            merge(read_lora(path, scale), kind.component, model)
        weights[kind.component] = model.state_dict()
    return weights


def _assert_same(found, expected):
    """Equal but for the last bits of float32.

    A product of 4 terms is multiplied by the scale in another order, and then added to a weight of
    its size: 2 units in the last place (2**-23) of the tensor's largest value.
    """
    for component, tensors in expected.items():
        assert tensors.keys() == found[component].keys()
        for name, tensor in tensors.items():
            bound = 2**-22 * float(tensor.abs().max())
            torch.testing.assert_close(found[component][name], tensor, rtol=0, atol=bound)


def _changed(found, original):
    """How many tensors differ."""
    return sum(
        not torch.equal(tensor, original[component][name])
        for component, tensors in found.items()
        for name, tensor in tensors.items()
    )


def _kohya(path, target, alphas):
    """Write a file of peft's naming once more in Kohya's."""
    tensors = {}
    for key, tensor in load_file(path).items():
        component, _, rest = key.partition(".")
        layer, _, half = rest.partition(".lora_")
        flat = PREFIXES[component] + layer.replace(".", "_")
        tensors[f"{flat}.lora_{'down' if half == 'A.weight' else 'up'}.weight"] = tensor
        tensors[f"{flat}.alpha"] = torch.tensor(alphas[component])
    save_file(tensors, target)
    return target


def test_weights_equal_diffusers(nano_checkpoint, plain, original):
    found = _merged(nano_checkpoint, (plain, 0.7))
    expected = _fused(nano_checkpoint, (plain, 0.7))
    _assert_same(found, expected)
    assert _changed(found, original) == len(load_file(plain)) // 2 > 100
    print(max((float((found[c][n]-e).abs().max()/e.abs().max()) for c,t in expected.items() for n,e in t.items()))*2**23)


def test_kohya_equals_diffusers(nano_checkpoint, plain, original, folder):
    path = _kohya(plain, folder / "kohya.safetensors", {"unet": 4.0, "text_encoder": 3.0})
    found = _merged(nano_checkpoint, (path, 0.7))
    same = _merged(nano_checkpoint, (plain, 0.7))
    assert _changed(found, same) == 0
    path = _kohya(plain, folder / "kohya.safetensors", {"unet": 1.0, "text_encoder": 2.0})
    found, expected = _merged(nano_checkpoint, (path, 0.7)), _fused(nano_checkpoint, (path, 0.7))
    _assert_same(found, expected)
    assert _changed(found, same) == len(load_file(plain)) // 2
