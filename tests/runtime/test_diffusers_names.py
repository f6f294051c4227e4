"""What a program for diffusers asks for and does not get: every name says what to use instead."""

from __future__ import annotations

import inspect
import pydoc
import threading

import diffusers
import numpy as np
import pytest
import torch

from bksdm import EngineError, RequestError, TextToImage
from bksdm.engines.registry import capabilities
from bksdm.models import EMOJI
from bksdm.runtime.diffusers_names import CALL, LOADING, DiffusersNames, Instead

QUICK = {"num_inference_steps": 2, "seed": 0, "sampler": "ddim"}
OTHER_TYPE = "is float32, not float16; export it|bfloat16 is not for the engine onnxruntime"


@pytest.fixture(scope="module")
def model():
    return TextToImage.from_pretrained(EMOJI)


@pytest.mark.parametrize("name", CALL)
def test_an_argument_of_a_call_that_means_nothing_is_refused(model, name):
    with pytest.raises(RequestError, match=f"^{name} cannot be given: ") as caught:
        model("x", **{name: object()})
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize("name", LOADING)
def test_an_argument_of_loading_that_means_nothing_is_refused(name):
    with pytest.raises(RequestError, match=f"^{name} cannot be given: "):
        TextToImage.from_pretrained(EMOJI, **{name: "x"})


def test_what_is_loaded_is_what_is_asked_for(model):
    usual = dict.fromkeys(LOADING)
    found = TextToImage.from_pretrained(
        EMOJI, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True, **usual
    )
    assert (found("x", **QUICK).pixels == model("x", **QUICK).pixels).all()
    for dtype in ("float32", np.float32, torch.float32, "auto", None):
        TextToImage.from_pretrained(EMOJI, torch_dtype=dtype)
    for dtype in (torch.float16, "float16", np.float16, torch.bfloat16, torch.half):
        with pytest.raises(RequestError, match=OTHER_TYPE):
            TextToImage.from_pretrained(EMOJI, torch_dtype=dtype)
    for both in (
        {"torch_dtype": torch.float16, "dtype": "auto"},
        {"torch_dtype": "x", "dtype": None},
    ):
        with pytest.raises(RequestError, match="dtype and torch_dtype are one argument"):
            TextToImage.from_pretrained(EMOJI, **both)
    with pytest.raises(RequestError, match="safety_checker is the bundle's"):
        TextToImage.from_pretrained(EMOJI, safety_checker=object())
    with pytest.raises(RequestError, match="takes no 'colour'"):
        TextToImage.from_pretrained(EMOJI, colour="red")


def test_a_device_is_had_or_refused(model):
    for device in ("cpu", torch.device("cpu")):
        assert model.to(device) is model
    assert model.to("cpu", torch.float32) is model
    assert model.to(torch_device="cpu", torch_dtype=torch.float32) is model
    assert model.to("float") is model
    for half in ("half", torch.half, "double"):
        with pytest.raises(RequestError, match=r"this bundle is float32, not float(16|64)"):
            model.to(half)
    for device in ("cuda", "cuda:0", torch.device("cuda", 1), "mps", 0):
        with pytest.raises(RequestError, match=r"runs on cpu, not on .*engine='onnxruntime-cuda'"):
            model.to(device)
    for engine in ("onnxruntime-cuda", "tensorrt-rtx"):
        on_gpu = TextToImage(model.bundle, model.executor, engine=capabilities(engine))
        assert on_gpu.to("cuda") is on_gpu
        assert on_gpu.to("cuda:0") is on_gpu
        with pytest.raises(RequestError, match="runs on cuda, not on cpu"):
            on_gpu.to("cpu")
    second = TextToImage(model.bundle, model.executor, engine=capabilities("tensorrt"), gpu=1)
    assert second.to("cuda:1") is second
    with pytest.raises(RequestError, match="runs on cuda:1, not on cuda:0"):
        second.to("cuda:0")


def test_a_name_that_is_not_here_says_what_to_use(model):
    names = [name for name, value in vars(DiffusersNames).items() if isinstance(value, Instead)]
    assert len(names) > 8
    kind = diffusers.StableDiffusionPipeline
    for name in names:
        # The last one is of an earlier diffusers.
        parameters = (*inspect.signature(kind).parameters, "enable_vae_tiling")
        assert hasattr(kind, name) or name in parameters
        assert not hasattr(model, name)
        with pytest.raises(AttributeError, match=f"^{name}: ."):
            getattr(model, name)
        with pytest.raises(AttributeError, match=f"^{name}: ."):
            setattr(model, name, None)


