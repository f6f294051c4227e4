"""Dummy checkpoints: the published parameter counts, a sound tokenizer, the same bytes per seed."""

import hashlib

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bksdm.engines.errors import ExportError
from bksdm.export import dummy
from bksdm.export.dummy_tokenizer import build_vocabulary

# The model card's "whole SDM" is the sum of the UNet, the text encoder and the VAE decoder.
UNET_PARAMETERS = {
    "sd-v1-4": 859_520_964,
    "base": 579_384_964,
    "base-2m": 579_384_964,
    "small": 482_346_884,
    "small-2m": 482_346_884,
    "tiny": 323_384_964,
    "tiny-2m": 323_384_964,
}


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", dummy.CARD_MODELS)
def test_parameter_counts_equal_the_published_ones(name):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**dummy.unet_config(name))
        vae = AutoencoderKL(**dummy.vae_config(name))
        text = CLIPTextModel(CLIPTextConfig(**dummy.text_config(name)))
    assert _count(unet) == UNET_PARAMETERS[name]
    assert _count(text) == 123_060_480
    assert _count(vae) == 83_653_863
    assert _count(vae.decoder) == 49_490_179


def test_few_step_models_have_the_published_parameter_counts():
    with torch.device("meta"):
        sdxs = UNet2DConditionModel(**dummy.unet_config("sdxs"))
        taesd = AutoencoderTiny(**dummy.vae_config("sdxs"))
        lcm = UNet2DConditionModel(**dummy.unet_config("lcm"))
    # Section 4 of the paper (Song et al. 2024, arXiv 2403.16627) says 0.32 billion.
    assert round(_count(sdxs) / 1e9, 2) == 0.32
    # madebyollin/taesd's.
    assert _count(taesd.decoder) == 1_222_531
    assert _count(lcm) - UNET_PARAMETERS["sd-v1-4"] == 256 * 320


def test_nano_keeps_small_topology_at_a_few_hundred_thousand_parameters():
    nano, small = dummy.unet_config("nano"), dummy.unet_config("small")
    for field in ("down_block_types", "up_block_types", "mid_block_type", "layers_per_block"):
        assert nano[field] == small[field]
    with torch.device("meta"):
        assert 100_000 < _count(UNet2DConditionModel(**nano)) < 1_000_000


def test_seed_decides_the_weights(tmp_path):
    digests = []
    for index, seed in enumerate((0, 0, 1)):
        dummy.create_dummy("nano", tmp_path / str(index), seed)
        weights = (tmp_path / str(index) / "unet/diffusion_pytorch_model.safetensors").read_bytes()
        digests.append(hashlib.sha256(weights).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_creating_leaves_torch_generator_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    dummy.create_dummy("nano", tmp_path / "nano")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nano_loads_in_diffusers_and_draws(nano_checkpoint, dtype):
    pipeline = StableDiffusionPipeline.from_pretrained(nano_checkpoint, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline("a cat", num_inference_steps=2, generator=generator, output_type="np").images[
        0
    ]
    assert image.shape == (64, 64, 3)
    assert image.std() > 0.01


def test_repository_carries_no_fast_tokenizer_and_is_readable(nano_checkpoint):
    names = {path.name for path in (nano_checkpoint / "tokenizer").iterdir()}
    assert names == {
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    tokenizer = CLIPTokenizer.from_pretrained(nano_checkpoint / "tokenizer")
    ids = tokenizer("naïve 日本 ok", padding="max_length", max_length=77).input_ids
    assert len(ids) == 77
    assert (ids[0], ids[-1]) == (1022, 1023)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "naïve 日本 ok"


@pytest.mark.parametrize("size", [514, 1024, 49408])
def test_vocabulary_ids_are_contiguous_and_specials_come_last(size):
    vocabulary, merges = build_vocabulary(size)
    assert sorted(vocabulary.values()) == list(range(size))
    assert vocabulary["<|startoftext|>"] == size - 2
    assert vocabulary["<|endoftext|>"] == size - 1
    assert all(a in vocabulary and b in vocabulary and a + b in vocabulary for a, b in merges)


def test_refuses_unknown_names_and_existing_folders(tmp_path):
    with pytest.raises(ExportError, match="unknown dummy model 'large'; known: sd-v1-4, base"):
        dummy.create_dummy("large", tmp_path / "x")
    with pytest.raises(ExportError, match="exists already"):
        dummy.create_dummy("nano", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dummy, "write_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dummy.create_dummy("nano", tmp_path / "nano")
    assert list(tmp_path.iterdir()) == []
