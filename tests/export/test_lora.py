"""LoRAs merged at export: the weights and the pictures are those of diffusers' fused pipeline."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from bksdm.cli import main
from bksdm.engines.errors import LoraError
from bksdm.export import exporter
from bksdm.export.lora import read_lora
from bksdm.export.merge import merge
from bksdm.export.networks import TextEncoder, Unet, load_network
from bksdm.export.parity import ComponentParity
from bksdm.export.preview import Fit
from bksdm.export.quiet import quiet
from bksdm.export.reference import open_pipeline
from bksdm.runtime.lora.file import split_scale
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.digest import sha256_of

from ..lora_files import KOHYA as NETWORKS
from ..lora_files import kohya, oldest
from ..parity.pictures import assert_same_pictures, pictures

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# Linear layers and convolutions of 1 and 3, in blocks of all kinds.
UNET = [
    *ATTENTION,
    "proj_in",
    "ff.net.0.proj",
    "conv1",
    "conv_in",
    "time_emb_proj",
    "conv_shortcut",
    "linear_1",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def _adapters(checkpoint, unet, text_encoder, targets=UNET):
    """A pipeline with random adapters; both factors, unlike those that a training starts from."""
    pipeline = open_pipeline(checkpoint)
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=targets, **unet))
    pipeline.text_encoder.add_adapter(LoraConfig(r=3, target_modules=TEXT, **text_encoder))
    generator = torch.Generator().manual_seed(0)
    for model in (pipeline.unet, pipeline.text_encoder):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return pipeline


def _save(pipeline, path, convert, **headers):
    models = (pipeline.unet, pipeline.text_encoder)
    layers = [convert(get_peft_model_state_dict(model)) for model in models]
    StableDiffusionPipeline.save_lora_weights(
        path.parent, *layers, weight_name=path.name, **headers
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def plain(nano_checkpoint, folder):
    """A file in peft's naming, ``lora_A`` and ``lora_B``, without metadata."""
    adapters = _adapters(nano_checkpoint, {"lora_alpha": 4}, {"lora_alpha": 3})
    return _save(adapters, folder / "plain.safetensors", dict)


@pytest.fixture(scope="module")
def original(nano_checkpoint):
    return _merged(nano_checkpoint)


def _fused(checkpoint, *files):
    """Return the weights of diffusers' pipeline after fusing one file after another."""
    return _weights(_fused_pipeline(checkpoint, *files))


def _fused_pipeline(checkpoint, *files):
    pipeline = open_pipeline(checkpoint)
    with quiet():
        for path, scale in files:
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
            pipeline.fuse_lora(lora_scale=scale)
            pipeline.unload_lora_weights()
    return pipeline


def _weights(pipeline):
    return {name: getattr(pipeline, name).state_dict() for name in NETWORKS}


def _merged(checkpoint, *files):
    """Return the weights after our own merge."""
    weights = {}
    for kind in (TextEncoder, Unet):
        with quiet():
            model = load_network(kind, checkpoint).model
        for path, scale in files:
            merge(read_lora(path, scale), kind.component, model)
        weights[kind.component] = model.state_dict()
    return weights


def _assert_same(found, expected):
    """Equal but for the last bits of float32.

    A product of 4 terms is multiplied by the scale in another order, and then added to a weight of
    its size: 2 units in the last place (2**-23) of the tensor's largest value.
    """
    for component, tensors in expected.items():
        assert tensors.keys() == found[component].keys()
        for name, tensor in tensors.items():
            bound = 2**-22 * float(tensor.abs().max())
            torch.testing.assert_close(found[component][name], tensor, rtol=0, atol=bound)


def _changed(found, original):
    """How many tensors differ."""
    return sum(
        not torch.equal(tensor, original[component][name])
        for component, tensors in found.items()
        for name, tensor in tensors.items()
    )


def _kohya(path, target, alphas):
    """Write a file of peft's naming once more in Kohya's."""
    save_file(kohya(load_file(path), alphas), target)
    return target


def test_weights_equal_diffusers(nano_checkpoint, plain, original):
    found = _merged(nano_checkpoint, (plain, 0.7))
    _assert_same(found, _fused(nano_checkpoint, (plain, 0.7)))
    assert _changed(found, original) == len(load_file(plain)) // 2 > 100
    assert _changed(_merged(nano_checkpoint, (plain, 0.0)), original) == 0


