"""Checkpoints that cannot be exported: one line that names what is wrong, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from bksdm.cli import main
from bksdm.export import exporter
from bksdm.export.dummy import unet_config
from bksdm.export.quiet import quiet

INDEX, UNET, VAE = "model_index.json", "unet/config.json", "vae/config.json"
TEXT, SCHEDULER = "text_encoder/config.json", "scheduler/scheduler_config.json"
TOKENIZER, TOKENS = "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def write(path, content):
    """Put something else in the place of a file; in the test's own copy."""

    def change(folder):
        (folder / path).unlink(missing_ok=True)
        (folder / path).write_bytes(content)

    return change


def edit(path, **fields):
    """Change fields of a configuration."""

    def change(folder):
        config = json.loads((folder / path).read_text())
        write(path, json.dumps({**config, **fields}).encode())(folder)

    return change


def tensors(network, change):
    """Change the weights of a network, given by name."""

    def apply(folder):
        path = folder / WEIGHTS[network]
        found = {name: tensor.clone() for name, tensor in load_file(path).items()}
        changed = change(found)
        path.unlink()
        save_file(found if changed is None else changed, path, {"format": "pt"})

    return apply


def without(count):
    return lambda found: [found.pop(name) for name in sorted(found)[:count]] and None


def renamed(found):
    return {name.replace("norm", "nrom"): tensor for name, tensor in found.items()}


def cut(path):
    return lambda folder: write(path, (folder / path).read_bytes()[:-1000])(folder)


def special(path):
    """A pipe that nobody writes to."""

    def change(folder):
        (folder / path).unlink(missing_ok=True)
        os.mkfifo(folder / path)

    return change


def pickled(content, *, keep=None):
    """A UNet of a pickle in the place of safetensors."""

    def change(folder):
        found = load_file(folder / WEIGHTS["unet"])
        (folder / WEIGHTS["unet"]).unlink()
        path = folder / "unet" / "diffusion_pytorch_model.bin"
        torch.save(content(found), path)
        path.write_bytes(path.read_bytes()[:keep])

    return change


def unet_of(**fields):
    """Another UNet, with all of its weights."""

    def change(folder):
        shutil.rmtree(folder / "unet")
        with quiet():
            torch.manual_seed(0)
            UNet2DConditionModel(**{**unet_config("nano"), **fields}).save_pretrained(
                folder / "unet"
            )

    return change


def blocks(kind, last="DownBlock2D", first="UpBlock2D"):
    return {
        "down_block_types": [f"{kind}DownBlock2D"] * 3 + [last],
        "up_block_types": [first] + [f"{kind}UpBlock2D"] * 3,
    }


def index_of_shards(text):
    def change(folder):
        (folder / WEIGHTS["unet"]).unlink()
        write(f"{WEIGHTS['unet']}.index.json", text.encode())(folder)

    return change


def link_to_nothing(folder):
    (folder / WEIGHTS["unet"]).unlink()
    (folder / WEIGHTS["unet"]).symlink_to("../../blobs/1234")


FEW = r"not the \d+ tensors of this network: "
NET = {
    "misses": (without(5), FEW + r"5 missing \(\S+, \S+, \S+ …\)$"),
    "misses two": (without(2), FEW + r"2 missing \(\S+, \S+\)$"),
    "other names": (renamed, r"\d+ missing \(.*norm.* …\), \d+ unknown \(.*nrom.* …\)$"),
    "too many": (lambda found: found.update(x=torch.ones(1)), FEW + r"1 unknown \(x\)$"),
    "other shapes": (
        lambda found: found.update({k: found[k][:-1].clone() for k in sorted(found)[:4]}),
        FEW + r"4 not fitting \(\S+ \[.*\] for \[.*\], .* …\)$",
    ),
    "integers": (
        lambda found: found.update({k: found[k].to(torch.int8) for k in sorted(found)[:1]}),
        FEW + r"1 not fitting \(\S+ int8 \[.*\] for \[.*\]\)$",
    ),
    "NaN": (
        lambda found: found[sorted(found)[3]].view(-1)[:1].fill_(np.nan) and None,
        "holds values that are not finite",
    ),
}

