"""Jobs that share a UNet call, each at a step of its own."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from bksdm.engines.errors import RequestError
from bksdm.engines.protocol import TensorSpec, validate_feeds
from bksdm.engines.registry import open_engine
from bksdm.engines.variants import DEEP, SHALLOW
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.guidance import Guidance
from bksdm.runtime.initial_latents import begin
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.pipeline import ON_HOST
from bksdm.runtime.request import Request
from bksdm.runtime.samplers import step_table
from bksdm.runtime.samplers.stable_diffusion import SCHEDULE
from bksdm.runtime.sampling import Cancelled, Watch
from bksdm.runtime.vae_encoder import VaeEncoder
from tests.any_request import any_request

SAMPLERS = ("pndm", "euler-a", "dpm++2m-karras", "heun", "ddim", "lcm", "ddpm")


class Counted:
    """An engine that counts its calls."""

    def __init__(self, engine):
        self._engine, self.calls = engine, 0
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, feeds):
        self.calls += 1
        return self._engine(feeds)


@pytest.fixture(scope="module")
def model():
    """The built-in model's bundle, predictor and VAE encoder."""
    bundle = Bundle.open(EMOJI)
    load = partial(open_engine, "onnxruntime", threads=None, cache=None, side=8)
    graph = bundle.model("unet")
    unet = Counted(load(graph, variant=DEEP))
    predict = NoisePredictor(
        unet,
        partial(load, graph, variant=SHALLOW),
    )
    encoder = VaeEncoder(
        partial(load, bundle.model("vae_encoder")), bundle.scaling_factor, bundle.latent_channels
    )
    return bundle, predict, encoder, unet


def request(bundle, generator):
    """Return any request."""
    return Request.resolve(
        bundle, ON_HOST, *any_request(generator, SAMPLERS, steps=(3, 7), fast=(0, 0, 1, 2))
    )


def start(model, job, number, watch=None):
    bundle, predict, *_ = model
    rows = job.images * (2 if job.guidance else 1)
    generator = np.random.default_rng(number)
    embeddings = generator.standard_normal((rows, 77, bundle.cross_attention_dim), np.float32)
    return predict.start(job, {"encoder_hidden_states": embeddings}, watch)


def run(predict, denoisings, joins=None):
    """Drive them together; ``joins`` is after how many turns each of them comes in."""
    joins = joins or [0] * len(denoisings)
    turn = 0
    while not all(denoising.done for denoising in denoisings):
        under_way = [
            denoising
            for denoising, joined in zip(denoisings, joins, strict=True)
            if joined <= turn and not denoising.done
        ]
        for denoising, told in zip(under_way, predict(under_way, {}), strict=True):
            denoising.advance(told)
        turn += 1
    return [denoising.trajectory.latents for denoising in denoisings]


@pytest.mark.parametrize("seed", range(4))
def test_a_picture_does_not_depend_on_what_runs_beside_it(model, seed):
    bundle, predict, encoder, unet = model
    generator = np.random.default_rng(seed)
    jobs = [begin(request(bundle, generator), encoder) for _ in range(6)]
    before = unet.calls
    alone = [run(predict, [start(model, job, n)])[0] for n, job in enumerate(jobs)]
    calls_alone = unet.calls - before
    joins = generator.integers(0, 4, len(jobs)).tolist()
    together = run(predict, [start(model, job, n) for n, job in enumerate(jobs)], joins)
    assert unet.calls - before < 2 * calls_alone
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_job_that_is_cancelled_leaves_the_others_as_they_are(model):
    bundle, predict, encoder, _ = model
    job = begin(request(bundle, np.random.default_rng(1)), encoder)
    (expected,) = run(predict, [start(model, job, 0)])
    stopped = start(model, job, 1, Watch(lambda step: step.index < 1))
    denoisings = [start(model, job, 0), stopped]
    for _ in range(2):
        first, second = predict(denoisings, {})
        denoisings[0].advance(first)
        if denoisings[0].index == 2:
            with pytest.raises(Cancelled, match="after step 2 of"):
                stopped.advance(second)
        else:
            stopped.advance(second)
    assert stopped.index == 2
    np.testing.assert_array_equal(run(predict, denoisings[:1])[0], expected)


class Conditioned:
    """A UNet that is told one more thing, and answers with it."""

    def __init__(self):
        single = np.dtype(np.float32)
        latents = TensorSpec(single, ("batch", 4, "height", "width"))
        self.inputs = {
            "sample": latents,
            "timestep": TensorSpec(single, ("batch",)),
            "encoder_hidden_states": TensorSpec(single, ("batch", "tokens", 8)),
            "brightness": TensorSpec(np.dtype(np.float16), ("batch", 1)),
        }
        self.outputs = {"out_sample": latents}

    def __call__(self, feeds):
        validate_feeds("unet", self.inputs, feeds)
        told = feeds["brightness"].astype(np.float32)[..., None, None]
        return {"out_sample": np.zeros_like(feeds["sample"]) + told}


def test_any_other_input_of_the_unet_is_forwarded_by_name():
    latents = np.zeros((2, 4, 8, 8), np.float32)
    job = DenoisingJob(
        prompts=("a",),
        negative_prompts=("",),
        guidance=Guidance(2.0, 0.0, 0.0, 0.5),
        table=step_table(SCHEDULE, 2, "ddim"),
        latents=latents,
        noises=latents[:0, None],
    )
    predict = NoisePredictor(Conditioned())
    conditioning = {
        "encoder_hidden_states": np.zeros((4, 77, 8), np.float32),
        "brightness": np.array([[0], [1], [2], [4]], np.float32),
    }
    denoising = predict.start(job, conditioning)
    (guided,) = predict([denoising], {})
    # ε_uncond + 2 (ε_cond − ε_uncond) of 0 and 2, and of 1 and 4; then the prompt's half alone.
    np.testing.assert_array_equal(guided[:, 0, 0, 0], [4, 7])
    denoising.advance(guided)
    (alone,) = predict([denoising], {})
    np.testing.assert_array_equal(alone[:, 0, 0, 0], [2, 4])
    with pytest.raises(RequestError, match="brightness"):
        predict.start(job, {"encoder_hidden_states": conditioning["encoder_hidden_states"]})