def test_kohyas_naming_and_alphas(nano_checkpoint, plain, folder):
    path = _kohya(plain, folder / "kohya.safetensors", {"unet": 4.0, "text_encoder": 3.0})
    same = _merged(nano_checkpoint, (plain, 0.7))
    assert _changed(_merged(nano_checkpoint, (path, 0.7)), same) == 0
    path = _kohya(plain, folder / "kohya.safetensors", {"unet": 1.0, "text_encoder": 2.0})
    found = _merged(nano_checkpoint, (path, 0.7))
    _assert_same(found, _fused(nano_checkpoint, (path, 0.7)))
    assert _changed(found, same) == len(load_file(plain)) // 2


def test_diffusers_older_namings(nano_checkpoint, folder):
    adapters = _adapters(nano_checkpoint, {"lora_alpha": 4}, {"lora_alpha": 3}, ATTENTION)
    path = _save(adapters, folder / "older.safetensors", convert_state_dict_to_diffusers)
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(path).items()}
    assert {key.partition(".lora")[2] for key in tensors} == {
        ".down.weight",
        ".up.weight",
        "_A.weight",
        "_B.weight",
        "_linear_layer.down.weight",
        "_linear_layer.up.weight",
    }
    save_file(tensors, path)
    found = _merged(nano_checkpoint, (path, -1.5))
    _assert_same(found, _fused(nano_checkpoint, (path, -1.5)))

    # As before peft, when attention processors held the layers.
    renamed = oldest(tensors)
    path_of_old = folder / "oldest.safetensors"
    save_file(renamed, path_of_old)
    assert sum("_lora." in key for key in renamed) == 2 * (9 * 2 * 4 + 2 * 4)
    assert _changed(_merged(nano_checkpoint, (path_of_old, -1.5)), found) == 0
    _assert_same(found, _fused(nano_checkpoint, (path_of_old, -1.5)))


def test_alphas_of_the_header(nano_checkpoint, plain, folder):
    # The header has them sorted, and the first one that matches counts.
    patterns = {"conv_in": 1, "to_q": 2, r"up_blocks\.\d.*to_[qk]": 10}
    unet = {"lora_alpha": 6, "alpha_pattern": patterns}
    adapters = _adapters(nano_checkpoint, unet, {"lora_alpha": 5, "use_rslora": True})
    models = {"unet": adapters.unet, "text_encoder": adapters.text_encoder}
    headers = _collate_lora_metadata(models)
    path = _save(adapters, folder / "header.safetensors", dict, **headers)
    found = _merged(nano_checkpoint, (path, 1.0))
    _assert_same(found, _fused(nano_checkpoint, (path, 1.0)))
    scaling = {layer.module: layer.scaling for layer in read_lora(path).layers}
    assert scaling["conv_in"] == 1 / 4
    attention = "attentions.0.transformer_blocks.0.attn2"
    assert scaling[f"up_blocks.1.{attention}.to_q"] == 2 / 4
    assert scaling[f"up_blocks.1.{attention}.to_k"] == 10 / 4
    assert scaling[f"down_blocks.1.{attention}.to_k"] == 6 / 4
    assert scaling["encoder.layers.1.mlp.fc1"] == 5 / math.sqrt(3)

    # The UNet alone writes names and header without a prefix.
    adapters.unet.save_lora_adapter(folder / "unet")
    (alone,) = (folder / "unet").iterdir()
    unet_only = _merged(nano_checkpoint, (alone, 1.0))["unet"]
    assert _changed({"unet": unet_only}, found) == 0


@pytest.mark.parametrize("whole", [True, False])
def test_folders_and_files_of_peft(nano_checkpoint, original, tmp_path, whole):
    """Nothing names the network; factors of more than one rank and of every kind of alpha."""
    pipeline, expected, read = open_pipeline(nano_checkpoint), {}, []
    configs = {
        "unet": {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": UNET,
            "rank_pattern": {"to_q": 2},
            "alpha_pattern": {"conv_in": 1, r"up_blocks\.\d.*to_[qk]": 10},
        },
        "text_encoder": {"r": 3, "lora_alpha": 5, "target_modules": TEXT, "use_rslora": True},
    }
    for name, fields in configs.items():
        torch.manual_seed(0)
        config = LoraConfig(**fields, init_lora_weights=False)
        with quiet():
            adapted = get_peft_model(getattr(pipeline, name), config)
            adapted.save_pretrained(tmp_path / name, safe_serialization=whole)
            expected[name] = adapted.merge_and_unload().state_dict()
        (file,) = (tmp_path / name).glob("adapter_model.*")
        read.append((tmp_path / name if whole else file, 1.0))
    tensors = load_file(file) if whole else torch.load(file)
    assert all(key.startswith("base_model.model.") for key in tensors)
    found = _merged(nano_checkpoint, *read)
    _assert_same(found, expected)
    assert _changed(found, original) == _changed(expected, original) > 100


