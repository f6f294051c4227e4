"""All steps of a picture in one launch: a loop in a CUDA graph, on the driver of host memory.

CUDA takes no host functions there, which the networks of the tests are; so not on a GPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bksdm.engines.errors import NonFiniteError
from bksdm.runtime.generation_config import GenerationConfig

from .test_session import CASES, COMMON
from .test_slots import Turns, job_of


@pytest.fixture
def models(driver, load, built):
    """One that launches every step, and one that launches all of them."""
    return load(built), load(built, in_loops=True)


@pytest.mark.parametrize(
    ("case", "launches"),
    [("ddpm", 1), ("rescaled", 1), ("mask and noise", 1), ("interval", 3), ("everything", 2)],
)
def test_the_picture_is_the_same(models, device, case, launches):
    stepwise, model = models
    arguments = {**COMMON, **CASES[case]}
    expected = stepwise(**arguments)
    for _ in range(2):
        device.counts.clear()
        found = model(**arguments)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.steps == expected.steps
    encoded = "image" in arguments
    assert device.counts["graph launches"] == launches
    # The number of steps of each launch, and the check of the embeddings.
    assert device.counts["kernels"] == launches + 1
    # The text encoder; what is in a graph is not counted.
    assert device.counts["plans"] == 1 + encoded
    assert device.counts["synchronisations"] == 1 + encoded
    assert device.counts["allocations"] == 0


def test_latents_are_not_decoded(models, device):
    stepwise, model = models
    arguments = {**COMMON, "output_type": "latent"}
    expected = stepwise(**arguments).images
    for _ in range(2):
        device.counts.clear()
        np.testing.assert_array_equal(model(**arguments).images, expected)
    assert device.counts["graph launches"] == 1


def test_whoever_watches_sees_every_step(models, device):
    seen = []
    for model in models:
        steps = []
        device.counts.clear()
        model(on_step=lambda step, s=steps: s.append((step.latents, step.denoised)), **COMMON)
        assert device.counts["graph launches"] == len(steps) > 1
        seen.append(steps)
    np.testing.assert_array_equal(*seen)


def test_progress_is_told_of_every_step(models):
    _, model = models
    told = []
    request = model.request(GenerationConfig(prompt="a", num_inference_steps=4, seed=0))
    result = model.generate(request, progress=lambda *done: told.append(done))
    assert told[-1] == (result.steps, result.steps)


def test_jobs_beside_each_other_go_on_until_one_is_done(load, built, driver, device):
    model = load(built, in_loops=True)
    turns = Turns(model)
    jobs = [job_of(model, num_inference_steps=n, seed=n, sampler="euler-a") for n in (3, 7)]
    expected = [turns.drawn(job) for job in jobs]
    device.counts.clear()
    first, second = (turns.join(job) for job in jobs)
    assert turns.session.launch(2) == 2
    assert turns.session.launch(99) == 1
    found = [turns.left(first)]
    assert turns.session.launch(99) == 4
    found.append(turns.left(second))
    assert device.counts["graph launches"] == 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_a_unet_that_no_loop_takes_has_a_graph_for_a_step(models, driver, device):
    stepwise, model = models
    expected = stepwise(**COMMON)
    with (
        driver.strict(),
        pytest.warns(UserWarning, match="^the UNet cannot run in a loop of a CUDA graph .record"),
    ):
        model(**COMMON)
    device.counts.clear()
    np.testing.assert_array_equal(model(**COMMON).pixels, expected.pixels)
    assert device.counts["graph launches"] == expected.steps
    assert driver.recordings == 0


def test_a_unet_that_breaks_recordings_runs_piece_by_piece(models, driver, device):
    stepwise, model = models
    expected = stepwise(**COMMON).pixels
    device.engines[b"unet"].waits = True
    with pytest.warns(UserWarning, match="^the UNet cannot run in a .*CUDA graph") as warned:
        np.testing.assert_array_equal(model(**COMMON).pixels, expected)
    assert len(warned) == 2
    assert driver.recordings == 0
    device.counts.clear()
    np.testing.assert_array_equal(model(**COMMON).pixels, expected)
    assert device.counts["graph launches"] == 0


def test_a_decoder_that_no_graph_takes_runs_after_it(models, device):
    stepwise, model = models
    expected = stepwise(**COMMON).pixels
    device.engines[b"vae_decoder"].recordable = False
    with pytest.warns(UserWarning, match="^the VAE decoder cannot run in a CUDA graph .TensorRT"):
        model(**COMMON)
    device.counts.clear()
    np.testing.assert_array_equal(model(**COMMON).pixels, expected)
    assert device.counts["graph launches"] == 1
    assert device.counts["plans"] == 2


@pytest.mark.parametrize(
    ("network", "call", "message"),
    [("unet", 3, "noise prediction of step 3:"), ("vae_decoder", 1, "pixels of the VAE decoder")],
)
def test_not_a_number_is_named(load, built, driver, network, call, message):
    calls = []

    def spoil(name, values):
        calls.append(name)
        if name == network and calls.count(network) == call:
            next(iter(values.values())).reshape(-1)[3] = np.nan
        return values

    model = load(built, spoil, in_loops=True)
    calls.extend([network] * 100)
    model(**COMMON)
    calls.clear()
    with pytest.raises(NonFiniteError, match=message):
        model(**COMMON)
    model(**COMMON)


def test_another_thread_than_the_one_that_loaded_it_has_the_loop_too(models, device):
    """cuda.core has an object of the GPU for each thread."""
    _, looped = models
    device.counts.clear()
    with ThreadPoolExecutor(1) as other:
        pixels = other.submit(lambda: looped(**COMMON).pixels).result()
    assert device.counts["graph launches"] == 1
    assert pixels.std() > 1
