"""ControlNets of many jobs in one call, what is loaded for them, and what they take."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bksdm import GenerationConfig, RequestError, TextToImage
from bksdm.engines.backend import Capabilities
from bksdm.engines.lazy import LazyEngine
from bksdm.engines.variants import CONTROLLED, DEEP, HINT, HINTED
from bksdm.runtime import loading, memory
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.control import Control
from bksdm.runtime.memory import needed_bytes, require_memory

OFTEN = {"num_inference_steps": 4}


def smooth(seed):
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def opened(controlled, monkeypatch):
    """Return a model, and the networks that were loaded with the times that each ran."""
    runs = {}
    open_engine = loading.open_engine

    def counted(name, model, threads, cache, side, variant="", precision="float32"):
        engine = open_engine(name, model, threads, cache, side, variant, precision)
        key = f"{model.parent.name} {variant}".strip()
        runs[key] = 0

        class Counted:
            inputs, outputs = engine.inputs, engine.outputs

            def __call__(self, feeds):
                runs[key] += 1
                return engine(feeds)

        return Counted()

    monkeypatch.setattr(loading, "open_engine", counted)
    return TextToImage.load(controlled[2], threads=1), runs


def request(model, images=None, **options):
    config = GenerationConfig("a cat", **{**OFTEN, "seed": 1, **options})
    return model.request(config, control_image=images)


JOBS = (
    {"seed": 1},
    {"seed": 2, "images": smooth(1), "controlnet": "canny"},
    {"seed": 3, "images": smooth(2), "controlnet": "canny", "guess_mode": True},
    {
        "seed": 4,
        "images": smooth(3),
        "controlnet": "canny",
        "controlnet_conditioning_scale": 0.3,
        "control_guidance_start": 0.3,
        "num_images_per_prompt": 2,
    },
    {"seed": 5, "images": smooth(4), "controlnet": "depth", "guidance_scale": 1.0},
    {"seed": 6, "images": [smooth(5), smooth(6)], "controlnet": ("canny", "shuffle")},
    {
        "seed": 7,
        "images": smooth(7),
        "controlnet": "canny",
        "control_guidance_end": 0.5,
        "sampler": "heun",
    },
)


def test_a_picture_does_not_depend_on_what_runs_beside_it(opened):
    model, runs = opened
    executor = model.executor
    requests = [request(model, **job) for job in JOBS]

    def begin(each):
        seconds = {}
        return executor.start(model.begin(each, seconds), None, seconds)

    def drive(under_way):
        while left := [each for each in under_way if not each.done]:
            for each, told in zip(left, executor.predict(left, {}), strict=True):
                each.advance(told)
        return [each.trajectory.latents for each in under_way]

    alone = [drive([begin(each)])[0] for each in requests]
    calls, before = sum(runs.values()), dict(runs)
    together = drive([begin(each) for each in requests])
    for found, expected in zip(together, alone, strict=True):
        # Sums of a larger batch may be in another order.
        np.testing.assert_allclose(found, expected, atol=2e-5)
    # Those in which the same ControlNets act are one call.
    assert runs["controlnet_canny hinted"] - before["controlnet_canny hinted"] < 14
    assert sum(runs.values()) - calls < 0.7 * calls
    # Each has a picture of its own.
    assert len({array.tobytes() for array in alone}) == len(alone)


def test_what_is_not_needed_is_not_loaded(opened):
    model, runs = opened
    assert "unet deep" not in runs
    model.generate(request(model, smooth(1), controlnet="canny"))
    assert set(runs) >= {"unet controlled", "controlnet_canny hint", "controlnet_canny hinted"}
    assert not [name for name in runs if "depth" in name or name == "unet deep"]
    # Seen once for the five evaluations.
    assert (runs["controlnet_canny hint"], runs["controlnet_canny hinted"]) == (1, 5)
    controlled = runs["unet controlled"]
    model.generate(request(model))
    assert runs["unet deep"] == 5
    assert runs["unet controlled"] == controlled


def test_where_none_acts_there_is_no_call_of_it_and_the_unet_is_the_same(opened):
    model, runs = opened
    options = {"controlnet": "canny", "control_guidance_end": 0.5}
    model.generate(request(model, smooth(1), **options))
    assert runs["controlnet_canny hinted"] == 2
    assert runs["unet controlled"] == 5
    assert "unet deep" not in runs
    # What is added there are zeros: nothing else changes.
    nothing = request(model, smooth(1), controlnet="canny", controlnet_conditioning_scale=0.0)
    alone = model.generate(request(model))
    np.testing.assert_array_equal(model.generate(nothing).pixels, alone.pixels)


def test_of_pictures_that_are_alike_one_is_seen(opened):
    model, runs = opened
    model.generate(request(model, smooth(1), controlnet="canny", num_images_per_prompt=3))
    assert runs["controlnet_canny hint"] == 1


def test_the_time_is_told_by_stage(opened):
    model, _ = opened
    result = model.generate(request(model, smooth(1), controlnet="canny"))
    assert result.seconds["controlnet"] > 0
    assert result.seconds["loop"] >= 0
    assert "controlnet" not in model.generate(request(model)).seconds


@pytest.mark.parametrize("total", [1, 2, 5, 26, 50])
def test_evaluations_in_which_it_acts_are_diffusers_own(total):
    """``controlnet_keep`` of diffusers' pipelines, for every interval of twentieths."""
    parts = [k / 20 for k in range(21)]
    for start in parts:
        for end in parts:
            control = Control("canny", np.zeros((1, 3, 8, 8), np.float32), 1.0, start, end)
            keep = [1.0 - float(i / total < start or (i + 1) / total > end) for i in range(total)]
            assert [control.at(i, total) for i in range(total)] == [bool(k) for k in keep]


