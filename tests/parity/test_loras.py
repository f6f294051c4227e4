"""LoRAs at run time, beside diffusers' ``load_lora_weights`` and ``set_adapters``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from bksdm import RequestError, TextToImage
from bksdm.export.quiet import quiet
from bksdm.export.reference import open_pipeline

from ..lora_files import kohya, oldest

pytestmark = pytest.mark.filterwarnings("ignore")

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TRANSFORMER = [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
CONVOLUTIONS = [
    *("conv_in", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    *("time_emb_proj", "linear_1", "linear_2", "conv_out"),
]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
CALL = {"prompt": "a red apple", "num_inference_steps": 4, "output_type": "latent"}
# Of the latents' largest value, after 4 guided steps: both sides compute in float32, with sums in
# another order. Without a LoRA the same calls are 9e-7 apart, with all layers changed 2e-6.
CLOSE = 5e-6


def _pipeline(checkpoint, targets, seed=0, unet=None, text=None):
    """A pipeline with random adapters; both factors, unlike those that a training starts from."""
    pipeline = open_pipeline(checkpoint)
    unet, text = unet or {"lora_alpha": 6}, text or {"lora_alpha": 2}
    pipeline.unet.add_adapter(LoraConfig(r=4, target_modules=targets, **unet))
    pipeline.text_encoder.add_adapter(LoraConfig(r=3, target_modules=TEXT, **text))
    generator = torch.Generator().manual_seed(seed)
    for model in (pipeline.unet, pipeline.text_encoder):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return pipeline


def _write(pipeline, path, convert=dict, **headers):
    models = (pipeline.unet, pipeline.text_encoder)
    layers = [convert(get_peft_model_state_dict(model)) for model in models]
    StableDiffusionPipeline.save_lora_weights(
        path.parent, *layers, weight_name=path.name, **headers
    )
    return path


@pytest.fixture(scope="module")
def files(nano_checkpoint, tmp_path_factory):
    """LoRAs in all namings, by what is special about them."""
    folder = tmp_path_factory.mktemp("loras")
    attention = _pipeline(nano_checkpoint, ATTENTION)
    found = {"peft's names": _write(attention, folder / "peft.safetensors")}
    older = _write(attention, folder / "older.safetensors", convert_state_dict_to_diffusers)
    found["diffusers' names"] = older
    found["attention processors"] = folder / "oldest.safetensors"
    save_file(oldest(load_file(older)), found["attention processors"])
    everything = _pipeline(nano_checkpoint, TRANSFORMER + CONVOLUTIONS, 1)
    whole = _write(everything, folder / "whole.safetensors")
    found["all layers"] = whole
    alphas = {"unet": 1.0, "text_encoder": 2.0}
    found["Kohya's names"] = folder / "kohya.safetensors"
    save_file(kohya(load_file(whole), alphas), found["Kohya's names"])
    found["bfloat16"], found["float16"] = folder / "bf16.safetensors", folder / "fp16.safetensors"
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        save_file({k: t.to(dtype) for k, t in load_file(whole).items()}, found[name])
    patterns = {"conv_in": 1, "to_q": 2, r"up_blocks\.\d.*to_[qk]": 10}
    unet = {"lora_alpha": 6, "alpha_pattern": patterns}
    stated = _pipeline(nano_checkpoint, TRANSFORMER, 2, unet, {"lora_alpha": 5, "use_rslora": True})
    headers = _collate_lora_metadata({"unet": stated.unet, "text_encoder": stated.text_encoder})
    found["alphas in the header"] = _write(stated, folder / "header.safetensors", **headers)
    return found


KEPT = "kept-"


def _loaded(bundle, engine, files, namings):
    """A model with LoRAs that nobody uses, which hold its networks until the module ends."""
    model = TextToImage.load(bundle, engine, threads=1)
    for number, naming in enumerate(namings):
        model.use_lora(model.loras.read(files[naming], f"{KEPT}{number}"))
    return model


@pytest.fixture(scope="module")
def model(nano_bundle, files):
    namings = ("peft's names", "alphas in the header", "all layers")
    return _loaded(nano_bundle, "onnxruntime", files, namings)


@pytest.fixture(autouse=True)
def _unloaded(request):
    yield
    if "model" in request.fixturenames:
        model = request.getfixturevalue("model")
        model.unload_lora(*(name for name in model.loras.loaded if not name.startswith(KEPT)))


def _latents(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    with quiet():
        return pipeline(generator=torch.Generator().manual_seed(7), **CALL).images.numpy()


def _assert_close(found, expected):
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"apart: {apart:.1e}")
    assert apart < CLOSE


@pytest.fixture(scope="module")
def plain(nano_checkpoint):
    return _latents(open_pipeline(nano_checkpoint))


NAMINGS = (
    *("peft's names", "diffusers' names", "attention processors", "all layers", "Kohya's names"),
    *("bfloat16", "float16", "alphas in the header"),
)


@pytest.mark.parametrize("naming", NAMINGS)
def test_one_in_every_naming(nano_checkpoint, model, files, plain, naming):
    path = files[naming]
    pipeline = open_pipeline(nano_checkpoint)
    for pipe in (pipeline, model):
        with quiet():
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
            pipe.set_adapters("style", 0.7)
    expected = _latents(pipeline)
    assert np.abs(expected - plain).max() > 0.01 * np.abs(plain).max()
    _assert_close(model(seed=7, **CALL).images, expected)
    # As in diffusers, only as strong.
    pipeline.set_adapters("style", 0.35)
    _assert_close(
        model(seed=7, cross_attention_kwargs={"scale": 0.5}, **CALL).images, _latents(pipeline)
    )


@pytest.mark.parametrize("pair", [("peft's names", "Kohya's names"), ("all layers", "bfloat16")])
def test_two_with_weights(nano_checkpoint, model, files, pair):
    pipeline, weights = open_pipeline(nano_checkpoint), [0.8, -0.4]
    for pipe in (pipeline, model):
        with quiet():
            for name, path in zip("ab", (files[naming] for naming in pair), strict=True):
                pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
        assert pipe.get_active_adapters() == ["b"]
        for names in pipe.get_list_adapters().values():
            assert [name for name in names if not name.startswith(KEPT)] == ["a", "b"]
        pipe.set_adapters(["a", "b"], weights)
    _assert_close(model(seed=7, **CALL).images, _latents(pipeline))
    for pipe in (pipeline, model):
        pipe.delete_adapters("a")
    _assert_close(model(seed=7, **CALL).images, _latents(pipeline))


def test_openvino(nano_checkpoint, nano_bundle, files):
    path, weights = files["Kohya's names"], (0.7, -0.3)
    pipeline = open_pipeline(nano_checkpoint)
    model = TextToImage.load(nano_bundle, "openvino", threads=1)
    for pipe in (pipeline, model):
        with quiet():
            pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
    for weight in weights:
        for pipe in (pipeline, model):
            pipe.set_adapters("style", weight)
        _assert_close(model(seed=7, **CALL).images, _latents(pipeline))


def test_a_folder_of_peft(nano_checkpoint, model, tmp_path):
    """Diffusers does not load one; peft merges it."""
    pipeline = open_pipeline(nano_checkpoint)
    torch.manual_seed(0)
    fields = {"r": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"conv_in": 1}}
    targets = TRANSFORMER + CONVOLUTIONS
    config = LoraConfig(target_modules=targets, init_lora_weights=False, **fields)
    with quiet():
        adapted = get_peft_model(pipeline.unet, config)
        adapted.save_pretrained(tmp_path / "style")
        pipeline.unet = adapted.merge_and_unload()
    assert model.load_lora(tmp_path / "style") == "style"
    _assert_close(model(seed=7, **CALL).images, _latents(pipeline))


def test_what_diffusers_refuses_is_refused(nano_checkpoint, model, files):
    pipeline, path = open_pipeline(nano_checkpoint), files["peft's names"]
    for pipe in (pipeline, model):
        with quiet():
            pipe.load_lora_weights(path.parent, weight_name=path.name)
        assert pipe.get_active_adapters() == ["default_0"]
        with pytest.raises(ValueError, match="nope"):
            pipe.set_adapters("nope")
        with pytest.raises(ValueError, match="already"), quiet():
            pipe.load_lora_weights(path, adapter_name="default_0")
        with pytest.raises(ValueError, match="weight"):
            pipe.set_adapters(["default_0"], [1.0, 2.0])
    with pytest.raises(RequestError, match="takes a file or folder"):
        model.load_lora_weights({"a": 1})
