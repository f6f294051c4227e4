"""LoRAs to test with: random ones for any bundle, and those of diffusers in every naming."""

from __future__ import annotations

import re

import numpy as np
from safetensors.numpy import save_file

from bksdm.runtime.lora.layers import layers_of

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
"""How its names of layers begin."""
OLD_TEXT = re.compile(r"\b(q|k|v|out)_proj\.lora_linear_layer\.")


def random_lora(bundle, path, seed=0, kind=".", rank=4, strength=0.5, components=("unet",)):
    """Write a LoRA for the layers of a bundle whose names match a pattern, and return the path."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for component in components:
        for layer, (out, into, *kernel) in layers_of(bundle.model(component)).items():
            if not re.search(kind, layer):
                continue
            down = generator.standard_normal((rank, into, *kernel)) / np.sqrt(into)
            up = strength * generator.standard_normal((out, rank, *(1 for _ in kernel)))
            for half, factor in (("A", down), ("B", up / np.sqrt(rank))):
                name = f"{component}.{layer}.lora_{half}.weight"
                tensors[name] = factor.astype(np.float32)
    save_file(tensors, path)
    return path


def kohya(tensors, alphas):
    """Rename torch's tensors of peft's naming as Kohya does, with an alpha for each network."""
    import torch

    renamed = {}
    for key, tensor in tensors.items():
        component, _, rest = key.partition(".")
        layer, _, half = rest.partition(".lora_")
        flat = KOHYA[component] + layer.replace(".", "_")
        renamed[f"{flat}.lora_{'down' if half == 'A.weight' else 'up'}.weight"] = tensor
        renamed[f"{flat}.alpha"] = torch.tensor(alphas[component])
    return renamed


def oldest(tensors):
    """Rename diffusers' tensors as before peft, when attention processors held the layers."""
    renamed = {}
    for key, tensor in tensors.items():
        name = re.sub(r"(attn\d)\.(to_[a-z]+)(\.0)?\.lora\.", r"\1.processor.\2_lora.", key)
        name = OLD_TEXT.sub(r"to_\1_lora.", name)
        name = name.replace(".lora_A.", ".lora_linear_layer.down.")
        name = name.replace(".lora_B.", ".lora_linear_layer.up.")
        renamed[name.replace("text_encoder.", "text_encoder.text_model.")] = tensor
    return renamed
