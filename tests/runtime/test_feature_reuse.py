"""A UNet cut in two, and the steps in which only one part of it runs."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.registry import open_engine
from bksdm.engines.variants import DEEP, DEEP_FEATURES, SAMPLE_OF_ROW, SHALLOW
from bksdm.models import EMOJI
from bksdm.optimize.feature_reuse import keep_shallow, show_deep_features
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import FAST_LEVELS, GenerationConfig
from bksdm.runtime.guidance import Guidance
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.pipeline import ON_HOST, TextToImage
from bksdm.runtime.samplers import step_table
from bksdm.runtime.samplers.stable_diffusion import SCHEDULE

PARTS = ("nano onnxruntime", "emoji onnxruntime", "emoji openvino")
SIZES = ((1, 8, 8, 77), (2, 16, 8, 77), (3, 9, 12, 154))


@pytest.fixture(scope="module")
def parts(request):
    """The whole UNet as it is, with its deep features, and what follows them."""
    model, engine = request.param.split()
    if engine == "openvino":
        pytest.importorskip("openvino")
    bundle = EMOJI if model == "emoji" else request.getfixturevalue("nano_bundle")
    load = partial(
        open_engine, engine, bundle / "unet" / "model.onnx", threads=None, cache=None, side=8
    )
    return load(), load(variant=DEEP), load(variant=SHALLOW)


def feeds_of(engine, batch, height, width, tokens=77):
    generator = np.random.default_rng(0)
    wide = engine.inputs["encoder_hidden_states"].shape[2]
    return {
        "sample": generator.standard_normal((batch, 4, height, width), np.float32),
        "timestep": np.full(batch, 321, np.float32),
        "encoder_hidden_states": generator.standard_normal((batch, tokens, wide), np.float32),
    }


def assert_near(found, expected):
    """The same operators on the same numbers; only how kernels share them may differ."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("parts", "size"),
    [
        # OpenVINO compiles three networks for every size.
        pytest.param(
            parts,
            size,
            marks=pytest.mark.slow if parts == "emoji openvino" and size != SIZES[2] else (),
        )
        for parts in PARTS
        for size in SIZES
    ],
    indirect=["parts"],
)
def test_both_parts_together_are_the_whole(parts, size):
    plain, whole, shallow = parts
    feeds = feeds_of(plain, *size)
    rows = np.arange(size[0])
    expected = plain(feeds)["out_sample"]
    outputs = whole({**feeds, SAMPLE_OF_ROW: rows})
    assert_near(outputs["out_sample"], expected)
    reused = {**feeds, SAMPLE_OF_ROW: rows, DEEP_FEATURES: outputs[DEEP_FEATURES]}
    assert_near(shallow(reused)["out_sample"], expected)


@pytest.mark.parametrize("parts", PARTS, indirect=True)
def test_what_rows_share_is_computed_once(parts):
    """Two of three latents are in the batch twice, as with guidance, and one is not."""
    plain, whole, shallow = parts
    of_row = np.array([0, 1, 0, 2, 1])
    feeds = feeds_of(plain, len(of_row), 16, 16)
    feeds["timestep"] = np.array([10, 500, 10, 321, 500], np.float32)
    feeds["sample"] = feeds["sample"][of_row]
    given = np.array([0, 1, 3])
    shared = {**feeds, SAMPLE_OF_ROW: of_row}
    shared |= {name: feeds[name][given] for name in ("sample", "timestep")}
    expected, outputs = plain(feeds)["out_sample"], whole(shared)
    assert_near(outputs["out_sample"], expected)
    reused = {**shared, DEEP_FEATURES: outputs[DEEP_FEATURES]}
    assert_near(shallow(reused)["out_sample"], expected)


def test_the_shallow_part_is_small():
    """It neither needs the deep layers nor keeps their weights."""
    bundle = Bundle.open(EMOJI)
    graph = onnx.load(bundle.model("unet"), load_external_data=False)
    nodes, weights = len(graph.graph.node), len(graph.graph.initializer)
    keep_shallow(graph)
    assert len(graph.graph.node) < nodes / 4
    assert len(graph.graph.initializer) < weights / 4
    assert [value.name for value in graph.graph.input][-1] == DEEP_FEATURES


