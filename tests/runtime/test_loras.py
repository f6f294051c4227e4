"""LoRAs that are loaded, switched and unloaded while a model runs."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from bksdm import EngineError, RequestError, TextToImage
from bksdm.engines.errors import LoraError
from bksdm.engines.registry import capabilities
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.lora.factors import adaptation_of
from bksdm.runtime.lora.file import read_lora
from bksdm.runtime.lora.loaded import Loras
from bksdm.runtime.lora.safetensors_file import parse_safetensors
from bksdm.runtime.lora.use import LoraUse, spellable
from bksdm.runtime.request import Request

from ..lora_files import random_lora

CALL = {"prompt": "a red apple", "num_inference_steps": 4, "seed": 3}
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(EMOJI)


@pytest.fixture(scope="module")
def files(bundle, tmp_path_factory):
    """Of attention, and of attention and the text encoder."""
    folder = tmp_path_factory.mktemp("loras")
    kind, both = r"(to|self_attn)\S*[qkv](_proj)?$", ("unet", "text_encoder")
    return [
        random_lora(bundle, folder / "ink.safetensors", 1, kind),
        random_lora(bundle, folder / "cat.safetensors", 2, kind, components=both),
    ]


@pytest.fixture
def model(files):
    """With both, neither active."""
    with TextToImage.load(threads=1) as model:
        for file in files:
            model.use_lora(model.loras.read(file))
        yield model


def test_twenty_switches_and_back(model):
    plain = model(**CALL).pixels
    alone = {name: model(loras=[name], **CALL).pixels for name in ("ink", "cat")}
    assert not np.array_equal(alone["ink"], alone["cat"])
    for number in range(20):
        name = ("ink", "cat")[number % 2]
        model.set_adapters(name)
        result = model(**CALL)
        assert np.array_equal(result.pixels, alone[name])
        (use,) = result.config.loras
        assert use == LoraUse(name, 1.0, model.loras.loaded[name].lora.sha256)
        assert np.array_equal(model(loras={}, **CALL).pixels, plain)
    model.unload_lora("ink")
    assert model.get_list_adapters() == {"unet": ["cat"], "text_encoder": ["cat"]}
    model.unload_lora_weights()
    assert np.array_equal(model(**CALL).pixels, plain)
    with pytest.raises(RequestError, match="no LoRA is loaded as 'ink'; loaded: none is"):
        model(loras=["ink"], **CALL)


def test_a_result_says_what_draws_it_again(model):
    first = model(loras={"ink": 0.5, "cat": -0.2}, **CALL)
    config = GenerationConfig.from_dict(first.config.to_dict())
    assert config == first.config
    assert np.array_equal(model.generate(model.request(config)).pixels, first.pixels)
    changed = [LoraUse(use.name, use.scale, "0" * 64) for use in config.loras]
    with pytest.raises(RequestError, match=r"'ink' is loaded from .*ink.safetensors, another file"):
        model(loras=changed, **CALL)


def test_a_call_keeps_what_it_began_with(model, files):
    expected = model(loras=["cat"], fast=1, **CALL).pixels
    under_way, unloaded, found = threading.Event(), threading.Event(), []

    def step(step):
        under_way.set()
        assert unloaded.wait(60)

    def draw():
        found.append(model(loras=["cat"], fast=1, on_step=step, **CALL).pixels)

    thread = threading.Thread(target=draw)
    thread.start()
    assert under_way.wait(60)
    model.unload_lora_weights()
    # Another one of the same name.
    model.load_lora(files[0], "cat", 3.0)
    unloaded.set()
    thread.join(60)
    assert np.array_equal(found[0], expected)
    assert not np.array_equal(model(fast=1, **CALL).pixels, expected)


@pytest.mark.parametrize("option", [{"fast": 2}, {"clip_skip": 1}, {"guidance_scale": 1.0}])
def test_beside_other_options(model, option):
    """A scale of 0 changes nothing but the order of sums, on every part of the networks."""
    call = {**CALL, **option, "output_type": "latent"}
    plain, none, some = (
        model(loras=uses, **call).images for uses in ({}, {"cat": 0.0}, {"cat": 1.0})
    )
    largest = np.abs(plain).max()
    assert np.abs(none - plain).max() < 2e-5 * largest
    assert np.abs(some - plain).max() > 1e-2 * largest


def test_a_float16_bundle(nano_bundle_fp16, tmp_path):
    """Its networks take the factors in float16."""
    bundle = Bundle.open(nano_bundle_fp16)
    path = random_lora(bundle, tmp_path / "x.safetensors", strength=0.2)
    with TextToImage.load(bundle, threads=1) as model:
        plain = model(**CALL, output_type="latent").images
        model.load_lora(path)
        none, some = (
            model(loras={"x": s}, **CALL, output_type="latent").images for s in (0.0, 1.0)
        )
    largest = np.abs(plain).max()
    assert np.abs(none - plain).max() < 2e-2 * largest < np.abs(some - plain).max()


def test_without_torch(files):
    code = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers', 'peft'): sys.modules[name] = None\n"
        "from bksdm import TextToImage\n"
        "model = TextToImage.load(threads=1)\n"
        "print(model.load_lora(sys.argv[1]), model('a', num_inference_steps=1).pixels.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, files[1]], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["cat", "(1,", "128,", "128,", "3)"], done.stderr


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", "float64", "float8_e5m2", "float8_e4m3fn", "int64"]
)
def test_types_are_read_as_torch_reads_them(tmp_path, dtype):
    from safetensors.torch import save

    kind = getattr(torch, dtype)
    if "float8" in dtype:
        values = torch.arange(256, dtype=torch.uint8).view(kind)
    else:
        values = (torch.randn(3, 5) * 1000).to(kind)
    content = save({"b": values, "a": values.clone()}, {"key": "value"})
    tensors, header = parse_safetensors(tmp_path, content)
    assert list(tensors) == ["a", "b"]
    assert header == {"key": "value"}
    np.testing.assert_array_equal(tensors["a"], values.float().numpy())


def test_factors_of_several_stand_beside_each_other(bundle, files):
    """Scales are in the second ones; layers that none changes are zeros of rank 1."""
    loras = Loras(bundle, capabilities("onnxruntime"))
    for file in files:
        loras.add(loras.read(file))
    from bksdm.engines.protocol import TensorSpec

    layer = LAYER.removeprefix("unet.")
    specs = {
        f"{layer}.lora_down": TensorSpec(np.dtype(np.float32), (48, "rank")),
        f"{layer}.lora_up": TensorSpec(np.dtype(np.float32), ("rank", 48)),
        "conv_in.lora_down": TensorSpec(np.dtype(np.float16), (9, "rank", 4)),
        "sample": TensorSpec(np.dtype(np.float32), ("batch", 4)),
    }
    adaptation, _ = loras.adapt([LoraUse("ink", 0.5), LoraUse("cat", 2.0)])
    down, up, other = adaptation.unet.feeds(specs).values()
    tensors = [load_file(file) for file in files]
    products = [t[f"{LAYER}.lora_B.weight"] @ t[f"{LAYER}.lora_A.weight"] for t in tensors]
    np.testing.assert_allclose((down @ up).T, 0.5 * products[0] + 2 * products[1], atol=2e-6)
    assert (other.shape, other.dtype, other.any()) == ((9, 1, 4), np.float16, False)
    again, _ = loras.adapt([LoraUse("ink", 0.5), LoraUse("cat", 2.0)])
    assert again is adaptation
    assert adaptation.text_encoder.key != adaptation.unet.key
    assert adaptation_of([]) == (None, None)


def _pair(layer=LAYER, size=48, **more):
    down, up = np.ones((2, size), np.float32), np.ones((size, 2), np.float32)
    return {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up, **more}


ONE = np.ones(1, np.float32)
REFUSED = {
    "architecture": (
        _pair(size=320),
        f"{LAYER} is for [320, 320], the unet has [48, 48]; a LoRA made for another architecture",
    ),
    "layer": (_pair("unet.mid_block.x"), "unet.mid_block.x: the unet has no such layer"),
    "embedding": (
        _pair("text_encoder.embeddings.token_embedding"),
        "the text_encoder has no such layer",
    ),
    "LoHa": ({f"{LAYER}.hada_w1_a": ONE}, "belongs to LoHa; only plain LoRA is supported"),
    "LoKr": ({f"{LAYER}.lokr_w1": ONE}, "belongs to LoKr"),
    "DoRA": (_pair(**{f"{LAYER}.dora_scale": ONE}), "belongs to DoRA"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_do_not_fit(bundle, tmp_path, case):
    tensors, named = REFUSED[case]
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    loras = Loras(bundle, capabilities("onnxruntime"))
    with pytest.raises(LoraError) as caught:
        loras.read(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert not loras.loaded


def test_what_else_is_refused(bundle, files, tmp_path):
    for name, told in (
        ("x.bin", "a pickle, which can hold code; save it as safetensors, or merge it"),
        ("x.safetensors", "no such file"),
    ):
        with pytest.raises(LoraError, match=told):
            read_lora(tmp_path / name)
    loras = Loras(bundle, capabilities("onnxruntime"))
    for name in ("a:b", "a,b", "<a>", "", " ", "a\n", 3, "x" * 101):
        with pytest.raises(RequestError, match="name must be "):
            loras.read(files[0], name)
    with pytest.raises(RequestError, match="scale must be finite"):
        loras.read(files[0], scale=float("nan"))
    loras.add(loras.read(files[0]))
    assert loras.read(files[0]).name == "ink-2"
    with pytest.raises(RequestError, match="already loaded as 'ink'"):
        loras.add(loras.read(files[1], "ink"))
    assert spellable("a,b:c\n") == "a_b_c_"
    for value, told in (
        (3, "names and scales"),
        ("ink", "names and scales"),
        ([3], "a name and a scale"),
        (["a", "a"], "twice"),
        ([f"x{k}" for k in range(33)], "may have 32 entries"),
        ({"a": "b"}, "must be a number"),
    ):
        with pytest.raises(RequestError, match=told):
            GenerationConfig("x", loras=value)
    with pytest.raises(RequestError, match="cross_attention_kwargs can only be"):
        TextToImage.load(threads=1)("x", cross_attention_kwargs={"gligen": 1})


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_engines_that_take_none(bundle, files, engine):
    able = capabilities(engine)
    with pytest.raises(EngineError, match=f"onnxruntime and openvino, not {engine}; merge it"):
        Loras(bundle, able).read(files[0])
    with pytest.raises(RequestError, match=f"loras is not for the engine {engine}"):
        Request.resolve(bundle, able, GenerationConfig("x", loras=["ink"]))
