"""Requests join and leave between steps, and their pictures are those of TextToImage alone."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import pytest

from bksdm import GenerationConfig, NonFiniteError, TextToImage
from bksdm.serve.errors import EngineFailed, Refused, TooLate, Unavailable, Withdrawn
from bksdm.serve.observer import Observer
from bksdm.serve.ticket import Ticket
from bksdm.serve.waiting import QUANTUM
from tests.any_request import any_request

SAMPLERS = ("pndm", "euler-a", "dpm++2m-karras", "heun", "ddim", "lcm", "unipc")


def random_request(model, generator):
    """Return any request."""
    config, image, mask = any_request(
        generator,
        SAMPLERS,
        steps=(4, 14),
        fast=(0, 0, 1, 2, 3),
        prompts=("a red apple", "a dog", "a blue car"),
        negative_prompts=("", "green"),
    )
    return model.request(config, image=image, mask=mask)


def ticket(model, steps=4, priority=0, timeout=None, previews=frozenset(), **options):
    """Return a ticket of one small picture."""
    config = GenerationConfig(
        "a dog", num_inference_steps=steps, seed=1, height=64, width=64, **options
    )
    return Ticket(model.request(config), priority, timeout, previews)


@pytest.mark.parametrize("replicas", [1, 3])
def test_pictures_are_bit_equal_to_those_drawn_alone(model, schedule, replicas):
    generator = np.random.default_rng(replicas)
    requests = [random_request(model, generator) for _ in range(24)]
    scheduler = schedule(replicas, batch=3)
    tickets = [Ticket(request) for request in requests]

    def send(part):
        for one in part:
            scheduler.submit(one)
            time.sleep(0.005)

    senders = [threading.Thread(target=send, args=(tickets[i::4],)) for i in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    for request, sent in zip(requests, tickets, strict=True):
        result, alone = sent.wait(60), model.generate(request)
        np.testing.assert_array_equal(result.pixels, alone.pixels)
        assert result.config == alone.config
        assert result.steps == alone.steps


class Turns(Observer):
    """Keeps how many pictures each UNet turn had."""

    def __init__(self):
        self.pictures, self.codes, self.ends, self.restarts = [], [], [], 0

    def called(self, pictures, seconds):
        self.pictures.append(pictures)

    def refused(self, code):
        self.codes.append(code)

    def ended(self, ticket):
        self.ends.append(ticket)

    def restarted(self):
        self.restarts += 1


def test_requests_share_calls_and_none_waits_for_another_to_end(model, schedule):
    turns = Turns()
    scheduler = schedule(batch=4, observer=turns)
    long = ticket(model, steps=60)
    scheduler.submit(long)
    while long.step < 3:
        time.sleep(0.001)
    short = [ticket(model) for _ in range(3)]
    for one in short:
        scheduler.submit(one)
    for one in short:
        one.wait(30)
    assert not long.ended
    assert max(turns.pictures) == 4
    long.wait(30)
    assert len(turns.pictures) == len(long.request.table)


def test_a_short_request_waits_a_bounded_number_of_steps_for_longer_ones(model, schedule):
    scheduler = schedule(batch=2)
    long = [ticket(model, steps=100) for _ in range(3)]
    for one in long:
        scheduler.submit(one)
    while min(long[0].step, long[1].step) < 5:
        time.sleep(0.001)
    short = ticket(model)
    before = max(one.step for one in long)
    scheduler.submit(short)
    short.wait(30)
    after = max(one.step for one in long)
    assert after - before <= QUANTUM + len(short.request.table) + 3
    # One that gave its place away is none the worse.
    expected = model.generate(long[0].request).pixels
    for one in long:
        np.testing.assert_array_equal(one.wait(60).pixels, expected)


def test_higher_priority_takes_a_place_at_the_next_step(model, schedule):
    scheduler = schedule(batch=1)
    low = ticket(model, steps=200)
    scheduler.submit(low)
    while low.step < 2:
        time.sleep(0.001)
    high = ticket(model, steps=200, priority=1)
    scheduler.submit(high)
    while high.step < 2:
        time.sleep(0.001)
    assert low.state == "waiting"
    scheduler.cancel(high)
    low.wait(30)


def test_who_leaves_frees_the_place_within_a_step(model, schedule):
    turns = Turns()
    scheduler = schedule(batch=1, observer=turns)
    gone, waits = ticket(model, steps=500), ticket(model, steps=500)
    scheduler.submit(gone)
    scheduler.submit(waits)
    while gone.step < 2:
        time.sleep(0.001)
    scheduler.cancel(waits)
    with pytest.raises(Withdrawn):
        waits.wait(0)
    step = gone.step
    scheduler.cancel(gone)
    with pytest.raises(Withdrawn):
        gone.wait(5)
    assert gone.step <= step + 2
    while not scheduler.idle:
        time.sleep(0.001)
    assert scheduler.running == scheduler.waiting == 0
    assert turns.ends == [waits, gone]


def test_deadlines(model, schedule):
    turns = Turns()
    scheduler = schedule(batch=1, observer=turns)
    # 64 latent pixels take 5 ms a row to begin with: 500 steps take 5 s.
    with pytest.raises(TooLate, match=r"ready in [45]\.\d s, later than timeout") as refused:
        scheduler.submit(ticket(model, steps=500, timeout=1.0))
    assert refused.value.retry_after is None
    assert turns.codes == ["deadline"]
    before = [ticket(model, steps=200) for _ in range(4)]
    for one in before:
        scheduler.submit(one)
    while before[0].step < 1:
        time.sleep(0.001)
    with pytest.raises(TooLate) as refused:
        scheduler.submit(ticket(model, steps=100, timeout=3.0))
    # Three of 2 s go first, and it takes 1 s, of which 3 s are given; but costs are measured.
    assert 0 < refused.value.retry_after < 8
    for one in before:
        scheduler.cancel(one)
    late = ticket(model, steps=500, timeout=1000)
    scheduler.submit(late)
    while late.step < 2:
        time.sleep(0.001)
    late.deadline = time.monotonic()
    with pytest.raises(TooLate, match="not ready in time"):
        late.wait(5)


def test_the_queue_is_bounded_by_work_and_says_when_there_is_room(model, schedule):
    scheduler = schedule(batch=1, queue_seconds=1.5)
    running = ticket(model, steps=500)
    scheduler.submit(running)
    while running.step < 1:
        time.sleep(0.001)
    sent = (ticket(model, steps=25, priority=-1) for _ in range(1000))
    with pytest.raises(Refused) as refused:
        deque(map(scheduler.submit, sent), maxlen=0)
    assert scheduler.waiting >= 2
    assert scheduler.waiting_seconds <= 1.5
    after = refused.value.retry_after
    scheduler.cancel(running)
    start = time.monotonic()
    while True:
        try:
            scheduler.submit(ticket(model, steps=25))
            break
        except Refused:
            time.sleep(0.002)
    # The rate is measured, and on a machine that others use it changes meanwhile; benchmarks/
    # overload.py says how true it is on a quiet one.
    assert after / 3 - 0.5 <= time.monotonic() - start <= 3 * after + 0.5


def test_previews_are_shown_at_the_steps_that_are_asked_for(model, schedule):
    one = ticket(model, steps=6, sampler="ddim", previews=frozenset({2, 5}))
    schedule().submit(one)
    one.wait(30)
    assert [preview.step for preview in one.previews] == [2, 5]
    seen = {}
    model.generate(one.request, lambda step: seen.update({step.index + 1: step.denoised}))
    for preview in one.previews:
        np.testing.assert_array_equal(preview.pixels, model.preview(seen[preview.step]))


def test_interrupting_returns_the_picture_so_far(model, schedule):
    one = ticket(model, steps=500, previews=frozenset({3}))
    one.listen(lambda: one.previews and one.interrupt())
    schedule().submit(one)
    assert one.wait(30).steps == 3


class Failing(TextToImage):
    """A model whose UNet fails when it is told to."""

    def __init__(self, model, calls):
        super().__init__(model.bundle, model.executor, model._encoder, engine=model.capabilities)
        self.calls = calls

    def begin(self, *arguments, **named):
        job = super().begin(*arguments, **named)
        if self.calls and self.calls.pop():
            raise RuntimeError("no more memory on the device")
        return job


def test_an_engine_that_fails_answers_all_its_clients_and_restarts_once(model, schedule):
    turns, calls = Turns(), [True, False, True, False, False]
    scheduler = schedule(batch=4, load=lambda: Failing(model, calls), observer=turns)
    first, second, third = ticket(model, 500), ticket(model, 500), ticket(model)
    scheduler.submit(first)
    while first.step < 1:
        time.sleep(0.001)
    scheduler.submit(second)
    while second.step < 1:
        time.sleep(0.001)
    scheduler.submit(third)
    for failed in (first, second, third):
        with pytest.raises(EngineFailed, match="send it again"):
            failed.wait(10)
    again = ticket(model)
    scheduler.submit(again)
    again.wait(10)
    assert (turns.restarts, scheduler.failure, scheduler.alive) == (1, None, True)
    last = ticket(model)
    scheduler.submit(last)
    with pytest.raises(EngineFailed):
        last.wait(10)
    while scheduler.alive:
        time.sleep(0.001)
    with pytest.raises(Unavailable, match="restart the server"):
        scheduler.submit(ticket(model))
    assert turns.restarts == 1


def test_a_picture_of_nan_ends_for_itself(model, schedule, monkeypatch):
    scheduler = schedule(batch=3)
    bad, good = ticket(model, steps=40), ticket(model, steps=40)
    expected = model.generate(good.request).pixels
    original = model.begin

    def begin(request, seconds, noise=None):
        job = original(request, seconds, noise)
        if request is bad.request:
            job.latents[:] = np.nan
        return job

    monkeypatch.setattr(model, "begin", begin)
    for one in (good, bad):
        scheduler.submit(one)
    with pytest.raises(NonFiniteError, match="noise prediction of step 1"):
        bad.wait(10)
    np.testing.assert_array_equal(good.wait(10).pixels, expected)
    assert scheduler.failure is None


def test_a_scheduler_that_drains_ends_what_it_has_and_takes_no_more(model, schedule):
    scheduler = schedule(batch=1)
    tickets = [ticket(model, steps=10) for _ in range(3)]
    for one in tickets:
        scheduler.submit(one)
    assert scheduler.drain(30)
    for one in tickets:
        one.wait(0)
    with pytest.raises(Unavailable, match="stopping"):
        scheduler.submit(ticket(model))


def test_what_is_not_done_in_time_is_handed_back(model, schedule):
    scheduler = schedule(batch=1)
    tickets = [ticket(model, steps=500) for _ in range(2)]
    for one in tickets:
        scheduler.submit(one)
    assert not scheduler.drain(0.1)
    with pytest.raises(Unavailable):
        tickets[1].wait(0)
    with pytest.raises(Unavailable):
        tickets[0].wait(10)


def test_nobody_waits_for_an_engine_that_cannot_be_loaded_again(model, schedule):
    calls = [True]
    loads = iter([Failing(model, calls)])
    scheduler = schedule(batch=1, load=lambda: next(loads))
    tickets = [ticket(model) for _ in range(3)]
    for one in tickets:
        scheduler.submit(one)
    with pytest.raises(EngineFailed):
        tickets[0].wait(10)
    for one in tickets[1:]:
        with pytest.raises(Unavailable, match="StopIteration"):
            one.wait(10)
    assert scheduler.failure


def test_nothing_is_paused_where_another_replica_has_room(model, schedule):
    turns = Turns()
    scheduler = schedule(replicas=2, batch=2, observer=turns)
    long = [ticket(model, steps=60) for _ in range(3)]
    for one in long:
        scheduler.submit(one)
        while one.step < QUANTUM + 2:
            time.sleep(0.001)
    paused = []
    for one in long:
        one.listen(lambda one=one: paused.append(one) if one.state == "waiting" else None)
    short = ticket(model)
    scheduler.submit(short)
    short.wait(20)
    assert paused == []
    assert not all(one.ended for one in long)


def test_an_engine_that_runs_one_call_after_the_other(schedule):
    """OpenVINO: each replica has an engine of its own, and pictures are those of one alone."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    loaded = []

    def load():
        loaded.append(TextToImage.load(engine="openvino", threads=1))
        return loaded[-1]

    scheduler = schedule(replicas=2, batch=2, load=load)
    assert len(loaded) == 2
    tickets = [ticket(loaded[0], steps=6, sampler=name) for name in ("ddim", "euler-a", "pndm")]
    for one in tickets:
        scheduler.submit(one)
    for one in tickets:
        found, alone = one.wait(120).pixels, loaded[0].generate(one.request).pixels
        np.testing.assert_array_equal(found, alone)
