"""Write checkpoints in one file, named as CompVis' code names its parts.

The inverse of what diffusers' loader does, written down from CompVis' modules, so that a mistake in
our reading cannot hide in a mistake of the same kind here.
"""

from __future__ import annotations

import re

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_FIXED = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def unet(model, per_block=None):
    """Return a UNet's tensors; ``per_block`` is for how many layers blocks are numbered."""
    layers = model.config.layers_per_block
    step = (per_block or layers) + 1
    attends = ["CrossAttn" in kind for kind in model.config.up_block_types]
    named = {}
    for key, tensor in model.state_dict().items():
        part, _, kind = key.rpartition(".")
        if part in _FIXED:
            name = _FIXED[part]
        elif match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", part):
            number = 2 * int(match[2]) + (match[1] == "attentions")
            inner = match[3] if match[1] == "attentions" else _RESNET[match[3]]
            name = f"middle_block.{number}.{inner}"
        elif match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", part):
            name = f"input_blocks.{step * (int(match[1]) + 1)}.0.op"
        elif match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", part):
            block = int(match[1])
            if per_block is None:
                name = f"output_blocks.{step * block + layers}.{1 + attends[block]}.conv"
            else:
                name = f"output_blocks.{step * (block + 1) - 1}.{1 if block == 0 else 2}.conv"
        else:
            match = re.fullmatch(
                r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", part
            )
            side, first = {"down": ("input", 1), "up": ("output", 0)}[match[1]]
            number = first + step * int(match[2]) + int(match[4])
            resnet = match[3] == "resnets"
            inner = f"0.{_RESNET[match[5]]}" if resnet else f"1.{match[5]}"
            name = f"{side}_blocks.{number}.{inner}"
        named[f"{name}.{kind}"] = tensor
    return named


def vae(model):
    """Return a VAE's tensors."""
    blocks = len(model.config.block_out_channels)
    named = {}
    for key, tensor in model.state_dict().items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        up = re.search(r"up_blocks\.(\d+)", name)
        if up:
            name = name.replace(up[0], f"up.{blocks - 1 - int(up[1])}")
            name = name.replace("resnets", "block").replace("upsamplers.0", "upsample")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0." in name:
            head, _, inner = name.partition("mid_block.attentions.0.")
            part, _, kind = inner.rpartition(".")
            name = f"{head}mid.attn_1.{_VAE_ATTENTION[part]}.{kind}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        named[name] = tensor
    return named


def open_clip(model):
    """Return a text encoder's tensors as OpenCLIP has them, with a projection that nobody needs."""
    tensors = {k.removeprefix("text_model."): t for k, t in model.state_dict().items()}
    named = {"text_projection": torch.eye(model.config.hidden_size)}
    for key, tensor in tensors.items():
        if key in _OPEN_CLIP_FIXED:
            named[_OPEN_CLIP_FIXED[key]] = tensor
            continue
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", key)
        if match is None:
            continue
        stem = f"transformer.resblocks.{match[1]}"
        if match[2].endswith("q_proj"):
            others = [tensors[key.replace("q_proj", f"{name}_proj")] for name in "qkv"]
            named[f"{stem}.attn.in_proj_{match[3]}"] = torch.cat(others)
        elif match[2] in _OPEN_CLIP:
            named[f"{stem}.{_OPEN_CLIP[match[2]]}.{match[3]}"] = tensor
    return named


def whole(pipeline, second=False, per_block=None):
    """Return the tensors of a checkpoint in one file, ``second`` with version 2's text encoder."""
    text = pipeline.text_encoder
    if second:
        texts = {f"cond_stage_model.model.{k}": t for k, t in open_clip(text).items()}
    else:
        texts = {
            f"cond_stage_model.transformer.text_model.{k.removeprefix('text_model.')}": t
            for k, t in text.state_dict().items()
        }
    found = {
        **{f"model.diffusion_model.{k}": t for k, t in unet(pipeline.unet, per_block).items()},
        **{f"first_stage_model.{k}": t for k, t in vae(pipeline.vae).items()},
        **texts,
        # Of the trainer and of other versions of the libraries; merges make floats of it.
        "betas": torch.ones(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "cond_stage_model.transformer.text_model.embeddings.position_ids"
        if not second
        else "cond_stage_model.model.logit_scale": torch.arange(77.0)[None],
        "first_stage_model.loss.logvar": torch.zeros(1),
    }
    return {name: tensor.clone().contiguous() for name, tensor in found.items()}