REFUSED = {
    **{
        f"{network} {what}": (tensors(network, change), f"{path}: .*{said}")
        for network, path in WEIGHTS.items()
        for what, (change, said) in NET.items()
    },
    "only the decoder": (
        tensors("vae", lambda f: {k: t for k, t in f.items() if not k.startswith("encoder")}),
        rf"{WEIGHTS['vae']}: .*missing \(encoder",
    ),
    **{
        f"{path} is {what}": (write(path, content), f"{path}: {said}")
        for path in WEIGHTS.values()
        for what, content, said in (
            ("empty", b"", "is empty"),
            ("a pointer", LFS, "a pointer of Git LFS, .*git lfs pull"),
            ("damaged", b"x" * 1000, "damaged, no safetensors file"),
        )
    },
    "cut weights": (cut(WEIGHTS["unet"]), f"{WEIGHTS['unet']}: damaged"),
    "a pipe of weights": (special(WEIGHTS["unet"]), f"{WEIGHTS['unet']}: no regular file"),
    "a link to nothing": (link_to_nothing, f"{WEIGHTS['unet']}: a link to nothing"),
    **{
        f"{path} is {what}": (change(path), f"{path}: {said}")
        for path in (INDEX, UNET, VAE, TEXT, SCHEDULER)
        for what, change, said in (
            ("a list", lambda p: write(p, b"[1]"), "must hold a JSON object"),
            ("a pointer", lambda p: write(p, LFS), "a pointer of Git LFS"),
            ("a pipe", special, r"cannot be read \(not a regular file\)"),
            ("binary", lambda p: write(p, bytes(range(256))), "cannot be read"),
        )
    },
    **{
        f"a pipe of {name}": (special(f"tokenizer/{name}"), f"{name}: .*not a regular file")
        for name in ("merges.txt", "vocab.json", "tokenizer.json")
    },
    "a pointer of merges": (write("tokenizer/merges.txt", LFS), "merges.txt: a pointer of Git"),
    "a pointer of words": (write("tokenizer/vocab.json", LFS), "vocab.json: a pointer of Git"),
    "code": (pickled(lambda found: {**found, "x": print}), r"\.bin: damaged, or a pickle of more"),
    "a module": (pickled(lambda found: torch.nn.Linear(1, 1)), r"\.bin: damaged, or a pickle"),
    "nested": (pickled(lambda found: {"state_dict": found}), r"\.bin: contains something other"),
    "cut pickle": (pickled(lambda found: found, keep=-5000), r"\.bin: damaged"),
    "empty pickle": (pickled(lambda found: found, keep=0), r"\.bin: is empty"),
    "no shards": (
        index_of_shards('{"weight_map": {"a": "b.safetensors"}}'),
        r"index\.json: 1 of its files missing \(b\.safetensors\)",
    ),
    "shards elsewhere": (
        index_of_shards('{"weight_map": {"a": "../b.safetensors"}}'),
        r"index\.json: weight_map names files that do not lie beside it",
    ),
    "no map of shards": (index_of_shards('{"weight_map": []}'), r"index\.json: weight_map must"),
    "another network": (
        lambda f: shutil.copyfile(f / WEIGHTS["vae"], f / WEIGHTS["unet"]),
        f"{WEIGHTS['unet']}: {FEW}394 missing",
    ),
    "classes": (edit(UNET, num_class_embeds=5), f"{UNET}: num_class_embeds is 5"),
    "no such block": (
        edit(UNET, down_block_types=["NoBlock"] * 4),
        f"{UNET}: no unet can be built from it .*NoBlock does not exist",
    ),
    "too few blocks": (edit(UNET, up_block_types=["UpBlock2D"]), f"{UNET}: no unet can be built"),
    "no such activation": (edit(UNET, act_fn="x"), f"{UNET}: no unet can be built"),
    "no epsilon": (edit(UNET, norm_eps=None), f"{UNET}: the unet cannot be run .*eps"),
    "two transformers": (
        unet_of(dual_cross_attention=True),
        f"{UNET}: the unet cannot be run .*DualTransformer2DModel",
    ),
    "another attention": (unet_of(**blocks("SimpleCrossAttn")), f"{UNET}: the unet cannot be run"),
    "odd sizes": (unet_of(**blocks("Attn")), f"{UNET}: the unet cannot be run .*Sizes"),
    "Katherine's blocks": (
        unet_of(**blocks("KCrossAttn", "KDownBlock2D", "KUpBlock2D")),
        f"{UNET}: the unet cannot",
    ),
    "blocks for tests": (
        unet_of(down_block_types=["SkipDownBlock2D"] * 4, up_block_types=["SkipUpBlock2D"] * 4),
        f"{UNET}: does not serve as unet",
    ),
    "embeddings of another width": (
        unet_of(cross_attention_dim=48),
        f"{UNET}: cross_attention_dim is 48, but the text encoder makes embeddings of 32",
    ),
    "no scaling": (edit(VAE, scaling_factor=0), f"{VAE}: scaling_factor must be a positive"),
    "no such VAE block": (edit(VAE, up_block_types=["X"] * 4), f"{VAE}: no vae can be built"),
    "heads": (edit(TEXT, num_attention_heads=5), f"{TEXT}: no text_encoder .*multiple"),
    "text activation": (edit(TEXT, hidden_act="x"), f"{TEXT}: no text_encoder can be built"),
    "layers": (edit(TEXT, num_hidden_layers=3), f"{WEIGHTS['text_encoder']}: {FEW}16 missing"),
    "no scheduler": (edit(INDEX, scheduler=["diffusers", "NoDDIM"]), f"{INDEX}: .*NoDDIM"),
    "scheduler of others": (edit(INDEX, scheduler=["own", "DDIM"]), f"{INDEX}: scheduler must"),
    "betas": (edit(SCHEDULER, beta_start="x"), f"{SCHEDULER}: beta_start must be a number"),
    "long rows": (edit(TOKENIZER, model_max_length=100), "tokenizer: .*100"),
    # It overrules the tokenizer's configuration.
    "no padding": (edit(TOKENS, pad_token="<x>"), "tokenizer: '<x>' is token number 1024"),
    "null padding": (edit(TOKENS, pad_token=None), "tokenizer.*: pad_token is None"),
    "a tokenizer of nothing": (write("tokenizer/tokenizer.json", b"{}"), r"tokenizer\.json: not a"),
}


@pytest.fixture
def untraced(monkeypatch):
    """Nothing may be traced before a refusal."""

    def trace(network, folder, half):
        raise AssertionError(f"{network.component} is traced")

    monkeypatch.setattr(exporter, "write_graph", trace)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(checkpoint, tmp_path, capsys, untraced, case):
    change, said = REFUSED[case]
    change(checkpoint)
    bundle = tmp_path / "out" / "deep" / "bundle"
    assert main(["export", str(checkpoint), "-o", str(bundle)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bksdm: error: {checkpoint}")
    # No folder that is gone by now.
    assert line.count(str(tmp_path)) == line.count(str(checkpoint))
    assert re.search(said, line), line
    # Neither the bundle, nor something unfinished, nor the folders that it was to lie in.
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
