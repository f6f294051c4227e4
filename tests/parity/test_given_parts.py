"""A VAE of its own and textual inversions in one bundle, against the pipeline given both."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file

from bksdm.export.dummy import vae_config
from bksdm.export.graph import write_graph
from bksdm.export.networks import TextEncoder, VaeDecoder, load_network
from bksdm.export.prepared import Parts, prepared
from bksdm.export.quiet import quiet
from bksdm.export.tokenizer import read_tokenizer, tokenizer_texts
from bksdm.runtime.pipeline import TextToImage

from .pictures import assert_same_pictures, pictures


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(5)
    with quiet():
        # Without attention, and with one layer less per block: what is traced is short.
        changes = {"scaling_factor": 0.3, "mid_block_add_attention": False, "layers_per_block": 0}
        vae = AutoencoderKL(**{**vae_config("nano"), **changes})
        vae.save_pretrained(folder / "vae")
    save_file({"<cat>": torch.randn(3, 32)}, folder / "cat.safetensors")
    return Parts(vae=folder / "vae", embeddings=[(folder / "cat.safetensors", None)])


@pytest.fixture(scope="module")
def bundle(parts, nano_checkpoint, nano_bundle, tmp_path_factory):
    """What an export writes; of the networks only two differ from nano's."""
    folder = tmp_path_factory.mktemp("bundles") / "given"
    changed = {"text_encoder": TextEncoder, "vae_decoder": VaeDecoder}
    left_out = shutil.ignore_patterns("engines", "tokenizer", *changed)
    shutil.copytree(nano_bundle, folder, ignore=left_out)
    with prepared(nano_checkpoint, parts, beside=folder) as checkpoint:
        for name, kind in changed.items():
            (folder / name).mkdir()
            with quiet():
                network = load_network(kind, checkpoint)
            (folder / name / "config.json").write_text(json.dumps(network.config))
            write_graph(network, folder / name)
        (folder / "tokenizer").mkdir()
        for name, text in tokenizer_texts(read_tokenizer(checkpoint)).items():
            (folder / "tokenizer" / name).write_text(text)
    return folder


def test_pictures_equal_diffusers(bundle, parts, nano_checkpoint):
    reference = StableDiffusionPipeline.from_pretrained(
        nano_checkpoint, vae=AutoencoderKL.from_pretrained(parts.vae)
    )
    reference.set_progress_bar_config(disable=True)
    ((path, _),) = parts.embeddings
    reference.load_textual_inversion(str(path.parent), weight_name=path.name)
    arguments = {"seed": 3, "num_inference_steps": 2, "negative_prompt": "dark"}
    found = TextToImage.load(bundle)("a <cat> on a table", **arguments).pixels
    assert_same_pictures(found, pictures(reference, "a <cat> on a table", **arguments))
    assert (found != TextToImage.load(bundle)("a cat on a table", **arguments).pixels).any()
