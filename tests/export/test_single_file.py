"""Checkpoints in one file: weights and configurations as diffusers' from_single_file loads them."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import _legacy_load_scheduler, infer_diffusers_model_type
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bksdm.cli import main
from bksdm.engines.errors import ExportError
from bksdm.export import ldm_configs
from bksdm.export.dummy import CARD_MODELS, text_config, unet_config, vae_config
from bksdm.export.prepared import Parts, prepared
from bksdm.export.pretrained import config_of, load
from bksdm.export.quiet import quiet

from . import compvis

NARROW = {"norm_num_groups": 32, "attention_head_dim": 8, "cross_attention_dim": 64}
FOUR, THREE = [32, 64, 64, 64], [32, 64, 64]
UNETS = {
    # As published, but narrow. Segmind's small-sd is Base and its tiny-sd is Tiny, trained anew.
    "sd-v1-4": {"block_out_channels": FOUR},
    "base": {"block_out_channels": FOUR},
    "small": {"block_out_channels": FOUR},
    "tiny": {"block_out_channels": THREE},
    "v2": {
        "block_out_channels": [64, 64, 64, 64],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "attention_head_dim": [1, 1, 1, 1],
        "sample_size": 96,
    },
}
VAE = {
    "block_out_channels": [32, 32, 32, 32],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
}
# diffusers writes down defaults that say nothing, and who wrote it.
IGNORED = {
    "_diffusers_version",
    "_use_default_values",
    "force_upcast",
    "projection_dim",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "upcast_attention",
}


@pytest.fixture(scope="module")
def pipelines(nano_checkpoint, tmp_path_factory):
    """Make the family's pipelines with narrow networks, each once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = build(name, nano_checkpoint, tmp_path_factory.mktemp(name))
        return made[name]

    return make


