"""Networks as they are traced, whatever their configurations say of how results are returned."""

from __future__ import annotations

import json

import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPTextModel

from bksdm.export.networks import Case, SafetyChecker, TextEncoder, load_network

TUPLES = {"return_dict": False}


def test_a_text_encoder_that_returns_tuples_is_the_same(checkpoint):
    path = checkpoint / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **TUPLES}))
    network = load_network(TextEncoder, checkpoint)
    example = network.example(Case(2, 8, 8, 0))
    theirs = CLIPTextModel.from_pretrained(checkpoint / "text_encoder").eval()
    with torch.no_grad():
        assert torch.equal(network(*example), theirs(*example)[0])


def test_a_safety_checker_that_returns_tuples_is_the_same():
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    network = SafetyChecker(checker.eval(), {"vision_config": vision})
    example = network.example(Case(2, 8, 8, 0))
    with torch.no_grad():
        before = network(*example)
        checker.vision_model.config.return_dict = False
        assert torch.equal(network(*example), before)
