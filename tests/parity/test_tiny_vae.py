"""A tiny VAE decoder beside the model's own, against diffusers' pipeline that has it instead."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from bksdm.cli import main
from bksdm.engines.errors import BundleError, ExportError, RequestError
from bksdm.export import exporter
from bksdm.export.dummy import vae_config
from bksdm.export.graph import write_graph
from bksdm.export.inspection import inspect, networks_of
from bksdm.export.networks import TinyVaeDecoder, load_network
from bksdm.export.parity import compare, references
from bksdm.export.prepared import Parts, prepared
from bksdm.export.quiet import quiet
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.images import read_parameters
from bksdm.runtime.integrity import find_damage, write_sums
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.precision import FLOAT32

from .pictures import assert_same_pictures, pictures

QUICK = {"num_inference_steps": 2, "seed": 3}


def tiny_vae(folder, **changes):
    """A small AutoencoderTiny with random weights, of pictures that are not black."""
    torch.manual_seed(5)
    with quiet():
        vae = AutoencoderTiny(**{**vae_config("nano-sdxs"), "scaling_factor": 0.9, **changes})
        with torch.no_grad():
            for weight in vae.decoder.parameters():
                weight *= 2
            vae.decoder.layers[-1].bias += 0.5
        vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_vae(tmp_path_factory.mktemp("tiny") / "vae")


@pytest.fixture(scope="module")
def bundle(tiny, nano_checkpoint, nano_bundle, tmp_path_factory):
    """What an export writes beside nano's networks."""
    folder = tmp_path_factory.mktemp("bundles") / "both"
    shutil.copytree(nano_bundle, folder, ignore=shutil.ignore_patterns("engines"))
    place = folder / TinyVaeDecoder.component
    place.mkdir()
    with prepared(nano_checkpoint, Parts(tiny_vae=tiny), beside=folder) as checkpoint, quiet():
        inspect(networks_of(checkpoint, False), checkpoint)
        network = load_network(TinyVaeDecoder, checkpoint)
        truth = references(network)
        (place / "config.json").write_text(json.dumps(network.config))
        assert compare(write_graph(network, place), "vae_decoder_tiny", FLOAT32, truth).passed
    write_sums(folder)
    return folder


@pytest.fixture(scope="module")
def ours(bundle):
    return TextToImage.load(bundle)


@pytest.fixture(scope="module")
def expected(nano_checkpoint, tiny):
    pipeline = StableDiffusionPipeline.from_pretrained(
        nano_checkpoint, vae=AutoencoderTiny.from_pretrained(tiny)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pictures(pipeline, "a cat", **QUICK)


def test_pictures_equal_diffusers(ours, expected, nano_bundle):
    assert_same_pictures(ours("a cat", vae="tiny", **QUICK).pixels, expected)
    full = TextToImage.load(nano_bundle)("a cat", **QUICK).pixels
    np.testing.assert_array_equal(ours("a cat", **QUICK).pixels, full)
    assert (full != expected).any()


def test_every_way_to_pixels_takes_it(ours, expected):
    seen = []
    result = ours("a cat", vae="tiny", output_type="np", on_step=seen.append, **QUICK)
    levels = (result.images * 255).round().astype(np.uint8)
    assert_same_pictures(levels, expected)
    assert_same_pictures(ours.decode(seen[-1].latents, "tiny"), expected)


def test_a_picture_records_it(bundle, expected, tmp_path, capsys):
    picture = tmp_path / "cat.png"
    command = ["generate", "a cat", "--model", str(bundle), "--steps", "2", "--seed", "3"]
    assert main([*command, "--vae", "tiny", "-o", str(picture)]) == 0
    assert read_parameters(picture)["vae"] == "tiny"
    assert main(["info", str(picture)]) == 0
    assert "--vae tiny" in capsys.readouterr().out
    from PIL import Image

    with Image.open(picture) as drawn:
        assert_same_pictures(np.asarray(drawn)[None], expected)


def test_it_is_refused_by_name(nano_bundle, ours, capsys):
    with pytest.raises(RequestError, match=r"^vae tiny is not in .*--tiny-vae"):
        TextToImage.load(nano_bundle)("a cat", vae="tiny")
    with pytest.raises(RequestError, match=r"^vae must be full or tiny, not 'small'"):
        ours("a cat", vae="small")
    with pytest.raises(RequestError, match=r"^vae must be full or tiny for this bundle, not 'x'"):
        ours.decode(np.zeros((1, 4, 8, 8), np.float32), "x")
    assert main(["generate", "a", "--model", str(nano_bundle), "--vae", "tiny"]) == 2
    assert "error: --vae tiny is not in" in capsys.readouterr().err


def test_it_belongs_to_the_bundle(bundle, nano_bundle):
    opened = Bundle.open(bundle)
    assert opened.components[-1] == "vae_decoder_tiny"
    assert opened.digest() != Bundle.open(nano_bundle).digest()
    assert find_damage(bundle) == []
    weights = bundle / "vae_decoder_tiny" / "model.onnx"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert any("vae_decoder_tiny" in problem for problem in find_damage(bundle))
    finally:
        weights.write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_channels": 8}, "latent_channels differs"),
        ({"block_out_channels": [16] * 3}, "other than the VAE's 4 widths"),
        ({"scaling_factor": "large"}, "scaling_factor must be"),
    ],
)
def test_one_that_does_not_fit_is_refused(bundle, tmp_path, changes, named):
    spoiled = shutil.copytree(bundle, tmp_path / "bundle")
    path = spoiled / "vae_decoder_tiny" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(BundleError, match=f"vae_decoder_tiny/config.json: .*{named}"):
        Bundle.open(spoiled)


