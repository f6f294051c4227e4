"""The pipeline with networks made here: what it feeds them, and when it stops."""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from bksdm.engines.errors import BksdmError, NonFiniteError, RequestError, SamplerError
from bksdm.engines.protocol import TensorSpec, validate_feeds
from bksdm.export.dummy_tokenizer import build_vocabulary, write_tokenizer
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generator import Generator
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.init_image import InitImage
from bksdm.runtime.noise import TorchCudaGenerator
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.pipeline import Cancelled, TextToImage
from bksdm.runtime.preview import Preview
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
        validate_feeds("stub", self.inputs, feeds)
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
        "_class_name": "PNDMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    }
    bundle = Bundle(tmp_path, scheduler, 4, 8, WIDTH, 0.5, 8)

    def make(text=None, noise=None, pixels=None):
        encoder = text or text_encoder()
        encode = PromptEncoder(tokenizer, lambda skipped: encoder)
        predict = NoisePredictor(noise or unet())
        executor = HostExecutor(encode, predict, pixels or vae_decoder(), bundle.scaling_factor)
        return TextToImage(bundle, executor)

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
        build(noise=noise)("x", num_inference_steps=10, on_step=stop_at_third)
    assert seen == [0, 1, 2]
    assert len(noise.calls) == 3
    assert caught.value.step.latents.shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("answer", "stops"),
    [
        (False, True),
        (np.False_, True),
        (np.array(False), True),
        (None, False),
        (True, False),
        (0, False),
        ({}, False),
        ("", False),
        (np.array(0), False),
        (np.array([]), False),
    ],
)
def test_false_of_any_kind_stops_and_nothing_else(build, answer, stops):
    """Callbacks of diffusers return a dictionary, which may be empty."""
    noise = unet()
    expected = pytest.raises(Cancelled) if stops else nullcontext()
    with expected:
        build(noise=noise)("x", num_inference_steps=3, on_step=lambda step: answer)
    # pndm repeats its second step.
    assert len(noise.calls) == (1 if stops else 4)


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
        "x", num_inference_steps=2, seed=1, on_step=lambda s: last.append(s.latents)
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
    assert set(seconds) == {"tokenize", "text_encoder", "unet", "loop", "vae_decoder", "to_uint8"}
    assert all(value >= 0 for value in seconds.values())


def picture(*size):
    return Image.new("RGB", size)


class Tensor:
    """A scalar of another array library."""

    ndim = 0

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


F = np.float32
SAME = {
    "guidance_scale": [
        3.0,
        F(3),
        np.float64(3),
        np.float16(3),
        np.array(3.0),
        np.array(3),
        3,
        np.int8(3),
        np.longdouble(3),
        Tensor(3.0),
        Fraction(3),
    ],
    "guidance_rescale": [0.5, F(0.5), np.array(0.5), np.float16(0.5), Tensor(0.5)],
    "guidance_interval": [(0.0, 0.5), [0, 0.5], np.array([0, 0.5]), (np.int64(0), np.array(0.5))],
    "num_inference_steps": [2, np.int64(2), np.uint8(2), np.array(2), Tensor(2)],
    "num_images_per_prompt": [2, np.int32(2), np.array(2)],
    "height": [72, np.int16(72), np.array(72)],
    "width": [72, np.uint64(72), np.array(72)],
    "seed": [7, np.int64(7), np.uint8(7), np.array(7), Tensor(7)],
    "eta": [0.5, F(0.5), np.array(0.5), Tensor(0.5)],
    "clip_skip": [None, 0, np.int64(0), np.array(0)],
    "fast": [0, np.int64(0), np.array(0)],
    "vae": ["full", np.str_("full"), np.array("full")],
    "prompt_weights": [True, np.True_, np.array(True), Tensor(True)],
    "long_prompt": [True, np.True_, np.array(True)],
    "prompt": ["a b", np.str_("a b"), np.array("a b"), ["a b"], ("a b",), np.array(["a b"])],
    "negative_prompt": ["c", np.str_("c"), np.array("c"), ["c"], np.array(["c"])],
    "sampler": ["ddim", np.str_("ddim"), np.array("ddim")],
}


