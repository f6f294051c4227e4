"""The whole way on the GPU, on a simulated one: same pictures, one wait, nothing allocated."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from bksdm.engines.errors import EngineError, NonFiniteError, RequestError
from bksdm.runtime.pipeline import Cancelled, TextToImage

from .conftest import RECIPE, unrecorded
from .driver import has_gpu


@pytest.fixture(scope="module")
def on_host(nano_bundle_fp16):
    return TextToImage.load(nano_bundle_fp16)


CASES = {
    "pndm": {"num_inference_steps": 10},
    "one step": {"num_inference_steps": 1},
    "no guidance": {"num_inference_steps": 4, "guidance_scale": 1.0},
    "three images": {"num_inference_steps": 3, "num_images_per_prompt": 3, "seed": [1, 2, 3]},
    "96x72": {"num_inference_steps": 3, "width": 96, "height": 72},
    "negative": {"num_inference_steps": 3, "negative_prompt": "blurry"},
    "euler": {"num_inference_steps": 5, "sampler": "euler"},
    "ddim": {"num_inference_steps": 5, "sampler": "ddim"},
}


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_those_of_the_cpu(load, built, on_host, case):
    model = load(built)
    arguments = {"seed": 5, **CASES[case]}
    expected = on_host("a lighthouse", **arguments).pixels.astype(int)
    # The second picture comes from the recorded step alone.
    for _ in range(2):
        found = model("a lighthouse", **arguments).pixels.astype(int)
        # The CPU rounds only what leaves a network to float16, the simulated GPU every tensor.
        difference = np.abs(found - expected)
        assert difference.max() <= 2
        assert (difference <= 1).mean() > 0.999


def test_a_picture_waits_once_and_allocates_nothing(load, built, device):
    model = load(built)
    model("a", num_inference_steps=4, seed=0)
    for steps, sampler, guidance in ((4, "pndm", 7.5), (25, "pndm", 3.0), (9, "euler", 5.0)):
        device.counts.clear()
        result = model(
            "b", num_inference_steps=steps, sampler=sampler, seed=1, guidance_scale=guidance
        )
        assert device.counts["synchronisations"] == 1
        assert device.counts["allocations"] == 0
        assert device.counts["graph launches"] == result.steps
        # Text encoder and VAE decoder; check of the embeddings, VAE input, pixels.
        assert device.counts["plans"] == 2
        assert device.counts["kernels"] == 3


def test_more_steps_than_there_is_room_for_allocate_once(load, built, on_host, device):
    model = load(built)
    model("a", num_inference_steps=2, seed=0, guidance_scale=1.0)
    device.counts.clear()
    arguments = {"num_inference_steps": 70, "sampler": "ddim", "seed": 3, "guidance_scale": 1.0}
    found = model("a", **arguments).pixels.astype(int)
    assert device.counts["allocations"] == 2
    device.counts.clear()
    model("a", **arguments)
    assert device.counts["allocations"] == 0
    assert np.abs(found - on_host("a", **arguments).pixels).max() <= 2


def test_the_graph_draws_what_its_parts_draw(load, built, device, monkeypatch):
    model = load(built)
    arguments = {"num_inference_steps": 6, "seed": 4}
    recorded = model("a lighthouse", **arguments).pixels
    (session,) = model.executor._sessions.values()
    monkeypatch.setattr(session._evaluations, "steps", unrecorded(session._evaluations))
    device.counts.clear()
    assert (model("a lighthouse", **arguments).pixels == recorded).all()
    assert device.counts["graph launches"] == 0


def test_compiled_kernels_are_kept_for_the_next_start(load, built, device, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("*.cache"))
    kept = folder / "engines" / RECIPE.name / "unet-sm89.cache"
    for content in (None, b"kernels", b"of another driver"):
        if content is not None:
            kept.write_bytes(content)
        load(folder)("a", num_inference_steps=1, seed=0)
        kernels = device.engines[b"unet"].kernels
        assert kernels.known == (content == b"kernels")
        assert kept.read_bytes() == kernels.serialize()
    assert not list(kept.parent.glob(".*"))


def test_kernels_of_a_later_kind_of_step_are_kept_too(load, built, device, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("*.cache"))
    kept = folder / "engines" / RECIPE.name / "unet-sm89.cache"
    model = load(folder)
    model("a", num_inference_steps=2, seed=0)
    before = kept.read_bytes()
    model("a", num_inference_steps=2, seed=0, guidance_interval=(0.0, 0.5))
    assert before != kept.read_bytes() == device.engines[b"unet"].kernels.serialize()


def test_old_sessions_free_their_memory(load, built, device):
    model = load(built)
    before = None
    for width in (64, 72, 80, 88, 96, 64, 72, 80):
        model("a", num_inference_steps=1, width=width, seed=0)
        if width == 96:
            before = len(device.live)
    assert len(device.live) == before


def test_a_callback_sees_the_latents_and_stops(load, built, on_host):
    model, seen, expected = load(built), [], []
    arguments = {"num_inference_steps": 4, "seed": 2}
    on_host("a", on_step=lambda step: expected.append(step.latents), **arguments)

    def stop(step):
        seen.append(step.latents)
        return len(seen) < 3

    with pytest.raises(Cancelled, match="step 3 of 5"):
        model("a", on_step=stop, **arguments)
    # Noise predictions 2e-3 of their norm apart, the difference of two of them times 7.5.
    np.testing.assert_allclose(seen, expected[:3], atol=0.05)
    assert len(model("a", num_inference_steps=2, seed=2).pixels) == 1


@pytest.mark.parametrize(
    ("network", "output", "call", "message"),
    [
        ("text_encoder", "last_hidden_state", 1, "embeddings of the text encoder"),
        ("unet", "out_sample", 1, "noise prediction of step 1:"),
        ("unet", "out_sample", 4, "noise prediction of step 4:"),
        ("vae_decoder", "sample", 1, "pixels of the VAE decoder"),
    ],
)
def test_not_a_number_is_named_by_stage_and_step(load, built, network, output, call, message):
    state = {"calls": 0, "armed": False}

    def change(name, values):
        if name == network and state["armed"]:
            state["calls"] += 1
            if state["calls"] == call:
                values[output].reshape(-1)[-1] = np.nan
        return values

    model = load(built, change)
    model("a", num_inference_steps=4, seed=0)
    state["armed"] = True
    with pytest.raises(NonFiniteError, match=message):
        model("a", num_inference_steps=4, seed=0)
    assert len(model("a", num_inference_steps=4, seed=0).pixels) == 1


def test_what_no_profile_covers_is_refused_with_what_was_built(load, built):
    model = load(built)
    for arguments in ({"width": 128}, {"height": 56}, {"num_images_per_prompt": 4}):
        with pytest.raises(RequestError, match=r"outside of what was built \(b1.1.3-64x64"):
            model("a", num_inference_steps=1, **arguments)


def _copied(built, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(built, folder)
    return folder, folder / "engines" / RECIPE.name


def test_stale_and_damaged_plans_are_refused(load, built, tmp_path):
    folder, plans = _copied(built, tmp_path)
    (plans / "unet.plan").write_bytes(b"unes")
    with pytest.raises(EngineError, match=r"unet.plan: damaged"):
        load(folder)("a", num_inference_steps=1)
    (plans / "unet.plan").unlink()
    with pytest.raises(EngineError, match=r"unet.plan: No such file"):
        load(folder)("a", num_inference_steps=1)
    record = json.loads((plans / "engine.json").read_text())
    record["plans"]["kernels-sm89"]["model"] = "0"
    (plans / "engine.json").write_text(json.dumps(record))
    with pytest.raises(EngineError, match="kernels-sm89 is stale"):
        load(folder)("a", num_inference_steps=1)
    graph = folder / "unet" / "model.onnx"
    proto = onnx.load(graph, load_external_data=False)
    proto.doc_string = "another"
    graph.write_bytes(proto.SerializeToString())
    with pytest.raises(EngineError, match="unet has changed"):
        load(folder)
    record["version"] = "9.9.8"
    (plans / "engine.json").write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"version is .9.9.8., wanted .9.9.9."):
        load(folder)


def test_plans_for_another_gpu_are_named(load, built, tmp_path):
    folder, plans = _copied(built, tmp_path)
    record = json.loads((plans / "engine.json").read_text())
    record["targets"] = ["sm120"]
    (plans / "engine.json").write_text(json.dumps(record))
    with pytest.raises(EngineError, match=f"nothing was built .* sm89 .built: .*{RECIPE.name}"):
        load(folder)


@pytest.mark.skipif(has_gpu(), reason="there is one")
def test_without_a_gpu_the_error_says_so(built):
    with pytest.raises(EngineError, match="no NVIDIA GPU or driver was found"):
        TextToImage.load(built, engine="tensorrt-rtx")


def test_threads_may_share_a_model(load, built):
    """Two of them the same buffers, and what another drew is decoded in between."""
    model = load(built)
    calls = [{"seed": n, "num_inference_steps": 2 + n, "width": 64 + 8 * (n % 2)} for n in range(4)]
    alone = [model("a", **arguments).pixels for arguments in calls]
    latents = [model("a", output_type="latent", **arguments).images for arguments in calls]

    def draw(number):
        return model("a", **calls[number]).pixels, model.decode(latents[number])

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, [*range(4)] * 3))
    for (pixels, decoded), expected in zip(found, alone * 3, strict=True):
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(decoded, expected)