def test_a_file_of_peft_alone_does_not_say_its_factor(nano_checkpoint, tmp_path, capsys):
    path = tmp_path / "adapter_model.safetensors"
    save_file(_pair(LAYER.replace("unet.", "base_model.model.")), path)
    # diffusers loads nothing of it, and says so in a warning.
    pipeline = open_pipeline(nano_checkpoint)
    with quiet():
        pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    assert pipeline.get_list_adapters() == {}
    _refused(nano_checkpoint, path, "adapter_config.json says what it is multiplied by", capsys)
    config = tmp_path / "adapter_config.json"
    for fields, said in (
        ("[]", "adapter_config.json: must hold a JSON object"),
        ('{"lora_alpha": "8"}', "adapter_config.json: base_model.model.lora_alpha is '8', not a"),
        ('{"use_dora": true}', "only plain LoRA is supported"),
        ('{"layer_replication": [[0, 2]]}', "adapter_config.json: layer_replication is set"),
    ):
        config.write_text(fields)
        with pytest.raises(LoraError, match=said.replace("[", r"\[")):
            read_lora(tmp_path)


def test_names_of_adapters_and_pickles(nano_checkpoint, plain, folder):
    expected = _merged(nano_checkpoint, (plain, 1.0))

    def named(name, keep=""):
        path = folder / f"{name}{keep}.safetensors"
        tensors = {k: t for k, t in load_file(plain).items() if k.startswith(keep)}
        save_file({k.replace(".weight", f".{name}.weight"): t for k, t in tensors.items()}, path)
        return path

    for name in ("default_0", "default", "my-style"):
        assert _changed(_merged(nano_checkpoint, (named(name), 1.0)), expected) == 0
    # diffusers' own name for its first adapter; that of a text encoder it cannot read.
    path = named("default_0", "unet.")
    _assert_same(_merged(nano_checkpoint, (path, 1.0)), _fused(nano_checkpoint, (path, 1.0)))
    path = folder / "style.bin"
    torch.save(load_file(plain), path)
    assert _changed(_merged(nano_checkpoint, (path, 1.0)), expected) == 0


def test_several_add_up(nano_checkpoint, plain, folder):
    path = _kohya(plain, folder / "second.safetensors", {"unet": 2.0, "text_encoder": 2.0})
    files = ((plain, 0.5), (path, -0.25))
    _assert_same(_merged(nano_checkpoint, *files), _fused(nano_checkpoint, *files))


def test_a_convolution_of_one_is_a_linear_layer(nano_checkpoint, folder):
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    path = folder / "linear.safetensors"
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    weights = []
    for ones in ((), (1, 1)):
        factors = {"down": down.reshape(2, 16, *ones), "up": up.reshape(16, 2, *ones)}
        save_file({f"{name}.lora_{half}.weight": t for half, t in factors.items()}, path)
        weights.append(_merged(nano_checkpoint, (path, 1.0)))
    assert _changed(*weights) == 0


def test_what_is_traced_is_the_merged_network(nano_checkpoint, plain, tmp_path, monkeypatch):
    traced = {}

    def trace(network, folder, half):
        traced[network.component] = network.model.state_dict()
        return folder

    row = ComponentParity("", "float32", 4, 0.0, 0.0, math.inf, 1.0)
    monkeypatch.setattr(exporter, "kinds_of", lambda checkpoint, checker: (TextEncoder, Unet))
    monkeypatch.setattr(exporter, "references", lambda network, half: [])
    monkeypatch.setattr(exporter, "write_graph", trace)
    monkeypatch.setattr(exporter, "compare", lambda *arguments: row)
    monkeypatch.setattr(exporter, "write_preview", lambda folder: Fit([[]], [], 0.0, 0.0))
    files = [(plain, 0.3), (plain, 1.0)]
    exporter.export(nano_checkpoint, tmp_path / "bundle", loras=files)
    assert _changed(traced, _merged(nano_checkpoint, *files)) == 0


