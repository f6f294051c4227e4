"""The v2 family: wider embeddings, linear projections, head counts that differ per block."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from bksdm.export.dummy import text_config, unet_config
from bksdm.export.graph import write_graph
from bksdm.export.networks import TextEncoder, Unet
from bksdm.export.parity import compare, references


def test_a_v2_unet_and_text_encoder_pass_parity(tmp_path):
    torch.manual_seed(0)
    changes = {
        "cross_attention_dim": 1024,
        "attention_head_dim": [2, 4, 4, 8],
        "use_linear_projection": True,
    }
    unet = UNet2DConditionModel(**{**unet_config("nano"), **changes})
    text = CLIPTextModel(
        CLIPTextConfig(
            **{**text_config("nano"), "hidden_size": 1024, "hidden_act": "gelu",
               "num_attention_heads": 16, "num_hidden_layers": 2}
        )
    )  # fmt: skip
    networks = [
        Unet(unet, dict(unet.config)),
        TextEncoder(text, text.config.to_dict()),
    ]
    for network in networks:
        network.eval().requires_grad_(False)
        truth = references(network)
        folder = tmp_path / network.component
        folder.mkdir()
        path = write_graph(network, folder)
        row = compare(path, network.component, "float32", truth)
        assert row.passed, row