def refusal(checkpoint, given, tmp_path):
    with (
        pytest.raises(ExportError) as caught,
        prepared(checkpoint, Parts(tiny_vae=given), beside=tmp_path) as whole,
        quiet(),
    ):
        inspect(networks_of(whole, False), whole)
    assert str(given) in str(caught.value)
    return str(caught.value)


def test_what_is_no_tiny_vae_cannot_be_exported(nano_checkpoint, tiny, tmp_path):
    assert "no such file or folder" in refusal(nano_checkpoint, tmp_path / "none", tmp_path)
    assert "_class_name is 'AutoencoderKL'" in refusal(nano_checkpoint, nano_checkpoint, tmp_path)
    weights = tiny / "diffusion_pytorch_model.safetensors"
    empty = shutil.copytree(
        tiny, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors")
    )
    assert "no weights found" in refusal(nano_checkpoint, empty, tmp_path)
    assert "a file; --tiny-vae takes" in refusal(nano_checkpoint, weights, tmp_path)
    wide = tiny_vae(tmp_path / "wide", latent_channels=16)
    assert "latent_channels differs" in refusal(nano_checkpoint, wide, tmp_path)
    coarse = tiny_vae(
        tmp_path / "coarse", decoder_block_out_channels=(16,) * 3, num_decoder_blocks=(1,) * 3
    )
    assert "makes" in refusal(nano_checkpoint, coarse, tmp_path)


def test_it_may_replace_the_checkpoints_own(nano_checkpoint, tiny, tmp_path):
    with prepared(nano_checkpoint, Parts(vae=tiny), beside=tmp_path) as checkpoint, quiet():
        networks = networks_of(checkpoint, False)
        inspect(networks, checkpoint)
        exporter._copy_small_files(checkpoint, tmp_path, [])
    assert networks["vae_encoder"].outputs == ("latents",)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderTiny"]


def test_the_decoder_alone_will_do(nano_checkpoint, tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    half = shutil.copytree(tiny, tmp_path / "half")
    path = half / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k.startswith("decoder.")}, path)
    with prepared(nano_checkpoint, Parts(tiny_vae=half), beside=tmp_path) as checkpoint, quiet():
        inspect(networks_of(checkpoint, False), checkpoint)
        network = load_network(TinyVaeDecoder, checkpoint)
    theirs = AutoencoderTiny.from_pretrained(tiny)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(latents), theirs.decode(latents).sample)