def test_what_changes_no_picture_does_nothing(model):
    before = model("x", **QUICK).pixels
    model.enable_attention_slicing("max")
    model.disable_attention_slicing()
    model.enable_xformers_memory_efficient_attention()
    model.enable_vae_slicing()
    model.set_progress_bar_config(disable=True)
    assert (model("x", **QUICK).pixels == before).all()


def test_a_closed_model_makes_no_more_pictures():
    with TextToImage.load(EMOJI) as opened:
        opened("x", **QUICK)
    for use in (lambda: opened("x", **QUICK), lambda: opened.decode(np.zeros((1, 4, 8, 8), "f4"))):
        with pytest.raises(EngineError, match="this model is closed"):
            use()
    opened.close()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            {"callback_on_step_end_tensor_inputs": ["foo"]},
            "callback_on_step_end_tensor_inputs may hold latents, prompt_embeds, "
            "negative_prompt_embeds, not 'foo'",
        ),
        ({"output_type": "pt"}, "output_type must be one of pil, np, latent, not 'pt'; torch.from"),
        ({"output_type": 5}, "output_type must be one of"),
        ({"return_dict": "no"}, "return_dict must be True or False"),
        ({"seed": 1, "generator": torch.Generator()}, "seed and generator exclude each other"),
        ({"prompt_embeds": np.zeros((1, 77, 8), "f4")}, "either prompt or prompt_embeds"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"prompt": None, "prompt_embeds": np.zeros((1, 77, 8), "f4")}, "prompt_embeds must"),
        ({"negative_prompt_embeds": np.full((1, 77, 64), np.nan)}, "negative_prompt_embeds"),
        ({"negative_prompt": "a", "negative_prompt_embeds": np.zeros((1, 77, 8))}, "either neg"),
        ({"timesteps": [5, 3], "sigmas": [5.0, 0.0]}, "timesteps and sigmas exclude each other"),
        ({"on_step": print, "callback_on_step_end": print}, "on_step and callback"),
        ({"callback_on_step_end": 5}, "callback_on_step_end must be a function"),
        ({"callback_on_step_end": lambda *_: None}, "must return a dictionary, as in"),
        (
            {"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["mask"]},
            "callback_on_step_end_tensor_inputs may hold latents, prompt_embeds",
        ),
        (
            {"callback_on_step_end": lambda *_: {"latents": np.zeros((1, 4, 8, 9), "f4")}},
            "latents must have shape",
        ),
        ({"callback_on_step_end": lambda *_: {"latents": "x"}}, "latents must be a numpy array"),
        (
            {
                "callback_on_step_end": lambda p, i, t, k: {
                    "prompt_embeds": k["prompt_embeds"][:1]
                },
                "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
            },
            "prompt_embeds must have 2 rows at a guidance scale of 7.5, not 1",
        ),
    ],
)
def test_what_excludes_or_does_not_fit_is_named(model, arguments, named):
    with pytest.raises(RequestError, match=named):
        model(**{"prompt": "x", "num_inference_steps": 2, **arguments})


def test_a_loop_on_the_gpu_refuses_before_it_works(model):
    on_gpu = TextToImage(model.bundle, None, engine=capabilities("tensorrt-rtx"))
    with pytest.raises(RequestError, match=r"the engine tensorrt-rtx cannot; use on_step"):
        on_gpu("x", callback_on_step_end=lambda *_: {})


def test_another_thread_can_interrupt(model):
    started, seen = threading.Event(), []

    def look(step):
        seen.append(step.index)
        started.set()
        return stopped.wait(60)

    stopped = threading.Event()
    made = []
    arguments = {"seed": 0, "num_inference_steps": 50, "sampler": "ddim", "on_step": look}
    thread = threading.Thread(target=lambda: made.append(model("x", **arguments)))
    thread.start()
    assert started.wait(60)
    model._interrupt = True
    stopped.set()
    thread.join()
    assert made[0].steps == len(seen) == 1
    assert len(made[0].images) == 1
    assert model("x", **QUICK).steps == 2


def test_a_seed_is_recorded_only_where_it_says_everything(model):
    generator = torch.Generator().manual_seed(5)
    first, second = (model("x", num_inference_steps=1, generator=generator) for _ in range(2))
    assert first.seed == first.config.seed == 5
    assert second.seed is None
    assert (first.pixels == model("x", num_inference_steps=1, seed=5).pixels).all()
    assert (first.pixels != second.pixels).any()


def test_help_is_one_screen_for_each_method():
    for name, value in vars(TextToImage).items():
        if not name.startswith("_") or name == "__call__":
            shown = pydoc.plain(pydoc.render_doc(value)).splitlines()
            # As a terminal of 100 columns breaks them.
            assert sum(max(1, -(-len(line) // 100)) for line in shown) < 60, name
    assert len(pydoc.plain(pydoc.render_doc(TextToImage)).splitlines()) < 500