@pytest.mark.parametrize("name", SAME)
def test_numbers_texts_and_truth_values_of_numpy_are_those_of_python(build, name):
    model = build()
    usual = {"prompt": "x", "num_inference_steps": 1, "seed": 1, "sampler": "ddim"}
    first, *others = (model(**{**usual, name: value}) for value in SAME[name])
    for other in others:
        np.testing.assert_array_equal(other.pixels, first.pixels)
        assert other.seed == first.seed
        assert type(other.seed) is int


LATENTS = np.zeros((1, 4, 8, 8), F)
WRONG = [
    *(
        {name: value}
        for value in ("much", None, [1.0], 1j, True, np.True_, np.array([1.0]), object)
        for name in ("guidance_scale", "guidance_rescale", "eta")
    ),
    *(
        {name: value}
        for value in ("2", 2.0, F(2), [2], True, np.True_, 0, -1, 10**30, 10**5000, 1j)
        for name in ("num_inference_steps", "num_images_per_prompt", "height", "width")
    ),
    *(
        {name: value}
        for value in (float("nan"), -0.1, 1.5, np.array(7), 10**400)
        for name in ("guidance_rescale", "eta")
    ),
    *(
        {name: value}
        for value in (1, "yes", None, np.array([True, False]), 0.0)
        for name in ("prompt_weights", "long_prompt")
    ),
    *(
        {name: value}
        for value in (5, b"x", Path("x"), [1], [["x"]], {"x"}, np.array([1]))
        for name in ("prompt", "negative_prompt")
    ),
    *({"guidance_scale": value} for value in (float("nan"), float("inf"), 1e39, 10**400, F("inf"))),
    *(
        {"guidance_interval": value}
        for value in (
            (0.8, 0.2),
            (0, 2),
            0.5,
            "0:1",
            (0.1,),
            (0, 0.5, 1),
            (float("nan"), 1),
            ("0", "1"),
        )
    ),
    *({"seed": value} for value in (1.5, "7", True, [1, 2], 2**64, -(2**63) - 1, [1.5], Path("7"))),
    *({"sampler": value} for value in (5, ["ddim"], b"ddim", "magic", "")),
    *({"clip_skip": value} for value in (-1, 1.0, "1", True, 10**9)),
    *({"fast": value} for value in (4, -1, "1", True, None)),
    *({"vae": value} for value in ("small", "", None, 1, True, ["full"])),
    *(
        {"latents": value}
        for value in (
            LATENTS.tolist(),
            LATENTS[0],
            LATENTS.astype(int),
            LATENTS * np.nan,
            LATENTS[..., :4],
            LATENTS.astype(np.float64) + 1e300,
            "x",
        )
    ),
    *({"image": value} for value in ("apple.png", [], b"x", np.zeros((8, 8, 3), np.uint8), [None])),
    *(
        {"timesteps": value}
        for value in ([], 5, "9,1", [1, 9], [9, 9], [9.5, 1], [9, -1], [10**9], [1000, 1], [True])
    ),
    *({"sigmas": value} for value in ([], 5.0, [5.0], [1.0, 5.0], [5.0, -1.0], [5.0, "0"])),
    *({"generator": value} for value in (5, "x", [], [None])),
    *(
        {"negative_prompt_embeds": value}
        for value in (LATENTS, "x", [], np.zeros((2, 77, WIDTH), F), np.zeros((1, 0, WIDTH), F))
    ),
    {"mask": picture(64, 64)},
    {"strength": 0.5},
    *({"on_step": value} for value in (5, "x", [])),
    {"prompt": []},
    {"prompt": ()},
    {"prompt": np.array([], str)},
    {"negative_prompt": []},
    {"prompt": "a\0b"},
]


