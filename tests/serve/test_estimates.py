"""What work is estimated at, and what a machine is measured for."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bksdm import GenerationConfig
from bksdm.engines.registry import capabilities
from bksdm.serve import measure as measuring
from bksdm.serve.costs import Costs
from bksdm.serve.measure import Wanted, measure
from bksdm.serve.plan import Plan
from bksdm.serve.ticket import Ticket

from .test_scheduler import Turns, random_request


def test_a_plan_has_the_rows_that_run(model, schedule):
    """The rows of UNet calls are those that were planned, evaluation by evaluation."""
    generator = np.random.default_rng(5)
    rows = []
    predict = model.executor.predict

    class Counted:
        def __call__(self, denoisings, seconds):
            (denoising,) = denoisings
            known = denoising.trajectory.deep_features
            each = denoising.job.images * (2 if denoising.guided else 1)
            whole = known is None or len(known) < each
            whole = whole or denoising.index % denoising.job.cache_interval == 0
            rows.append((bool(whole), each))
            return predict(denoisings, seconds)

        def __getattr__(self, name):
            return getattr(predict, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.executor, "predict", Counted())
        for _ in range(8):
            request = random_request(model, generator)
            plan = Plan.of(request)
            rows.clear()
            model.generate(request)
            assert [plan.rows(index) for index in range(plan.evaluations)] == rows


def test_costs_follow_what_is_measured():
    costs = Costs(100, 1.0, 5.0)
    assert costs.row(400) == 4.0
    assert costs.decode(50) == 2.5
    assert costs.row(100, whole=False) < 1
    for _ in range(50):
        costs.ran({(100, True): 2, (100, False): 2}, 2 * 2.0 + 2 * 0.5)
        costs.decoded(100, 7.0)
    # Of two kinds that only ever run together, the sum is known.
    assert costs.row(100) + costs.row(100, whole=False) == pytest.approx(2.5, rel=1e-3)
    assert costs.decode(100) == pytest.approx(7, rel=1e-3)
    assert costs.row(400) > 4.0


def test_work_is_estimated_as_it_turns_out(model, schedule):
    turns = Turns()
    scheduler = schedule(batch=2, observer=turns)
    config = GenerationConfig("a dog", num_inference_steps=40, seed=1)
    for _ in range(2):
        one = Ticket(model.request(config))
        scheduler.submit(one)
        one.wait(60)
    again = Ticket(model.request(config))
    expected, start = scheduler.estimate(again), time.perf_counter()
    scheduler.submit(again)
    again.wait(60)
    # Other programs of the machine slow one or the other.
    assert expected == pytest.approx(time.perf_counter() - start, rel=0.6)


@pytest.mark.parametrize(
    ("wanted", "engine", "processors", "expected"),
    [
        (Wanted(), "onnxruntime", 4, [(4, 1), (1, 4)]),
        (Wanted(), "onnxruntime", 1, [(1, 1)]),
        (Wanted(), "openvino", 4, [(1, 4)]),
        (Wanted(replicas=2), "onnxruntime", 4, [(2, 2)]),
        (Wanted(threads=1), "onnxruntime", 4, [(4, 1)]),
        (Wanted(replicas=3, threads=2), "onnxruntime", 4, [(3, 2)]),
        (Wanted(replicas=9), "onnxruntime", 4, [(9, 1)]),
    ],
)
def test_layouts_that_are_tried(wanted, engine, processors, expected):
    assert wanted.layouts(capabilities(engine), processors) == expected


def test_the_layout_with_the_shortest_time_is_taken(model, monkeypatch):
    # Seconds of a call by threads, and by pictures of it.
    monkeypatch.setattr(measuring, "usable_processors", lambda: 2)
    taken = {1: 1.0, 2: 1.6, 4: 3.1, 8: 6.2}
    monkeypatch.setattr(
        measuring, "_call_seconds", lambda found, pictures, together: found[0] * taken[pictures]
    )
    monkeypatch.setattr(measuring, "_decode_seconds", lambda found: 0.5)
    monkeypatch.setattr(measuring, "_latent_area", lambda found: 100)
    engine = capabilities("onnxruntime")
    for seconds, layout in (({1: 1.0, 2: 0.6}, (2, 1, 2)), ({1: 1.0, 2: 0.4}, (1, 2, 2))):
        found, chosen, costs = measure(
            lambda threads, seconds=seconds: (seconds[threads],), engine, Wanted()
        )
        assert (chosen.replicas, chosen.threads, chosen.batch) == layout
        assert costs.row(100) == pytest.approx(found[0] * 0.8 / 2)
