"""Pictures of one batch on the GPU, each at a step of its own."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.engines.errors import NonFiniteError, RequestError
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.initial_latents import begin
from bksdm.runtime.sampling import Denoising, Watch

from .test_session import hole, picture

SLOTS, SIDE = 3, (8, 8)
SAMPLERS = ("pndm", "euler-a", "dpm++2m-karras", "heun", "ddim", "lcm", "ddpm")


def job_of(model, **options):
    inputs = {name: options.pop(name) for name in ("image", "mask") if name in options}
    options = {"prompt": "a", "num_inference_steps": 3, "seed": 0, "sampler": "ddim", **options}
    return begin(model.request(GenerationConfig(**options), **inputs), model._encoder)


def any_job(model, generator):
    """Return one with steps, sampler, guidance, image, mask and images by chance."""
    pick = lambda *values: values[generator.integers(len(values))]  # noqa: E731
    inputs = pick({}, {}, {"image": picture()}, {"image": picture(), "mask": hole()})
    return job_of(
        model,
        **inputs,
        prompt=pick("a lighthouse", "a cat"),
        negative_prompt=pick("", "fog"),
        seed=int(generator.integers(1000)),
        num_inference_steps=int(generator.integers(2, 6)),
        sampler=str(pick(*SAMPLERS)),
        guidance_scale=pick(1.0, 3.0, 7.5),
        guidance_rescale=pick(0.0, 0.5),
        guidance_interval=pick(None, (0.0, 0.5), (0.4, 1.0)),
        num_images_per_prompt=int(pick(1, 1, 2)),
        strength=0.8 if inputs else None,
    )


class Turns:
    """Jobs that share a session; each turn is a launch."""

    def __init__(self, model, slots=SLOTS, guided=True):
        self.executor = model.executor
        self.session = self.executor.session(slots, guided, SIDE)

    def join(self, job, **how):
        return self.session.join(self.executor.text(job, {}), job, **how)

    def drawn(self, job):
        """Return what a job alone draws, and the latents of it."""
        trajectory = self.join(job)
        while not trajectory.done:
            self.session.launch()
        return self.left(trajectory)

    def left(self, trajectory):
        found = trajectory.end(), trajectory.latents()
        trajectory.leave()
        return found


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_does_not_depend_on_what_runs_beside_it(load, built, device, seed):
    model = load(built)
    generator = np.random.default_rng(seed)
    turns = Turns(model)
    jobs = [any_job(model, generator) for _ in range(8)]
    alone = [turns.drawn(job) for job in jobs]
    # Some of them are given up after a step or two, and some stay when they are done.
    given_up = generator.integers(1, 12, len(jobs))
    stays = generator.integers(0, 3, len(jobs))
    waiting, under_way, drawn = list(range(len(jobs))), {}, {}
    device.counts.clear()
    while waiting or under_way:
        for number in list(waiting):
            if turns.session.room(jobs[number].images) and generator.random() < 0.7:
                waiting.remove(number)
                under_way[number] = turns.join(jobs[number])
        turns.session.launch()
        for number, trajectory in list(under_way.items()):
            if trajectory.done and stays[number] == 0:
                drawn[number] = turns.left(under_way.pop(number))
            elif trajectory.done:
                stays[number] -= 1
            elif trajectory.launched == given_up[number]:
                under_way.pop(number).leave()
    assert turns.session.free == [0, 1, 2]
    assert len(drawn) > len(jobs) // 2
    assert device.counts["graph launches"] < sum(len(job.table) for job in jobs)
    for number, found in drawn.items():
        np.testing.assert_array_equal(found[0], alone[number][0])
        np.testing.assert_array_equal(found[1], alone[number][1])


def test_it_is_that_of_a_whole_batch(load, built):
    """As one call of a model makes it, which has slots for its own pictures only."""
    model = load(built)
    turns = Turns(model)
    for options in ({}, {"guidance_scale": 1.0}, {"num_images_per_prompt": 2}):
        job = job_of(model, sampler="euler-a", guidance_rescale=0.5, **options)
        beside = turns.join(job_of(model, num_inference_steps=9, seed=8))
        pixels, latents = turns.drawn(job)
        np.testing.assert_array_equal(latents, model.executor.denoise(job, Watch(), {}))
        np.testing.assert_array_equal(pixels, model.executor(job, Watch(), {}))
        beside.leave()


def test_a_join_allocates_nothing_and_waits_for_nothing(load, built, device):
    model = load(built)
    turns = Turns(model)
    one = job_of(model, sampler="euler-a", **{"image": picture(), "mask": hole()})
    for _ in range(2):
        device.counts.clear()
        trajectories = [turns.join(one) for _ in range(SLOTS)]
        assert turns.session.free == []
        assert device.counts["synchronisations"] == 0
        while not trajectories[0].done:
            turns.session.launch()
        for trajectory in trajectories:
            turns.left(trajectory)
    assert device.counts["allocations"] == 0
    # Ids, what is known with the noise, the control block; start, and two rows of the text.
    copies = 3 + 1 + 2
    # Pixels with the control block, and latents.
    assert device.counts["copies"] == SLOTS * (copies + 2 + 1)
    assert device.counts["synchronisations"] == SLOTS * 2


def test_two_kinds_of_step_share_a_launch(load, built, device, unet_rows):
    rows, note = unet_rows
    model = load(built, note)
    turns = Turns(model)
    plain = job_of(model, guidance_scale=1.0)
    rescaled = job_of(model, guidance_rescale=0.7, guidance_interval=(0.0, 0.4))
    for _ in range(2):
        rows.clear()
        trajectories = [turns.join(plain), turns.join(rescaled)]
        while not all(trajectory.done for trajectory in trajectories):
            turns.session.launch()
        for trajectory in trajectories:
            turns.left(trajectory)
    assert rows == [2 * SLOTS, 2 * SLOTS, SLOTS]


def test_what_does_not_fit_is_refused(load, built):
    model = load(built)
    turns = Turns(model)
    pair, one = (job_of(model, num_images_per_prompt=n) for n in (2, 1))
    first, second, third = (turns.join(one) for _ in range(3))
    with pytest.raises(RequestError, match="no 1 free slots"):
        turns.join(one)
    first.leave()
    third.leave()
    assert turns.session.free == [0, 2]
    with pytest.raises(RequestError, match="no 2 free slots beside each other"):
        turns.join(pair)
    second.leave()
    assert turns.join(pair).slots == range(2)
    with pytest.raises(RequestError, match="needs a session that has room for both halves"):
        Turns(model, guided=False).join(one)


def test_a_job_that_is_given_up_goes_no_further(load, built):
    model = load(built)
    turns = Turns(model)
    first, second = (turns.join(job_of(model, num_inference_steps=5)) for _ in range(2))
    turns.session.launch()
    first.leave()
    place = turns.session.latents_of(first.slots)
    before = turns.session.fetch([place])
    turns.session.launch()
    np.testing.assert_array_equal(turns.session.fetch([place]), before)
    assert (second.latents() != before).any()


def test_a_job_that_cannot_begin_leaves_the_others_as_they_are(load, built, monkeypatch):
    model = load(built)
    turns = Turns(model)
    job, other = job_of(model), job_of(model, guidance_rescale=0.5)
    expected = turns.drawn(job)
    trajectory = turns.join(job)
    turns.session.launch()

    def fails(form, decode):
        raise RuntimeError("planned")

    with monkeypatch.context() as patch:
        patch.setattr(turns.session._evaluations, "record", fails)
        with pytest.raises(RuntimeError, match="planned"):
            turns.join(other)
    assert turns.session.free == [1, 2]
    while not trajectory.done:
        turns.session.launch()
    for found, wanted in zip(turns.left(trajectory), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_bad_value_is_the_error_of_its_own_picture(load, built):
    calls = []

    def spoil(name, values):
        if name == "unet":
            calls.append(name)
            if len(calls) == 2:
                values["out_sample"][SLOTS + 1].reshape(-1)[5] = np.inf
        return values

    model = load(built, spoil)
    turns = Turns(model)
    job = job_of(model)
    calls.extend(["unet"] * 2)
    expected = turns.drawn(job)
    calls.clear()
    trajectories = [turns.join(job) for _ in range(SLOTS)]
    while not trajectories[0].done:
        turns.session.launch()
    with pytest.raises(NonFiniteError, match="noise prediction of step 2:"):
        trajectories[1].end()
    for trajectory in (trajectories[0], trajectories[2]):
        np.testing.assert_array_equal(trajectory.end(), expected[0])


def test_a_watcher_sees_the_steps_of_its_own_job(load, built):
    model = load(built)
    turns = Turns(model)
    job, seen = job_of(model, num_images_per_prompt=2, sampler="euler-a"), []
    for beside in (False, True):
        if beside:
            turns.join(job_of(model, num_inference_steps=9, seed=4))
            turns.session.launch()
        trajectory = turns.join(job, watched=True, counted=True)
        steps, kept = [], []
        watch = Watch(lambda step, s=steps, k=kept: s.append((step.latents, k.append(step))))
        denoising = Denoising(job, trajectory, watch)
        while not denoising.done:
            turns.session.launch()
            denoising.advance(None)
            steps[-1] = steps[-1][0], kept[-1].denoised
        assert trajectory.evaluated == len(job.table)
        seen.append(steps)
        # Until another job takes the place, whatever others do.
        turns.session.launch()
        assert kept[-1].moved.latents.shape == (2, 4, *SIDE)
        trajectory.leave()
        turns.join(job).leave()
        with pytest.raises(RequestError, match="step 3 have been overwritten"):
            _ = kept[-1].moved.noise_prediction
    np.testing.assert_array_equal(*seen)
