"""UNets of the family by others: the blocks of BK-SDM, with the fields of their files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import UNet2DConditionModel

from bksdm.export.dummy import unet_config
from bksdm.export.graph import write_graph
from bksdm.export.inspection import inspect, networks_of
from bksdm.export.networks import Case, Unet, load_network
from bksdm.export.parity import compare, references
from bksdm.export.quiet import quiet
from bksdm.export.source import resolve
from bksdm.storage.precision import FLOAT32

NARROW = {"cross_attention_dim": 32, "attention_head_dim": 4, "norm_num_groups": 8}
# Segmind's small-sd and tiny-sd, which are Base and Tiny trained anew, but narrow; and Small.
UNETS = {
    "small-sd": {**unet_config("base"), "block_out_channels": (16, 32, 32, 32)},
    "tiny-sd": {**unet_config("tiny"), "block_out_channels": (16, 32, 32)},
    "small": {**unet_config("small"), "block_out_channels": (16, 32, 32, 32)},
}
# What diffusers wrote in the year of these models.
WRITTEN = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.19.0.dev0",
    "_name_or_path": "someone/teacher",
    "act_fn": "silu",
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "upcast_attention": None,
    "use_linear_projection": False,
}


@pytest.fixture(params=UNETS)
def family(request, checkpoint):
    """Nano's checkpoint with another UNet."""
    shutil.rmtree(checkpoint / "unet")
    with quiet():
        torch.manual_seed(0)
        model = UNet2DConditionModel(**{**UNETS[request.param], **NARROW})
        model.half().save_pretrained(checkpoint / "unet")
    path = checkpoint / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **WRITTEN}))
    return checkpoint


def test_they_are_accepted(family):
    assert resolve(family) == family
    inspect(networks_of(family, False), family)


@pytest.mark.slow
def test_their_graphs_compute_the_same(family, tmp_path):
    network = load_network(Unet, family)
    theirs = UNet2DConditionModel.from_pretrained(family / "unet")
    example = network.example(Case(2, 8, 8, 0))
    with torch.no_grad():
        expected = theirs(example[0], example[1], encoder_hidden_states=example[2]).sample
        assert torch.equal(network(*example), expected)
    truth = references(network)
    graph = write_graph(network, tmp_path)
    assert compare(graph, "unet", FLOAT32, truth).passed
