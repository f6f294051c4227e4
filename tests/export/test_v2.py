"""The v2 family: wider embeddings, linear projections, head counts that differ per block."""

from __future__ import annotations

import onnx
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from bksdm.export.controlnet import controlnet_kind
from bksdm.export.dummy import text_config, unet_config
from bksdm.export.graph import write_graph
from bksdm.export.networks import TextEncoder, Unet
from bksdm.export.parity import compare, references
from bksdm.export.pretrained import config_of
from bksdm.storage.precision import FLOAT16, FLOAT32

V2_UNET = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    # Two blocks of the four: a trace takes half a minute of nano's, and is of the same parts.
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
V2_TEXT = {
    "hidden_size": 1024,
    "hidden_act": "gelu",
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
}


def unet():
    model = UNet2DConditionModel(**{**unet_config("nano"), **V2_UNET})
    return Unet(model, dict(model.config))


def controlnet():
    widths = {"conditioning_embedding_out_channels": (8, 8, 16, 16)}
    model = UNet2DConditionModel(**{**unet_config("nano-base"), **V2_UNET})
    made = ControlNetModel.from_unet(model, **widths)
    for weight in made.parameters():
        # Those that would add nothing.
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return controlnet_kind("controlnet_depth")(made, config_of(made))


def text_encoder():
    model = CLIPTextModel(CLIPTextConfig(**{**text_config("nano"), **V2_TEXT}))
    return TextEncoder(model, model.config.to_dict())


@pytest.mark.parametrize(
    ("build", "precision"),
    [
        pytest.param(unet, FLOAT32, marks=pytest.mark.slow),
        pytest.param(unet, FLOAT16, marks=pytest.mark.slow),
        pytest.param(controlnet, FLOAT32, marks=pytest.mark.slow),
        pytest.param(controlnet, FLOAT16, marks=pytest.mark.slow),
        (text_encoder, FLOAT32),
    ],
)
def test_v2_networks_pass_parity(tmp_path, build, precision):
    torch.manual_seed(0)
    network = build().eval().requires_grad_(False)
    truth = references(network, precision)
    path = write_graph(network, tmp_path, precision)
    row = compare(path, network.component, precision, truth)
    assert row.passed, row
    graph = onnx.load(path).graph
    wanted = onnx.TensorProto.FLOAT16 if precision == FLOAT16 else onnx.TensorProto.FLOAT
    for value in (*graph.input, *graph.output):
        # Sine and cosine of a timestep need more than 11 bits.
        other = {"timestep": onnx.TensorProto.FLOAT, "input_ids": onnx.TensorProto.INT64}
        assert value.type.tensor_type.elem_type == other.get(value.name, wanted)
    weights = [tensor for tensor in graph.initializer if tensor.name.endswith(".weight")]
    assert weights
    assert all(tensor.data_type == wanted for tensor in weights)
