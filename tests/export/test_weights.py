"""Weights are those that diffusers and transformers load, from whatever layout of files."""

from __future__ import annotations

import json
import shutil
import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from diffusers.pipelines.pipeline_loading_utils import (
    _get_ignore_patterns,
    variant_compatible_siblings,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPTextModel, PreTrainedModel

from bksdm.engines.errors import ExportError
from bksdm.export import pretrained
from bksdm.export.merge import merge
from bksdm.export.networks import NETWORKS, TextEncoder, load_network
from bksdm.export.pretrained import load
from bksdm.export.quiet import quiet
from bksdm.export.reference import open_pipeline
from bksdm.export.source import weight_files
from bksdm.export.weights import choose, files_of
from bksdm.runtime.lora.file import LoraLayer

CLASSES = {
    "text_encoder": CLIPTextModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "safety_checker": StableDiffusionSafetyChecker,
}
FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "safety_checker": "model.safetensors",
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def whole(nano_checkpoint, tmp_path_factory):
    """The nano checkpoint with a safety checker, in the layout of today."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint"
    shutil.copytree(nano_checkpoint, folder)
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=16))
    with quiet():
        checker.save_pretrained(folder / "safety_checker")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def _take(folder, subfolder):
    path = folder / subfolder / FILES[subfolder]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    return tensors


def _as_it_is(folder, subfolder, tensors):
    save_file(tensors, folder / FILES[subfolder], {"format": "pt"})


def _old_names(folder, subfolder, tensors):
    """As published checkpoints have them."""
    old = {}
    for name, tensor in tensors.items():
        if subfolder == "safety_checker":
            name = name.replace("vision_model.", "vision_model.vision_model.")
        if subfolder == "vae" and ".attentions." in name:
            for now, then in {
                "to_q": "query",
                "to_k": "key",
                "to_v": "value",
                "to_out.0": "proj_attn",
            }.items():
                name = name.replace(f".{now}.", f".{then}.")
        old[name] = tensor
    if subfolder == "text_encoder":
        # Of the whole CLIP, or of a text encoder with a projection.
        old |= {"text_projection.weight": torch.ones(3, 3), "logit_scale": torch.ones(1)}
    leftovers = {"text_encoder": "text_model", "safety_checker": "vision_model.vision_model"}
    if subfolder in leftovers:
        old[f"{leftovers[subfolder]}.embeddings.position_ids"] = torch.arange(7)[None]
    if subfolder != "unet":
        assert old.keys() != tensors.keys()
    _as_it_is(folder, subfolder, old)


def _new_names(folder, subfolder, tensors):
    """As transformers 5 writes a text encoder."""
    _as_it_is(folder, subfolder, {k.removeprefix("text_model."): t for k, t in tensors.items()})


def _pickle(folder, subfolder, tensors):
    name = FILES[subfolder].replace("model.safetensors", "model.bin")
    torch.save(tensors, folder / {"model.bin": "pytorch_model.bin"}.get(name, name))


def _old_pickle(folder, subfolder, tensors):
    _pickle(folder, subfolder, tensors)
    (path,) = folder.glob("*.bin")
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def _sharded(folder, subfolder, tensors):
    stem = FILES[subfolder].removesuffix(".safetensors")
    places = {}
    for number in (1, 2):
        name = f"{stem}-0000{number}-of-00002.safetensors"
        part = dict(list(tensors.items())[number - 1 :: 2])
        save_file(part, folder / name, {"format": "pt"})
        places |= dict.fromkeys(part, name)
    text = json.dumps({"metadata": {}, "weight_map": places})
    (folder / f"{stem}.safetensors.index.json").write_text(text)


def _half(folder, subfolder, tensors):
    name = FILES[subfolder].replace(".safetensors", ".fp16.safetensors")
    half = {k: t.half() for k, t in tensors.items()}
    save_file(half, folder / name, {"format": "pt"})


def _old_sharded_half(folder, subfolder, tensors):
    """As diffusers wrote them before it agreed with transformers."""
    _sharded(folder, subfolder, {k: t.half() for k, t in tensors.items()})
    (index,) = folder.glob("*.index.json")
    text = index.read_text()
    for path in folder.glob("*-of-*"):
        name = path.name.replace(".safetensors", ".fp16.safetensors")
        text = text.replace(path.name, name)
        path.rename(path.with_name(name))
    index.unlink()
    new = index.name.replace(".safetensors.index.json", ".safetensors.fp16.index.json")
    index.with_name(new).write_text(text)


LAYOUTS = {
    "today": _as_it_is,
    "old names": _old_names,
    "new names": _new_names,
    "pickle": _pickle,
    "old pickle": _old_pickle,
    "sharded": _sharded,
    "fp16": _half,
    "old sharded fp16": _old_sharded_half,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("subfolder", "layout"),
    [
        (subfolder, layout)
        for subfolder in CLASSES
        for layout in LAYOUTS
        if layout != "old sharded fp16" or subfolder in ("unet", "vae")
    ],
)
def test_weights_are_those_that_the_library_loads(copy, subfolder, layout):
    LAYOUTS[layout](copy / subfolder, subfolder, _take(copy, subfolder))
    variant = {"variant": "fp16"} if "fp16" in layout else {}
    with quiet():
        reference, info = CLASSES[subfolder].from_pretrained(
            copy / subfolder, torch_dtype=torch.float32, output_loading_info=True, **variant
        )
        # fp16 is also what is taken when nothing else is there.
        found = load(subfolder, copy)
    assert not info["missing_keys"]
    expected = reference.state_dict()
    weights = found.state_dict()
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)
    # What is in no file is there too, and right.
    assert dict(found.named_buffers()).keys() == dict(reference.named_buffers()).keys()
    for name, buffer in reference.named_buffers():
        assert torch.equal(found.get_buffer(name), buffer)


@pytest.mark.parametrize("key", ["vision_model.x", "logit_scale.x", "visual_projection.bias"])
def test_nothing_of_a_networks_own_parts_is_a_leftover(copy, key):
    tensors = _take(copy, "safety_checker") | {key: torch.ones(1)}
    _as_it_is(copy / "safety_checker", "safety_checker", tensors)
    if key.startswith("logit"):
        load("safety_checker", copy)
    else:
        with pytest.raises(ExportError, match=rf"1 unknown \({key}\)"):
            load("safety_checker", copy)


def test_the_library_does_not_load_the_oldest_attention_either(copy):
    tensors = {
        name: t[:, :, None, None].clone() if ".to_" in name and t.ndim == 2 else t
        for name, t in _take(copy, "vae").items()
    }
    _old_names(copy / "vae", "vae", tensors)
    with quiet(), pytest.raises(ValueError, match="expected shape"):
        AutoencoderKL.from_pretrained(copy / "vae")
    with pytest.raises(ExportError, match=r"8 not fitting .* diffusers does not load either"):
        load("vae", copy)


def test_what_is_merged_into_a_network_stays_out_of_its_file(copy):
    path = copy / "text_encoder" / FILES["text_encoder"]
    before = path.read_bytes()
    network = load_network(TextEncoder, copy)
    name = "encoder.layers.0.mlp.fc1"
    layer = LoraLayer(
        name=name,
        component="text_encoder",
        module=name,
        down=np.ones((1, 32), np.float32),
        up=np.ones((64, 1), np.float32),
        scaling=1.0,
    )
    lora = type("L", (), {"path": path, "scale": 1.0, "of": lambda self, component: [layer]})()
    merge(lora, "text_encoder", network.model)
    assert path.read_bytes() == before
    again = load_network(TextEncoder, copy).model.state_dict()
    changed = [k for k, t in network.model.state_dict().items() if not torch.equal(t, again[k])]
    assert len(changed) == 1


def test_networks_loaded_by_several_threads_are_whole(nano_checkpoint):
    """Diffusers' own loader patches torch for all of them, and leaves weights on ``meta``."""
    interval = sys.getswitchinterval()
    left, errors = [], []

    def work(first):
        try:
            for turn in range(8):
                network = load_network(NETWORKS[(first + turn) % 4], nano_checkpoint)
                tensors = [*network.parameters(), *network.buffers()]
                left.extend(tensor for tensor in tensors if tensor.is_meta)
        except BaseException as error:
            errors.append(error)

    sys.setswitchinterval(1e-4)
    try:
        threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert left == []


def test_a_network_with_weights_on_meta_is_an_error(nano_checkpoint, monkeypatch):
    def half_loaded(model, tensors, where):
        name = next(iter(tensors))
        return {k: t.to("meta") if k == name else t for k, t in model.state_dict().items()}

    monkeypatch.setattr(pretrained, "fit", half_loaded)
    with pytest.raises(ExportError, match=r"vae: loaded without decoder\.conv_in\.bias"):
        load("vae", nano_checkpoint)


def test_no_network_is_loaded_by_its_library(nano_checkpoint, monkeypatch):
    """Their loaders use threads and ``meta``, and fill up what is missing."""

    def loaded(kind, *arguments, **options):
        raise AssertionError(f"{kind.__name__} is loaded by its library")

    for kind in (ModelMixin, PreTrainedModel):
        monkeypatch.setattr(kind, "from_pretrained", classmethod(loaded))
    pipeline = open_pipeline(nano_checkpoint)
    for name in ("unet", "vae", "text_encoder"):
        assert not any(p.is_meta for p in getattr(pipeline, name).parameters())
    for kind in NETWORKS:
        load_network(kind, nano_checkpoint)


def _named(*names, folders=("unet", "vae")):
    return {f"{folder}/{name}" for folder in folders for name in names}


STEM = "diffusion_pytorch_model"
SHARDS = [f"{STEM}-0000{n}-of-00002.safetensors" for n in (1, 2)]
HALVES = [f"{STEM}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
TEXT = {"text_encoder/model.safetensors", "safety_checker/model.safetensors"}
LISTINGS = {
    "plain": _named(f"{STEM}.safetensors") | TEXT,
    "with pickles": _named(f"{STEM}.safetensors", f"{STEM}.bin")
    | TEXT
    | {"text_encoder/pytorch_model.bin", "safety_checker/pytorch_model.bin"},
    "pickles": _named(f"{STEM}.bin")
    | {"text_encoder/pytorch_model.bin", "safety_checker/pytorch_model.bin"},
    "variants": _named(
        f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors"
    )
    | TEXT
    | {"text_encoder/model.fp16.safetensors"},
    "sharded": _named(*SHARDS, f"{STEM}.safetensors.index.json") | TEXT,
    "sharded variant": _named(
        *SHARDS, f"{STEM}.safetensors.index.json", *HALVES, f"{STEM}.safetensors.index.fp16.json"
    )
    | TEXT,
}


@pytest.mark.parametrize(
    ("name", "variant"),
    [(n, None) for n in LISTINGS] + [(n, "fp16") for n in LISTINGS if "variant" in n],
)
def test_files_are_those_that_diffusers_would_download(name, variant):
    files = LISTINGS[name]
    names = [f"v1-{n}" for n in ("4.ckpt", "4.safetensors")]
    listing = files | {*names, "unet/config.json", "unet/model.onnx", "text_encoder/flax.msgpack"}
    folders = ["unet", "vae", "text_encoder", "safety_checker"]
    patterns = _get_ignore_patterns(
        [],
        folders,
        listing,
        use_safetensors=True,
        allow_pickle=True,
        use_onnx=None,
        is_onnx=False,
        use_flashpack=False,
        variant=variant,
    )
    expected, _ = variant_compatible_siblings(listing, variant, patterns)
    assert set(weight_files(listing, variant=variant)) == {f for f in expected if f in files}


def test_half_is_taken_only_where_nothing_else_is():
    half = {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert choose(half, "unet") == choose(half, "unet", "ema") == list(half)
    assert choose(half | {"unet/diffusion_pytorch_model.bin"}, "unet") == [
        "unet/diffusion_pytorch_model.bin"
    ]
    assert choose({"unet/diffusion_pytorch_model.ema.safetensors"}, "unet") == []


def test_a_single_file_or_shards_as_the_library_prefers(copy):
    """An index comes first for diffusers, and last for transformers."""
    for subfolder in ("unet", "text_encoder"):
        tensors = _take(copy, subfolder)
        _sharded(copy / subfolder, subfolder, {k: t + 1 for k, t in tensors.items()})
        _as_it_is(copy / subfolder, subfolder, tensors)
        with quiet():
            expected = CLASSES[subfolder].from_pretrained(copy / subfolder).state_dict()
            found = load(subfolder, copy).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert len(files_of(copy, subfolder)) == (3 if subfolder == "unet" else 1)
