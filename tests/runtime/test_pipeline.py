"""The pipeline with networks made here: what it feeds them, and when it stops."""

from __future__ import annotations

import warnings
from types import MappingProxyType

import numpy as np
import pytest

from bksdm.engines.errors import NonFiniteError, RequestError, SamplerError
from bksdm.engines.protocol import TensorSpec, check_feeds
from bksdm.export.dummy_tokenizer import build_vocabulary, write_tokenizer
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.pipeline import Cancelled, TextToImage
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.tokenizer import Tokenizer, TruncationWarning

WIDTH = 8
FLOAT = np.dtype(np.float32)


class Network:
    """An engine whose output is ``compute(feeds)``; every call is kept."""

    def __init__(self, inputs, output, compute):
        self.inputs = MappingProxyType(inputs)
        self.outputs = MappingProxyType({output: TensorSpec(FLOAT, ("batch",))})
        self.calls = []
        self._output, self._compute = output, compute

    def __call__(self, feeds):
        check_feeds("stub", self.inputs, feeds)
        self.calls.append(feeds)
        return {self._output: self._compute(feeds)}


def text_encoder(compute=None):
    spec = {"input_ids": TensorSpec(np.dtype(np.int64), ("batch", 77))}
    mean = lambda feeds: np.repeat(feeds["input_ids"][..., None] / 500, WIDTH, 2).astype(FLOAT)  # noqa: E731
    return Network(spec, "last_hidden_state", compute or mean)


def unet(compute=None, timestep=TensorSpec(FLOAT, ("batch",))):  # noqa: B008
    spec = {
        "sample": TensorSpec(FLOAT, ("batch", 4, "height", "width")),
        "timestep": timestep,
        "encoder_hidden_states": TensorSpec(FLOAT, ("batch", 77, WIDTH)),
    }
    return Network(spec, "out_sample", compute or (lambda feeds: feeds["sample"] * FLOAT.type(0.1)))


def vae_decoder(compute=None):
    spec = {"latent_sample": TensorSpec(FLOAT, ("batch", 4, "height", "width"))}
    enlarge = lambda feeds: feeds["latent_sample"][:, :3].repeat(8, 2).repeat(8, 3)  # noqa: E731
    return Network(spec, "sample", compute or enlarge)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    write_tokenizer(folder, *build_vocabulary(514), 77)
    return Tokenizer.load(folder)


@pytest.fixture
def build(tokenizer, tmp_path):
    scheduler = {
        "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085,
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True,
        "set_alpha_to_one": False, "steps_offset": 1,
    }  # fmt: skip
    bundle = Bundle(tmp_path, scheduler, 4, 8, WIDTH, 0.5, 8)

    def make(text=None, noise=None, pixels=None):
        encoder = text or text_encoder()
        encode = PromptEncoder(tokenizer, lambda skipped: encoder)
        networks = (noise or unet(), pixels or vae_decoder())
        return TextToImage(bundle, HostExecutor(encode, *networks, bundle.scaling_factor))

    return make


def test_nan_in_the_embeddings_is_named(build):
    bad = text_encoder(lambda feeds: np.full((len(feeds["input_ids"]), 77, WIDTH), np.nan, FLOAT))
    with pytest.raises(NonFiniteError, match="embeddings of the text encoder"):
        build(text=bad)("x", num_inference_steps=2)


@pytest.mark.parametrize("step", [1, 3])
def test_infinity_in_a_noise_prediction_is_named_with_its_step(build, step):
    def compute(feeds):
        result = feeds["sample"].copy()
        if len(noise.calls) == step:
            result[0, 0, 0, 0] = np.inf
        return result

    noise = unet(compute)
    with pytest.raises(NonFiniteError, match=f"noise prediction of step {step}:"):
        build(noise=noise)("x", num_inference_steps=4)
    assert len(noise.calls) == step


def test_nan_in_the_pixels_is_named(build):
    bad = vae_decoder(lambda feeds: np.full((1, 3, 64, 64), np.nan, FLOAT))
    with pytest.raises(NonFiniteError, match="pixels of the VAE decoder"):
        build(pixels=bad)("x", num_inference_steps=1)


def test_a_callback_that_returns_false_stops_with_its_step(build):
    noise, seen = unet(), []

    def stop_at_third(step):
        seen.append(step.index)
        return len(seen) < 3

    with pytest.raises(Cancelled, match="step 3 of 11") as caught:
        build(noise=noise)("x", num_inference_steps=10, callback_on_step_end=stop_at_third)
    assert seen == [0, 1, 2]
    assert len(noise.calls) == 3
    assert caught.value.step.latents.shape == (1, 4, 8, 8)