@pytest.mark.parametrize("arguments", WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_a_wrong_argument_is_named_in_one_short_line(build, tmp_path, arguments):
    (tmp_path / "vae_encoder").mkdir()
    (tmp_path / "vae_encoder" / "model.onnx").touch()
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text('{"num_hidden_layers": 1}')
    (name,) = arguments
    with pytest.raises((RequestError, SamplerError)) as caught:
        build()(**{"prompt": "x", "num_inference_steps": 1, **arguments})
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert len(message) < (800 if name == "sampler" else 200)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"path": 5}, "path must be a folder's path, not 5"),
        ({"path": ""}, "path must be a folder's path, not ''"),
        ({"path": "nowhere"}, "nowhere: no such folder"),
        ({"engine": None}, "unknown engine None"),
        ({"engine": ["onnxruntime"]}, "unknown engine"),
        ({"engine": np.array(["onnxruntime"])}, "unknown engine"),
        ({"threads": 0}, "threads must be a whole number from 1 to 1024, not 0"),
        ({"threads": -1}, "threads must be a whole number from 1 to 1024, not -1"),
        ({"threads": 1.0}, "threads must be a whole number"),
        ({"threads": "2"}, "threads must be a whole number"),
        ({"threads": True}, "threads must be a whole number"),
        ({"threads": 10**6}, "threads must be a whole number from 1 to 1024"),
        ({"engine_cache": 5}, "engine_cache must be a folder's path"),
        ({"engine_cache": __file__}, f"engine_cache must be a folder's path; {__file__} is a file"),
        ({"engine_cache": f"{__file__}/x"}, f"engine_cache must be a folder's path; {__file__} is"),
        ({"safety_checker": "off"}, "safety_checker must be True or False, not 'off'"),
    ],
)
def test_what_cannot_be_loaded_is_named(arguments, named):
    with pytest.raises(BksdmError, match=re.escape(named)):
        TextToImage.load(**arguments)


def test_a_picture_that_cannot_be_read_any_more_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:1500])
    closed, cut = (Image.open(tmp_path / name) for name in ("x.png", "cut.png"))
    closed.close()
    for image in (closed, cut):
        with pytest.raises(RequestError, match="image cannot be read"):
            InitImage.read(image, None, None, None, 8)
        with pytest.raises(RequestError, match="mask cannot be read"):
            InitImage.read(picture(64, 64), image, None, None, 8)
    cut.close()


@pytest.mark.parametrize("latents", [None, LATENTS.tolist(), LATENTS[0], LATENTS[:, :3], "x"])
def test_what_cannot_be_decoded_is_named(build, latents):
    with pytest.raises(RequestError, match="latents must"):
        build().decode(latents)
    with pytest.raises(RequestError, match="latents must"):
        Preview(np.zeros((3, 4), F), np.zeros(3, F), 0.0)(latents)


@pytest.mark.parametrize(
    ("latents", "named"),
    [
        (LATENTS.astype(np.int8), "latents must be a numpy array of floats"),
        (LATENTS.astype(object), "latents must be a numpy array of floats"),
        (LATENTS * np.float32(np.nan), "latents hold NaN or infinity"),
        (np.zeros((1, 4, 1, 1025), np.float32), "latents: their width makes 8200 pixels; at most"),
    ],
)
def test_latents_of_no_picture_are_named(build, latents, named):
    with pytest.raises(RequestError, match=named):
        build().decode(latents)


def test_guidance_for_a_time_runs_half_the_batch_elsewhere(build):
    noise = unet()
    build(noise=noise)("x", num_inference_steps=5, sampler="ddim", guidance_interval=(0.2, 0.8))
    rows = [{len(array) for array in feeds.values()} for feeds in noise.calls]
    assert rows == [{1}, {2}, {2}, {2}, {1}]


def test_a_seed_means_whose_noise_is_asked_for(build):
    def drawn(**arguments):
        seen = []
        build()(
            "x",
            num_inference_steps=1,
            on_step=lambda step: seen.append(step.moved.previous),
            **arguments,
        )
        return seen[0]

    assert not np.array_equal(drawn(seed=3), drawn(seed=3, noise="cuda"))
    expected = TorchCudaGenerator(3).randn((1, 4, 8, 8))
    np.testing.assert_array_equal(drawn(seed=3, noise="cuda"), expected)
    np.testing.assert_array_equal(drawn(generator=Generator("cuda").manual_seed(3)), expected)
    narrow = TorchCudaGenerator(3, 256).randn((2, 4, 8, 8))
    arguments = {"noise": "cuda:256", "num_images_per_prompt": 2}
    np.testing.assert_array_equal(drawn(seed=3, **arguments), narrow)
    result = build()("x", num_inference_steps=1, generator=Generator("cuda").manual_seed(3))
    assert (result.config.seed, result.config.noise) == (3, "cuda")
    for refused in (
        {"noise": "gpu"},
        {"noise": "cuda:0"},
        {"noise": "cuda:255"},
        {"noise": "cuda", "generator": Generator()},
        {"generator": [Generator(), Generator("cuda")], "num_images_per_prompt": 2},
    ):
        with pytest.raises(RequestError, match=r"noise|one device"):
            build()("x", **refused)