@pytest.mark.slow
def test_the_bundle_draws_what_the_fused_pipeline_draws(
    nano_checkpoint, nano_bundle, plain, folder, tmp_path, capsys, monkeypatch
):
    bundle, odd = tmp_path / "bundle", folder / "odd:name.safetensors"
    shutil.copy(plain, odd)
    # Only what a LoRA changes; tracing is what takes the time.
    monkeypatch.setattr(exporter, "kinds_of", lambda checkpoint, checker: (TextEncoder, Unet))
    monkeypatch.setattr(exporter, "write_preview", lambda folder: Fit([[]], [], 0.0, 0.0))
    command = ["export", str(nano_checkpoint), "-o", str(bundle)]
    assert main([*command, "--lora", f"{plain}:0.3", "--lora", str(odd)]) == 0
    shutil.copytree(nano_bundle / "vae_decoder", bundle / "vae_decoder", dirs_exist_ok=True)
    said = capsys.readouterr().err
    layers = {"text_encoder": 2 * 6, "unet": len(load_file(plain)) // 2 - 2 * 6}
    for component, count in layers.items():
        for path in (plain, odd):
            assert f"{component}: merging {count} layers of {path}\n" in said
    files = [
        {"file": plain.name, "sha256": sha256_of(plain), "scale": 0.3},
        {"file": odd.name, "sha256": sha256_of(odd), "scale": 1.0},
    ]
    assert json.loads((bundle / "model_index.json").read_text())["_lora"] == files
    assert main(["info", str(bundle)]) == 0
    assert f"merged LoRAs: file {plain.name} sha256 {sha256_of(plain)} scale 0.3, file odd" in (
        capsys.readouterr().out
    )
    reference = _fused_pipeline(nano_checkpoint, (plain, 0.3), (odd, 1.0))
    reference.set_progress_bar_config(disable=True)
    expected = pictures(reference, "a red apple", seed=7, num_inference_steps=4)
    found = TextToImage.load(bundle)("a red apple", seed=7, num_inference_steps=4).pixels
    assert_same_pictures(found, expected)
    without = pictures(open_pipeline(nano_checkpoint), "a red apple", seed=7, num_inference_steps=4)
    assert (without != expected).any()


LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP = torch.ones(2, 16), torch.ones(16, 2)


def _pair(layer=LAYER, down=DOWN, up=UP, **more):
    named = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    return {**named, **{f"{layer}.{key}": tensor for key, tensor in more.items()}}


KOHYA = "lora_unet_mid_block_attentions_0_proj_in"
REFUSED = {
    "no layer": (
        _pair("unet.mid_block.resnets.0.conv1"),
        "unet.mid_block.resnets.0.conv1: the "
        "unet has no such layer; a LoRA made for another architecture",
    ),
    "no layer, Kohya": (_pair(KOHYA), f"{KOHYA}: the unet has no such layer"),
    "SDXL": (_pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "lora_te2_text_model"),
    "first of two": (_pair("unet.y", DOWN.clone(), UP.clone()) | _pair("unet.x"), "unet.x: "),
    "wider": (
        _pair(down=torch.ones(2, 320), up=torch.ones(320, 2)),
        f"{LAYER} is for [320, 320], the unet has [16, 16]; a LoRA made for another",
    ),
    "kernel": (
        _pair("unet.conv_in", torch.ones(2, 4, 3, 1), torch.ones(16, 2, 1, 1)),
        "unet.conv_in is for [16, 4, 3, 1], the unet has [16, 4, 3, 3]",
    ),
    "LoHa": ({f"{LAYER}.hada_w1_a": DOWN}, "hada_w1_a belongs to LoHa; only plain LoRA"),
    "LoKr": ({f"{LAYER}.lokr_w1": DOWN}, "lokr_w1 belongs to LoKr"),
    "DoRA": (_pair(dora_scale=torch.ones(16)), "dora_scale belongs to DoRA"),
    "Tucker": ({f"{KOHYA}.lora_mid.weight": DOWN}, "lora_mid.weight belongs to Tucker"),
    "no up": ({f"{LAYER}.lora_A.weight": DOWN}, f"{LAYER} has down, but no up"),
    "only alpha": ({f"{LAYER}.alpha": torch.tensor(1.0)}, f"{LAYER} has alpha, but no down"),
    "alphas": (_pair(alpha=torch.ones(2)), f"{LAYER}: alpha is [2], not one number"),
    "NaN": (_pair(up=UP * float("nan")), "lora_B.weight holds values that are not finite"),
    "ranks": (_pair(down=torch.ones(3, 16)), f"{LAYER}: down [3, 16] and up [16, 2] do not fit"),
    "rank 0": (_pair(down=torch.ones(0, 16), up=torch.ones(16, 0)), "do not fit each other"),
    "twice": (_pair() | {f"{LAYER}.lora.down.weight": DOWN + 1}, "duplicates another"),
    "checkpoint": ({"conv_in.weight": DOWN}, "not a LoRA file that can be used, it holds"),
    "two adapters": (_pair() | {f"{LAYER}.lora_A.other.weight": DOWN + 1}, "duplicates another"),
    "empty": ({}, "not a LoRA file, it holds no tensors"),
}
HEADERS = {
    "text": ("{", "lora_adapter_metadata in its header is not valid JSON"),
    "list": ("[]", "lora_adapter_metadata in its header is no JSON object"),
    "alpha": (
        '{"unet.lora_alpha": "8"}',
        "lora_adapter_metadata: unet.lora_alpha is '8', not a finite",
    ),
    "NaN": ('{"unet.lora_alpha": NaN}', "unet.lora_alpha is nan"),
    "pattern": (
        '{"unet.alpha_pattern": {"[": 1}}',
        "unet.alpha_pattern is not valid",
    ),
    "endless": (
        '{"unet.alpha_pattern": {"(([a-z]+)+)!": 1}}',
        "not a pattern of module names without groups",
    ),
    "huge alpha": ('{"unet.lora_alpha": 1' + "0" * 400 + "}", "not a finite number"),
    "no pattern": ('{"unet.alpha_pattern": [1]}', "alpha_pattern is not valid"),
    "DoRA": ('{"unet.use_dora": true}', "only plain LoRA is supported"),
    "PiSSA": ('{"unet.init_lora_weights": "pissa_niter_4"}', "changes the network's own weights"),
}


def _refused(checkpoint, path, named, capsys):
    """One line that names the file, and nothing of the bundle."""
    bundle = path.parent / "out" / "bundle"
    assert main(["export", str(checkpoint), "-o", str(bundle), "--lora", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert f"{path}" in said
    assert named in said
    assert len(said.splitlines()) == 1
    assert not bundle.parent.exists()


@pytest.mark.parametrize("case", REFUSED)
def test_refused_tensors(nano_checkpoint, tmp_path, capsys, case):
    tensors, named = REFUSED[case]
    save_file(tensors, tmp_path / "x.safetensors")
    _refused(nano_checkpoint, tmp_path / "x.safetensors", named, capsys)


@pytest.mark.parametrize("case", HEADERS)
def test_refused_headers(nano_checkpoint, tmp_path, capsys, case):
    text, named = HEADERS[case]
    save_file(_pair(), tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    _refused(nano_checkpoint, tmp_path / "x.safetensors", named, capsys)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "folder", "missing"])
def test_refused_files(nano_checkpoint, plain, tmp_path, capsys, damage):
    path = tmp_path / "x.safetensors"
    if damage == "cut":
        path.write_bytes(plain.read_bytes()[:9000])
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text("no tensors" if damage == "text" else "")
    named = {"missing": "no such file", "folder": "not a regular file"}.get(
        damage, "damaged, or not a"
    )
    _refused(nano_checkpoint, path, named, capsys)


def test_refused_pickles(nano_checkpoint, tmp_path, capsys):
    path = tmp_path / "x.pt"
    for content, named in (
        (print, "pickle of more than tensors; convert it to safetensors"),
        ({"state_dict": _pair()}, "other than named tensors"),
    ):
        torch.save(content, path)
        _refused(nano_checkpoint, path, named, capsys)
    path.unlink()
    os.mkfifo(path)
    _refused(nano_checkpoint, path, "not a regular file", capsys)


def test_a_sum_beyond_float32_is_refused(nano_checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(_pair(down=DOWN * 1e30, up=UP * 1e30), path)
    with pytest.raises(LoraError, match=f"x.safetensors: {LAYER} is too large for float32"):
        _merged(nano_checkpoint, (path, 1.0))


def test_scale_after_the_last_colon(tmp_path):
    odd = tmp_path / "a:0.5"
    assert split_scale(str(odd)) == (tmp_path / "a", 0.5)
    odd.touch()
    assert split_scale(str(odd)) == (odd, 1.0)
    assert split_scale(f"{odd}:-2") == (odd, -2.0)
    assert split_scale("nothing") == (Path("nothing"), 1.0)
    for text, named in {
        "x:abc": "'abc' is no scale",
        "C:\\x": "no such file",
        "x:": "'' is no",
        "x:nan": "finite",
        "x:inf": "finite",
    }.items():
        with pytest.raises(LoraError, match=named):
            split_scale(text)