def test_an_engine_that_cannot_says_which_can(controlled):
    engine = Capabilities("plain", feature_reuse=True)
    config = GenerationConfig("a cat", controlnet="canny", seed=1)
    with pytest.raises(RequestError, match="not for the engine plain yet; use onnxruntime or open"):
        config.resolve(Bundle.open(controlled[2]), engine, control_size=(64, 64))


def test_scales_are_those_of_diffusers_pipelines(controlled):
    from bksdm.engines.registry import capabilities

    bundle, engine = Bundle.open(controlled[2]), capabilities("onnxruntime")
    config = GenerationConfig("a cat", controlnet="canny", seed=1)
    size = {"control_size": (64, 64)}
    found = [
        config.resolve(bundle, engine, **size),
        config.resolve(bundle, engine, (64, 64), **size),
        config.resolve(bundle, engine, (64, 64), masked=True, **size),
    ]
    assert [each.controlnet_conditioning_scale for each in found] == [1.0, 0.8, 0.5]
    # What is carried out says itself what it is.
    assert found[0].resolve(bundle, engine, **size) == found[0]


def test_memory_counts_them(controlled, monkeypatch):
    bundle = Bundle.open(controlled[2])
    shape = (1, 4, 64, 64)
    plain = needed_bytes(bundle, shape, True)
    one = needed_bytes(bundle, shape, True, controlnets=["canny"], alone=False)
    two = needed_bytes(bundle, shape, True, controlnets=["canny", "depth"], alone=False)
    again = needed_bytes(bundle, shape, True, controlnets=["canny"])
    weights = [memory.GraphFile.read(bundle.model(f"controlnet_{n}")) for n in ("canny", "depth")]
    unet = memory.GraphFile.read(bundle.model("unet")).parameters
    assert two - one == 4 * weights[1].parameters
    assert one - plain >= 4 * weights[0].parameters
    assert again - one == 4 * unet
    # Only as much as two ControlNets take more is not free.
    control = [Control(name, np.zeros((1, 3, 8, 8), np.float32)) for name in ("canny", "depth")]
    monkeypatch.setattr(memory, "free_bytes", lambda: plain)
    require_memory(bundle, shape, True, "onnxruntime")
    with pytest.raises(RequestError, match="would take about"):
        require_memory(bundle, shape, True, "onnxruntime", control)


def test_a_build_prepares_their_networks(controlled, tmp_path):
    from bksdm.optimize.prepare_bundle import prepare_bundle

    told = []
    prepare_bundle(
        controlled[2], "onnxruntime", tmp_path, lambda network, *rest: told.append(network)
    )
    wanted = [f"unet {CONTROLLED}"]
    for name in ("canny", "depth", "shuffle"):
        wanted += [f"controlnet_{name} {HINT}", f"controlnet_{name} {HINTED}"]
    assert set(wanted) <= set(told)
    assert f"unet {DEEP}" in told
    # What lies there is taken: nothing is rewritten for a picture.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.onnx")}
    with TextToImage.load(controlled[2], engine_cache=tmp_path) as model:
        model("a cat", **OFTEN, control_image=smooth(1), controlnet="canny")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.onnx")} == before


def test_a_lazy_engine_loads_once():
    loaded = []

    class Engine:
        inputs, outputs = {"a": 1}, {"b": 2}

        def __call__(self, feeds):
            return {"b": feeds["a"]}

    engine = LazyEngine(lambda: loaded.append(1) or Engine())
    assert loaded == []
    assert (engine.inputs, engine.outputs, engine({"a": 3})) == ({"a": 1}, {"b": 2}, {"b": 3})
    assert loaded == [1]