def test_guidance_doubles_the_batch_and_only_above_one(build):
    for guidance, batch in ((0.0, 2), (1.0, 2), (1.01, 4), (7.5, 4)):
        noise = unet()
        build(noise=noise)(
            "x", num_inference_steps=1, guidance_scale=guidance, num_images_per_prompt=2
        )
        assert {len(feeds["sample"]) for feeds in noise.calls} == {batch}


def test_equal_prompts_are_encoded_once(build):
    text = text_encoder()
    model = build(text=text)
    model(["a", "b", "a"], num_inference_steps=1)
    assert [len(feeds["input_ids"]) for feeds in text.calls] == [3]  # "", "a" and "b"
    model(["b", "a"], negative_prompt="c", num_inference_steps=1)
    assert [len(feeds["input_ids"]) for feeds in text.calls] == [3, 1]


def test_the_unconditional_half_comes_first(build):
    text, noise = text_encoder(), unet()
    build(text=text, noise=noise)(["a", "b"], negative_prompt=["c", "d"], num_inference_steps=1)
    rows = text.calls[0]["input_ids"]
    states = noise.calls[0]["encoder_hidden_states"]
    # "c", "d", "a", "b" as they were encoded.
    np.testing.assert_array_equal(states[:, :, 0], (rows / 500).astype(FLOAT))


def test_a_timestep_of_any_documented_shape_is_fed(build):
    for shape, expected in (((), ()), (("batch",), (4,)), (("steps",), (1,)), ((1,), (1,))):
        noise = unet(timestep=TensorSpec(FLOAT, shape))
        build(noise=noise)("x", num_inference_steps=1, num_images_per_prompt=2)
        assert noise.calls[0]["timestep"].shape == expected
        assert (noise.calls[0]["timestep"] == 1).all()


def test_a_fractional_timestep_is_refused_where_the_unet_takes_whole_ones(build, tokenizer):
    model = build(noise=unet(timestep=TensorSpec(np.dtype(np.int64), ())))
    model("x", num_inference_steps=3)
    model.bundle.scheduler["timestep_spacing"] = "linspace"
    with pytest.raises(SamplerError, match="fractional"):
        model("x", num_inference_steps=3, sampler="euler")


def test_latents_are_divided_by_the_scaling_factor_before_the_decoder(build):
    pixels = vae_decoder()
    last = []
    build(pixels=pixels)(
        "x", num_inference_steps=2, seed=1, callback_on_step_end=lambda s: last.append(s.latents)
    )
    np.testing.assert_array_equal(pixels.calls[0]["latent_sample"], last[-1] / FLOAT.type(0.5))


def test_what_does_not_fit_into_77_tokens_is_reported(build):
    model = build()
    with pytest.warns(TruncationWarning, match="beyond 77 tokens: 'zz'"):
        model("a " * 75 + "zz", num_inference_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model("a " * 75, num_inference_steps=1)


def test_timings_name_every_stage(build):
    seconds = build()("x", num_inference_steps=2).seconds
    assert set(seconds) == {
        "tokenize", "text_encoder", "unet", "loop", "vae_decoder", "to_uint8"
    }  # fmt: skip
    assert all(value >= 0 for value in seconds.values())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"guidance_rescale": 1.5}, "guidance_rescale"),
        ({"guidance_rescale": float("nan")}, "guidance_rescale"),
        ({"guidance_rescale": "much"}, "guidance_rescale"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval"),
        ({"guidance_interval": (0, 2)}, "guidance_interval"),
        ({"guidance_interval": 0.5}, "guidance_interval"),
    ],
)
def test_bad_guidance_is_named(nano_bundle, arguments, named):
    with pytest.raises(RequestError, match=named):
        TextToImage.load(nano_bundle)("x", num_inference_steps=1, **arguments)


def test_guidance_for_a_time_runs_half_the_batch_elsewhere(nano_bundle, monkeypatch):
    model = TextToImage.load(nano_bundle)
    unet, rows = model._executor._unet, []

    def count(feeds):
        rows.append({len(array) for array in feeds.values()})
        return unet(feeds)

    count.inputs = unet.inputs
    monkeypatch.setattr(model._executor, "_unet", count)
    model("x", num_inference_steps=5, sampler="ddim", seed=0, guidance_interval=(0.2, 0.8))
    assert rows == [{1}, {2}, {2}, {2}, {1}]
