"""A UNet cut in two, and the steps in which only one part of it runs."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.protocol import GraphEdit
from bksdm.engines.registry import open_engine
from bksdm.engines.rewrite.feature_reuse import DEEP_FEATURES, keep_shallow, show_deep_features
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.feature_reuse import LEVELS, ReusedFeatures
from bksdm.runtime.pipeline import TextToImage


@pytest.fixture(scope="module", params=["nano onnxruntime", "emoji onnxruntime", "emoji openvino"])
def parts(request):
    """The whole UNet as it is, with its deep features, and what follows them."""
    model, engine = request.param.split()
    if engine == "openvino":
        pytest.importorskip("openvino")
    bundle = EMOJI if model == "emoji" else request.getfixturevalue("nano_bundle")
    load = partial(
        open_engine, engine, bundle / "unet" / "model.onnx", threads=None, cache=None, side=8
    )
    return load(), *(load(edit=GraphEdit(edit.__name__, edit))
                     for edit in (show_deep_features, keep_shallow))  # fmt: skip


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


@pytest.mark.parametrize("size", [(1, 8, 8, 77), (2, 16, 8, 77), (3, 9, 12, 154)])
def test_both_parts_together_are_the_whole(parts, size):
    plain, whole, shallow = parts
    feeds = feeds_of(plain, *size)
    expected = plain(feeds)["out_sample"]
    outputs = whole(feeds)
    assert_near(outputs["out_sample"], expected)
    found = shallow({**feeds, DEEP_FEATURES: outputs[DEEP_FEATURES]})["out_sample"]
    assert_near(found, expected)


def test_the_shallow_part_is_small(parts):
    """It neither needs the deep layers nor keeps their weights."""
    bundle = Bundle.open(EMOJI)
    graph = onnx.load(bundle.model("unet"), load_external_data=False)
    nodes, weights = len(graph.graph.node), len(graph.graph.initializer)
    keep_shallow(graph)
    assert len(graph.graph.node) < nodes / 4
    assert len(graph.graph.initializer) < weights / 4
    assert [value.name for value in graph.graph.input][-1] == DEEP_FEATURES


class Stub:
    def __init__(self, name, calls):
        self._name, self._calls = name, calls
        self.inputs = ("sample", DEEP_FEATURES)

    def __call__(self, feeds):
        rows = len(feeds["sample"])
        self._calls.append((self._name, rows))
        features = np.arange(rows)[:, None]
        if self._name == "shallow":
            return {"out_sample": feeds[DEEP_FEATURES]}
        return {"out_sample": features, DEEP_FEATURES: features}


def run(every, rows):
    calls = []
    reused = ReusedFeatures(Stub("whole", calls), Stub("shallow", calls), every)
    outputs = [reused({"sample": np.zeros(count)}, index) for index, count in enumerate(rows)]
    return "".join(name[0] for name, _ in calls), outputs


@pytest.mark.parametrize(("every", "wanted"), [(1, "wwwwwww"), (2, "wswswsw"), (3, "wsswssw")])
def test_the_whole_runs_in_every_nth_evaluation(every, wanted):
    assert run(every, [2] * 7)[0] == wanted


def test_the_conditional_half_keeps_its_own_features():
    calls, outputs = run(5, [4, 4, 2, 2])
    assert calls == "wsss"
    np.testing.assert_array_equal(outputs[2], [[2], [3]])
    # Rows that the last whole run did not have need another.
    assert run(3, [4, 4, 4, 2, 2, 4, 4])[0] == "wsswsww"


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
    from bksdm.runtime.request import Request

    def interval(**arguments):
        guidance = Request.check(Bundle.open(EMOJI), "a", **arguments).guidance
        return guidance.start, guidance.end

    assert interval(fast=3) == (0.0, LEVELS[3].guided)
    assert interval(fast=2) == (0.0, 1.0)
    assert interval(fast=3, guidance_interval=(0.7, 1.0)) == (0.7, 1.0)


def test_what_cannot_be_is_refused(nano_bundle):
    model = TextToImage.load(nano_bundle)
    for level in (-1, 4, True, 1.5):
        with pytest.raises(RequestError, match="fast must be a whole number from 0 to 3"):
            model("a", fast=level)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["sample"], ["out_sample"])], "unet",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 4, "h", "w"])],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, None)],
    )  # fmt: skip
    plain = helper.make_model(graph)
    with pytest.raises(EngineError, match="joins no features"):
        keep_shallow(plain)
    before = plain.SerializeToString()
    show_deep_features(plain)
    assert plain.SerializeToString() == before
