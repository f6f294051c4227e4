"""What is not a supported pipeline is refused in one line that says what was found."""

import json
import os
import shutil

import pytest

from bksdm.engines.errors import ExportError
from bksdm.export.source import resolve, weight_files


@pytest.fixture
def checkpoint(nano_checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(nano_checkpoint, folder)
    return folder


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _refusal(source, revision=None):
    with pytest.raises(ExportError) as caught:
        resolve(source, revision)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_accepts_a_supported_folder(checkpoint):
    assert resolve(checkpoint) == checkpoint
    assert resolve(str(checkpoint)) == checkpoint


@pytest.mark.parametrize("found", ["StableDiffusionXLPipeline", None, 3])
def test_pipeline_class(checkpoint, found):
    _edit(checkpoint / "model_index.json", _class_name=found)
    message = _refusal(checkpoint)
    assert repr(found) in message
    assert "StableDiffusionPipeline folder" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, "in_channels is 9 (an inpainting UNet), supported is 4"),
        ({"in_channels": [4]}, "in_channels is [4], supported is 4"),
        ({"out_channels": 8}, "out_channels is 8"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
        ({"cross_attention_dim": [32, 32]}, "cross_attention_dim is [32, 32]"),
        ({"cross_attention_dim": [32, 32, 32, 64]}, "cross_attention_dim is [32, 32, 32, 64]"),
        ({"cross_attention_dim": []}, "cross_attention_dim is []"),
    ],
)
def test_unet(checkpoint, changes, words):
    _edit(checkpoint / "unet" / "config.json", **changes)
    assert words in _refusal(checkpoint)


@pytest.mark.parametrize(
    ("unet", "vae"),
    [
        ({"cross_attention_dim": [32] * 4}, {}),
        ({"sample_size": [8, 16]}, {}),
        ({"time_cond_proj_dim": 256}, {}),
        ({"in_channels": 16, "out_channels": 16}, {"latent_channels": 16}),
    ],
)
def test_what_diffusers_takes_as_well(checkpoint, unet, vae):
    _edit(checkpoint / "unet" / "config.json", **unet)
    _edit(checkpoint / "vae" / "config.json", **vae)
    assert resolve(checkpoint) == checkpoint


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "tokenizer/merges.txt",
    ],
)
def test_missing_files(checkpoint, path):
    (checkpoint / path).unlink()
    assert path.split("/")[-1] in _refusal(checkpoint)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '"x"'])
@pytest.mark.parametrize("path", ["model_index.json", "scheduler/scheduler_config.json"])
def test_damaged_json(checkpoint, path, text):
    (checkpoint / path).write_text(text)
    assert path.split("/")[-1] in _refusal(checkpoint)


def test_only_half_precision_is_taken_with_a_word(checkpoint):
    weights = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    lines = []
    assert resolve(checkpoint, report=lines.append) == checkpoint
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    assert lines == [f"unet: there are only float16 weights, {name}"]


def test_component_classes(checkpoint):
    _edit(checkpoint / "model_index.json", unet=["diffusers", "UNet3DConditionModel"])
    assert "unet is 'UNet3DConditionModel'" in _refusal(checkpoint)


def test_empty_folders_and_devices(tmp_path):
    assert "has no model_index.json" in _refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no folder" in _refusal(tmp_path / "pipe")


def test_neither_folder_nor_hub_id(tmp_path):
    assert "neither a folder nor a hub id" in _refusal(tmp_path / "no" / "such")
    assert "neither a folder nor a hub id" in _refusal("")


@pytest.mark.parametrize("name", ["models/no.safetensors", "no.ckpt"])
def test_a_file_that_is_missing_is_no_hub_id(name):
    assert _refusal(name) == f"{name}: no such file"


def test_revision_is_for_hub_ids(checkpoint):
    assert "a revision (main) is for hub ids" in _refusal(checkpoint, "main")


def test_safetensors_are_preferred_and_variants_never_taken():
    files = {
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "safety_checker/model.safetensors",
        "safety_checker/pytorch_model.bin",
        "safety_checker/model.fp16.safetensors",
        "v1-4.ckpt",
    }
    assert weight_files(files) == [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "safety_checker/model.safetensors",
    ]