def build(name, nano, folder):
    second = name == "v2"
    torch.manual_seed(0)
    with quiet():
        published = unet_config("sd-v1-4" if second else name)
        unet = UNet2DConditionModel(**{**published, **NARROW, **UNETS[name]})
        vae = AutoencoderKL(**{**vae_config("nano"), **VAE})
        width = unet.config.cross_attention_dim
        text = CLIPTextModel(
            CLIPTextConfig(
                **{
                    **text_config("nano"),
                    "hidden_size": width,
                    "num_attention_heads": width // 64,
                    "hidden_act": "gelu" if second else "quick_gelu",
                    "num_hidden_layers": 1 if second else 2,
                }
            )
        )
        scheduler = PNDMScheduler.from_pretrained(nano / "scheduler")
        if second:
            scheduler = DDIMScheduler.from_config(
                scheduler.config, prediction_type="v_prediction", timestep_spacing="leading"
            )
        pipeline = StableDiffusionPipeline(
            vae,
            text,
            CLIPTokenizer.from_pretrained(nano / "tokenizer"),
            unet,
            scheduler,
            None,
            None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
    return pipeline, folder


def write(path, tensors):
    save_file(tensors, path)
    return path


def same(ours, theirs):
    expected = theirs.state_dict()
    found = ours.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def same_config(ours, theirs):
    one, other = config_of(ours), config_of(theirs)
    for name in one.keys() | other.keys():
        if name not in IGNORED:
            assert one.get(name) == other.get(name), name


def kind(name):
    return "v2" if name == "v2" else "v1"


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("given", ["tokenizer", "config"])
def test_it_is_what_diffusers_loads(pipelines, tmp_path, name, given):
    pipeline, folder = pipelines(name)
    tensors = compvis.whole(pipeline, second=name == "v2")
    path = write(tmp_path / "model.safetensors", tensors)
    assert infer_diffusers_model_type(tensors) == kind(name)
    with quiet():
        expected = StableDiffusionPipeline.from_single_file(str(path), config=str(folder))
    with prepared(path, Parts(**{given: folder}), beside=tmp_path) as checkpoint:
        for part in ("unet", "vae", "text_encoder"):
            ours = load(part, checkpoint)
            same(ours, getattr(expected, part))
            same_config(ours, getattr(expected, part))
        found = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
        opened = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
        assert type(opened.scheduler) is type(expected.scheduler)
        for field in (
            "beta_start",
            "beta_end",
            "beta_schedule",
            "clip_sample",
            "steps_offset",
            "set_alpha_to_one",
            "prediction_type",
            "num_train_timesteps",
            "timestep_spacing",
        ):
            assert opened.scheduler.config[field] == expected.scheduler.config[field], field
    with quiet():
        asked = _legacy_load_scheduler(DDIMScheduler, tensors, "scheduler")
    # Where no configuration says it, diffusers itself decides by the tensors.
    assert found.get("prediction_type", "epsilon") == asked.config.prediction_type
    assert not [file for file in tmp_path.iterdir() if file != path]


@pytest.mark.parametrize("name", ["base", "small", "tiny"])
def test_gaps_in_the_numbers_of_blocks_are_closed(pipelines, tmp_path, name):
    """What diffusers' conversion script makes of BK-SDM, and diffusers cannot read back."""
    pipeline, folder = pipelines(name)
    path = write(tmp_path / "model.safetensors", compvis.whole(pipeline, per_block=2))
    with prepared(path, Parts(tokenizer=folder), beside=tmp_path) as checkpoint:
        ours = load("unet", checkpoint)
    same(ours, pipeline.unet)
    same_config(ours, pipeline.unet)


def averaged(tensors):
    """Tensors with averages of the UNet's beside them, as a trainer keeps them."""
    return tensors | {
        "model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
        for name, tensor in tensors.items()
        if name.startswith("model.diffusion_model.")
    }


@pytest.mark.parametrize("ema", [False, True])
def test_averaged_weights(pipelines, tmp_path, ema):
    pipeline, folder = pipelines("small")
    path = write(tmp_path / "model.safetensors", averaged(compvis.whole(pipeline)))
    with quiet():
        expected = UNet2DConditionModel.from_single_file(
            str(path), config=str(folder), subfolder="unet", extract_ema=ema
        )
    with prepared(path, Parts(tokenizer=folder, ema=ema), beside=tmp_path) as checkpoint:
        same(load("unet", checkpoint), expected)


def test_averages_are_found_by_the_names_before_gaps_are_closed(pipelines, tmp_path):
    pipeline, folder = pipelines("tiny")
    tensors = averaged(compvis.whole(pipeline, per_block=2))
    path = write(tmp_path / "model.safetensors", tensors)
    with prepared(path, Parts(tokenizer=folder, ema=True), beside=tmp_path) as checkpoint:
        found = load("unet", checkpoint).state_dict()
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(found[name], tensor + 1)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write")
def test_a_place_that_cannot_be_written(tmp_path):
    path = write(tmp_path / "model.safetensors", {"x": torch.ones(1)})
    where = Path("/proc/self/no")
    with (
        pytest.raises(ExportError, match=r"^cannot write in /proc/self: "),
        prepared(path, beside=where),
    ):
        pass


def test_half_precision(pipelines, tmp_path):
    pipeline, folder = pipelines("small")
    tensors = {name: tensor.half() for name, tensor in compvis.whole(pipeline).items()}
    path = write(tmp_path / "model.safetensors", tensors)
    with quiet():
        expected = UNet2DConditionModel.from_single_file(
            str(path), config=str(folder), subfolder="unet"
        )
    with prepared(path, Parts(tokenizer=folder), beside=tmp_path) as checkpoint:
        same(load("unet", checkpoint), expected.float())


@pytest.mark.parametrize("nested", [False, True])
def test_pickles_of_tensors(pipelines, tmp_path, nested):
    pipeline, folder = pipelines("small")
    tensors = compvis.whole(pipeline)
    content = {"state_dict": {**tensors, "step": 3}, "global_step": 3} if nested else tensors
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with prepared(path, Parts(tokenizer=folder), beside=tmp_path) as checkpoint:
        same(load("unet", checkpoint), pipeline.unet)


def test_the_tokenizer_of_a_hub_cache(pipelines, tmp_path, monkeypatch):
    pipeline, _ = pipelines("small")
    path = write(tmp_path / "model.safetensors", compvis.whole(pipeline))
    snapshot = tmp_path / "hub" / "models--someone--something" / "snapshots" / "1a2b" / "tokenizer"
    snapshot.mkdir(parents=True)
    (snapshot / "merges.txt").write_text("#version: 0.2\n")
    (snapshot / "vocab.json").write_text(json.dumps({"a</w>": 1}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    wanted = "holds no tokenizer; give --tokenizer FOLDER"
    with pytest.raises(ExportError, match=wanted), prepared(path, beside=tmp_path):
        pass
    clip = {"a</w>": 320, "photo</w>": 1125, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (snapshot / "vocab.json").write_text(json.dumps(clip))
    with prepared(path, beside=tmp_path) as checkpoint:
        assert json.loads((checkpoint / "tokenizer" / "vocab.json").read_text()) == clip
        settings = json.loads((checkpoint / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 77, "pad_token": "<|endoftext|>"}


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm-was-done",)


def cut(path, tensors):
    save_file(tensors, path)
    os.truncate(path, path.stat().st_size // 2)


def without(prefix):
    def change(path, tensors):
        save_file({k: t for k, t in tensors.items() if not k.startswith(prefix)}, path)

    return change


def only(**shapes):
    def change(path, tensors):
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)

    return change


def more(**shapes):
    def change(path, tensors):
        save_file({**tensors, **{name: torch.zeros(s) for name, s in shapes.items()}}, path)

    return change


UNET, VAES = "model.diffusion_model.", "first_stage_model."
REFUSED = {
    "harmful": (
        "model.ckpt",
        lambda path, tensors: torch.save({**tensors, "x": Harmful()}, path),
        "damaged, or a pickle of more than tensors; convert it to safetensors",
    ),
    "a plain pickle": (
        "model.ckpt",
        lambda path, tensors: path.write_bytes(pickle.dumps(Harmful())),
        "damaged, or a pickle of more than tensors",
    ),
    "a list": ("model.pt", lambda path, tensors: torch.save([1], path), "other than named tensors"),
    "cut": ("model.safetensors", cut, "damaged, no safetensors file"),
    "cut pickle": (
        "model.ckpt",
        lambda path, tensors: (torch.save(tensors, path), os.truncate(path, 10_000)),
        "damaged, or a pickle",
    ),
    "empty": ("model.ckpt", lambda path, tensors: path.touch(), "is empty"),
    "another format": ("model.gguf", lambda path, tensors: path.write_text("x"), "neither .safete"),
    "a LoRA": (
        "style.safetensors",
        only(**{"lora_unet_mid.lora_down.weight": (1, 2)}),
        "a LoRA, .* --lora style.safetensors",
    ),
    "an embedding": (
        "cat.safetensors",
        only(emb_params=(2, 64)),
        "no checkpoint; .* --embedding cat.safetensors",
    ),
    "a VAE": (
        "vae.safetensors",
        without(("model.", "cond_stage_model.", "betas")),
        "a VAE alone; export a model with --vae vae.safetensors",
    ),
    "no UNet": ("model.safetensors", without(UNET), "a VAE alone"),
    "a UNet of diffusers": (
        "unet.safetensors",
        only(**{f"down_blocks.{i}.conv.weight": (1,) for i in range(3)}),
        "a UNet of diffusers alone; name the folder",
    ),
    "something": (
        "some.safetensors",
        only(**{f"layer{i}.weight": (1, 2, 3) for i in range(3)}),
        r"holds no UNet \(model\.diffusion_model",
    ),
    "no VAE": ("model.safetensors", without(VAES), r"holds no VAE .*; give one by --vae"),
    "half a VAE": ("model.safetensors", without(f"{VAES}encoder"), r"holds no VAE \(encoder.…\)"),
    "no text encoder": ("model.safetensors", without("cond_"), "holds no text encoder"),
    "XL": (
        "xl.safetensors",
        more(**{"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1,)}),
        "a file of Stable Diffusion XL; supported are",
    ),
    "3": (
        "model.safetensors",
        more(
            **{
                f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,),
                f"{UNET}pos_embed": (1, 36864, 1),
            }
        ),
        "a file of Stable Diffusion 3; supported are",
    ),
    "half of 3": (
        "model.safetensors",
        more(**{f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)}),
        "a file of another kind of model; supported are",
    ),
    "inpainting": (
        "model.safetensors",
        more(**{f"{UNET}input_blocks.0.0.weight": (32, 9, 3, 3)}),
        "a file of Stable Diffusion for inpainting",
    ),
    "a tensor less": (
        "model.safetensors",
        without(f"{UNET}time_embed.0.bias"),
        r"model\.safetensors.*: not the \d+ tensors of this network: 1 missing",
    ),
    "a tensor more": (
        "model.safetensors",
        more(**{f"{UNET}input_blocks.1.0.in_layers.9.weight": (3,)}),
        r"1 unknown",
    ),
    "no input": ("model.safetensors", without(f"{UNET}input_blocks.0."), "its UNet lacks input_b"),
    "a block with one layer more": (
        "model.safetensors",
        more(**{f"{UNET}output_blocks.8.0.in_layers.2.weight": (64, 64, 3)}),
        "no UNet of Stable Diffusion's family: its blocks differ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(pipelines, tmp_path, capsys, monkeypatch, case):
    name, change, said = REFUSED[case]
    pipeline, folder = pipelines("small")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    change(path, compvis.whole(pipeline))
    arguments = ["--tokenizer", str(folder), "-o", str(tmp_path / "out" / "bundle")]
    assert main(["export", str(path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bksdm: error: {path}")
    assert re.search(said, line), line
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ema"], r"model\.safetensors: holds no averaged weights .*without --ema"),
        (["--revision", "main"], "is a local file; a revision"),
        (["--variant", "fp16"], "is one file; a variant"),
        (["--tokenizer", "."], r"no tokenizer in \.; give --tokenizer FOLDER"),
    ],
)
def test_options_that_do_not_fit_the_file(pipelines, tmp_path, capsys, options, said, monkeypatch):
    pipeline, folder = pipelines("small")
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "model.safetensors", compvis.whole(pipeline))
    given = [] if "--tokenizer" in options else ["--tokenizer", str(folder)]
    assert main(["export", str(path), *options, *given, "-o", "bundle"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line


@pytest.mark.parametrize("option", ["config", "tokenizer", "ema"])
def test_options_for_files_with_a_folder(nano_checkpoint, option):
    parts = Parts(**{option: nano_checkpoint if option != "ema" else True})
    with (
        pytest.raises(ExportError, match=f"--{option} is for a checkpoint in one file"),
        prepared(nano_checkpoint, parts),
    ):
        pass


def test_a_bundle_is_told_from_a_checkpoint(checkpoint, tmp_path, capsys):
    (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (checkpoint / "vae").rename(checkpoint / "vae_decoder")
    (checkpoint / "unet" / "model.onnx").touch()
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "bundle")]) == 2
    assert "is a bundle already, without weights for torch" in capsys.readouterr().err


def test_a_vae_from_elsewhere(pipelines, nano_checkpoint, tmp_path):
    pipeline, folder = pipelines("v2")
    vae = {f"first_stage_model.{k}": t.contiguous() for k, t in compvis.vae(pipeline.vae).items()}
    plain = {k.removeprefix("first_stage_model."): t for k, t in vae.items()}
    sources = {
        "a file": write(tmp_path / "plain.safetensors", plain),
        "a file of a whole model": write(tmp_path / "whole.safetensors", vae),
        "a file of diffusers": folder / "vae" / "diffusion_pytorch_model.safetensors",
        "a folder": folder / "vae",
        "a folder of a whole model": folder,
    }
    with quiet():
        expected = AutoencoderKL.from_single_file(
            str(sources["a file"]), config=str(folder), subfolder="vae"
        )
    for source in sources.values():
        with prepared(nano_checkpoint, Parts(vae=source), beside=tmp_path) as checkpoint:
            ours = load("vae", checkpoint)
            same(ours, expected)
            same_config(ours, expected)
            assert torch.equal(
                load_file(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")[
                    "conv_in.weight"
                ],
                load_file(nano_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")[
                    "conv_in.weight"
                ],
            )


def test_a_checkpoint_without_a_vae_takes_another(pipelines, tmp_path):
    pipeline, folder = pipelines("small")
    path = tmp_path / "model.safetensors"
    without(VAES)(path, compvis.whole(pipeline))
    with prepared(path, Parts(vae=folder, tokenizer=folder), beside=tmp_path) as checkpoint:
        same(load("vae", checkpoint), pipeline.vae)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no such file or folder; --vae takes"),
        (lambda folder: folder.mkdir(), "no config.json in it; --vae takes"),
        (lambda folder: save_file({"x": torch.ones(1)}, folder), r"neither|holds no VAE"),
    ],
)
def test_a_vae_that_is_none(nano_checkpoint, tmp_path, make, said):
    make(tmp_path / "vae")
    with (
        pytest.raises(ExportError, match=said),
        prepared(nano_checkpoint, Parts(vae=tmp_path / "vae"), beside=tmp_path),
    ):
        pass


def test_a_vae_folder_with_damaged_weights_is_named(nano_checkpoint, tmp_path):
    vae = shutil.copytree(nano_checkpoint / "vae", tmp_path / "vae")
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    with (
        pytest.raises(ExportError, match=rf"^{vae}: no weights found"),
        prepared(nano_checkpoint, Parts(vae=vae), beside=tmp_path),
    ):
        pass


@pytest.mark.slow
def test_pictures_of_the_bundle_are_those_of_the_file(nano_checkpoint, tmp_path, capsys):
    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(nano_checkpoint)
    path = write(tmp_path / "model.safetensors", compvis.whole(pipeline))
    given = ["--config", str(nano_checkpoint), "--vae", str(nano_checkpoint)]
    bundle = str(tmp_path / "bundle")
    assert main(["export", str(path), *given, "-o", bundle]) == 0
    assert main(["verify", bundle, "--against", str(path), *given]) == 0
    assert "vae_decoder" in capsys.readouterr().out


V2_1 = {
    **unet_config("sd-v1-4"),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "attention_head_dim": [5, 10, 20, 20],
    "sample_size": 96,
}
PUBLISHED = {**{name: unet_config(name) for name in CARD_MODELS}, "v2-1": V2_1}


@pytest.mark.parametrize("per_block", [None, 2])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read_off(name, per_block):
    with torch.device("meta"), quiet():
        model = UNet2DConditionModel(**PUBLISHED[name])
    found = ldm_configs.unet_config(
        ldm_configs.close_gaps(compvis.unet(model, per_block)), PUBLISHED[name]["sample_size"]
    )
    with torch.device("meta"), quiet():
        same_config(UNet2DConditionModel.from_config(found), model)


def test_published_configurations_of_the_other_networks_are_read_off():
    with torch.device("meta"), quiet():
        vae = AutoencoderKL(**vae_config("sd-v1-4"))
        text = CLIPTextModel(CLIPTextConfig(**text_config("sd-v1-4")))
        found = ldm_configs.vae_config(compvis.vae(vae), 512)
        same_config(AutoencoderKL.from_config(found), vae)
        found = ldm_configs.text_config(text.state_dict(), "quick_gelu")
    assert (
        found.items()
        >= {
            key: value for key, value in text_config("sd-v1-4").items() if key != "projection_dim"
        }.items()
    )