class Stub:
    """A UNet whose outputs and deep features are the number of the row."""

    def __init__(self, name, calls):
        self._name, self._calls = name, calls
        latents = TensorSpec(np.dtype(np.float32), ("batch", 4, "height", "width"))
        text = TensorSpec(latents.dtype, ("batch", "tokens", 8))
        self.inputs = {
            "sample": latents,
            "timestep": TensorSpec(latents.dtype, ("batch",)),
            "encoder_hidden_states": text,
            DEEP_FEATURES: latents,
        }
        if name == "whole":
            del self.inputs[DEEP_FEATURES]
        self.outputs = {"out_sample": latents, DEEP_FEATURES: latents}

    def __call__(self, feeds):
        rows = len(feeds["sample"])
        assert {len(array) for array in feeds.values()} == {rows}
        self._calls.append((self._name, rows))
        numbers = np.arange(rows, dtype=np.float32)[:, None, None, None]
        features = numbers * np.ones((rows, 1, 1, 1), np.float32)
        shown = feeds[DEEP_FEATURES] if self._name == "shallow" else features
        return {"out_sample": shown + 0 * feeds["sample"], DEEP_FEATURES: features}


def run(every, guidance, steps):
    calls, outputs = [], []
    predict = NoisePredictor(Stub("whole", calls), lambda: Stub("shallow", calls))
    latents = np.zeros((2, 4, 1, 1), np.float32)
    job = DenoisingJob(
        prompts=("a",),
        negative_prompts=("",),
        guidance=guidance,
        table=step_table(SCHEDULE, steps, "ddim"),
        latents=latents,
        noises=latents[:0, None],
        cache_interval=every,
    )
    embeddings = np.zeros((4, 77, 8), np.float32)
    denoising = predict.start(job, {"encoder_hidden_states": embeddings})
    while not denoising.done:
        (prediction,) = predict([denoising], {})
        outputs.append(prediction[:, 0, 0, 0].tolist())
        denoising.advance(prediction)
    return "".join(name[0] for name, _ in calls), outputs


@pytest.mark.parametrize(("every", "wanted"), [(1, "wwwwwww"), (2, "wswswsw"), (3, "wsswssw")])
def test_the_whole_runs_in_every_nth_evaluation(every, wanted):
    assert run(every, Guidance(7.5), 7)[0] == wanted


def test_the_conditional_half_keeps_its_own_features():
    # Guided in the first half: rows 2 and 3 of the whole UNet's are those of the prompt.
    calls, outputs = run(5, Guidance(2.0, 0.0, 0.0, 0.5), 4)
    assert calls == "wsss"
    assert outputs == [[4, 5], [4, 5], [2, 3], [2, 3]]
    # Rows that the last whole run did not have need another.
    assert run(3, Guidance(2.0, 0.0, 0.4, 1.0), 5)[0] == "wswws"


def psnr(found, expected):
    return 10 * np.log10(255**2 / np.mean((found.astype(float) - expected) ** 2))


def test_pictures_of_every_level():
    model, arguments = TextToImage.load(), {"num_inference_steps": 20, "seed": 3, "sampler": "ddim"}
    exact, *fast = (model("a green bottle", fast=level, **arguments) for level in range(4))
    np.testing.assert_array_equal(exact.pixels, model("a green bottle", **arguments).pixels)
    errors = [psnr(result.pixels, exact.pixels) for result in fast]
    # Nearly the same picture, and another one with each level; a different seed gives 10 dB.
    assert min(errors) > 18
    assert len({result.pixels.tobytes() for result in (exact, *fast)}) == 4
    assert all(result.steps == exact.steps for result in fast)


def test_the_last_level_shortens_guidance_unless_an_interval_is_given():
    def interval(**options):
        config = GenerationConfig("a", **options)
        return config.resolve(Bundle.open(EMOJI), ON_HOST).guidance_interval

    assert interval(fast=3) == (0.0, FAST_LEVELS[3].guided_until)
    assert interval(fast=2) == (0.0, 1.0)
    assert interval(fast=3, guidance_interval=(0.0, 1.0)) == (0.0, 1.0)
    assert interval(fast=3, guidance_interval=(0.7, 1.0)) == (0.7, 1.0)


def test_what_cannot_be_is_refused(nano_bundle):
    model = TextToImage.load(nano_bundle)
    for level in (-1, 4, True, 1.5):
        with pytest.raises(RequestError, match="fast must be a whole number from 0 to 3"):
            model("a", fast=level)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["sample"], ["out_sample"])],
        "unet",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 4, "h", "w"])],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, None)],
    )
    plain = helper.make_model(graph)
    with pytest.raises(EngineError, match="joins no features"):
        keep_shallow(plain)
    before = plain.SerializeToString()
    show_deep_features(plain)
    assert plain.SerializeToString() == before
