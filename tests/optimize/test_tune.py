"""Tuning: what is measured, stored, used, and when it no longer holds."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest

from bksdm.cli import main as bksdm
from bksdm.engines import backend, onnxruntime, registry
from bksdm.engines.errors import EngineError, RequestError
from bksdm.optimize import tune, tuned
from bksdm.optimize.budget import Budget
from bksdm.optimize.compose import choose_forms
from bksdm.optimize.feeds import network_feeds
from bksdm.optimize.graph import load_graph
from bksdm.optimize.rules import MadeFor, Timing
from bksdm.optimize.tiles import D4, F2, F4
from bksdm.optimize.tuned import Tuned, read_tuned, tuned_folder, write_tuned
from bksdm.optimize.tuning import tune_bundle
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.graph_file import GraphFile
from tests.optimize.test_rewrite import conv_model

SMALLEST = Timing(32, 32, 4, False, 3.0, (1.0, 2.0))


@pytest.fixture
def bundle(nano_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(nano_bundle, folder)
    shutil.rmtree(folder / "engines", ignore_errors=True)
    return folder


@pytest.fixture
def opened(monkeypatch):
    """Record which engine is made, and what for."""
    made = []
    real = registry.make_engine

    def make(name, model, threads, cache, made_for, variant="", precision="float32"):
        made.append((model.parent.name, name, made_for))
        return real(name, model, threads, cache, made_for, variant, precision)

    monkeypatch.setattr(registry, "make_engine", make)
    return made


def store(bundle, **seconds):
    """Write measurements of the UNet."""
    model = bundle / "unet" / "model.onnx"
    made_for = MadeFor(8, (SMALLEST,))
    found = {name: Tuned(taken, made_for) for name, taken in seconds.items()}
    return write_tuned(
        bundle / "engines", {"unet": model}, {"unet": found}, {"threads": 1}, registry.version_of
    )


class Stopwatch:
    """A clock that engines move: each run takes what its graph is worth."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def stopwatch(monkeypatch):
    """Let Winograd's forms take 0.5 and 0.25 of a direct convolution, in graphs of one."""
    watch = Stopwatch()
    real = onnxruntime.OnnxRuntimeEngine.__call__

    def run(self, feeds):
        watch.now += len(self.outputs) * self.cost
        return real(self, feeds)

    def make(name, model, threads, cache, made_for, variant="", precision="float32"):
        engine = onnxruntime.OnnxRuntimeEngine(model, threads, cache, made_for)
        proto = load_graph(model)
        # What transforms filters tells the form.
        used = {node.input[0] for node in proto.graph.node if node.op_type == "Gemm"}
        points = {w.dims[0] for w in proto.graph.initializer if w.name in used}
        forms, _ = choose_forms(proto, onnxruntime.RULES, made_for)
        # A network is the faster the more of it is rewritten.
        cost = {0: 1.0, F2.points: 0.5, F4.points: 0.25, D4.points: 0.25}
        engine.cost = cost[max(points, default=0)] / (1 + len(forms))
        return engine

    monkeypatch.setattr(onnxruntime.OnnxRuntimeEngine, "__call__", run)
    monkeypatch.setattr(tune, "make_engine", make)
    monkeypatch.setattr(tune, "LEAST_EXPECTED", 0.1)
    return watch


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_the_fastest_network_wins(nano_bundle, stopwatch, component):
    model = nano_bundle / component / "model.onnx"
    feeds = network_feeds(GraphFile.read(model).inputs, (8, 8))
    told = []
    found = tune.tune(
        model, ["onnxruntime"], 8, 1, feeds, lambda *step: told.append(step), stopwatch
    )
    made_for = found["onnxruntime"].made_for
    expected = {True: (0.25,), False: (0.5, 0.25)}
    assert {t.doubled for t in made_for.measured} == {True, False}
    for timing in made_for.measured:
        assert (timing.direct, timing.transformed) == (1, expected[timing.doubled])
    forms, _ = choose_forms(load_graph(model), onnxruntime.RULES, made_for)
    assert {choice.tile for choice in forms} == {F4, D4}
    assert found["onnxruntime"].seconds == pytest.approx(1 / (1 + len(forms)))
    assert all(0 <= done < total for _, done, total in told)
    assert {phase.partition(",")[0] for phase, _, _ in told} == {"onnxruntime"}


class Spent(Budget):
    """A budget that ends after so many questions, whoever asks."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    @property
    def over(self):
        self.left[0] -= 1
        return self.left[0] < 0

    def share(self, part):
        return self


def test_what_a_budget_does_not_cover_is_left_to_the_cost_model(nano_bundle, stopwatch):
    model = nano_bundle / "unet" / "model.onnx"
    feeds = network_feeds(GraphFile.read(model).inputs, (8, 8))
    told = []

    def tuned(questions):
        del told[:]
        budget = Spent([questions])
        found = tune.tune(
            model,
            *(["onnxruntime"], 8, 1, feeds, lambda *step: told.append(step), stopwatch),
            budget=budget,
        )["onnxruntime"]
        return found, Counter(phase for phase, _, _ in told)

    found, phases = tuned(0)
    # No measurement but of the network itself, once after a run that does not count.
    assert phases == {"onnxruntime": 2}
    assert found.made_for == MadeFor(8)
    every, _ = tuned(10**6)
    found, phases = tuned(1)
    assert phases == {"onnxruntime, convolutions": 1, "onnxruntime": 2}
    found, phases = tuned(3)
    assert phases["onnxruntime, convolutions"] == 3
    assert len(every.made_for.measured) > 3


def test_sizes_that_were_not_measured_are_as_the_cost_model_has_them():
    proto = conv_model(320, 320)
    rules = onnxruntime.RULES
    usual, _ = choose_forms(proto, rules, MadeFor(64))
    other = Timing(7, 7, 7, False, 1.0, (2.0,) * len(SMALLEST.transformed))
    found, _ = choose_forms(proto, rules, MadeFor(64, (other,)))
    assert usual
    assert [(c.output, c.tile) for c in found] == [(c.output, c.tile) for c in usual]
    assert choose_forms(proto, rules, MadeFor(64, ()))[0] == []


@pytest.mark.parametrize("part", [0.0, 0.25, 1.0])
def test_a_share_of_a_budget_is_of_what_is_left(stopwatch, part):
    budget = Budget(8.0, stopwatch)
    stopwatch.now += 4
    share = budget.share(part)
    assert share.over == (part == 0)
    stopwatch.now += 4 * part
    assert share.over
    assert budget.over == (part == 1)
    assert not Budget(clock=stopwatch).share(part).over


def test_a_budget_that_is_none_is_refused(bundle):
    for seconds in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match="budget must be a positive number of seconds"):
            tune_bundle(bundle, "onnxruntime", 1, budget=seconds)


def test_what_is_stored_is_read_back(bundle):
    folder = store(bundle, onnxruntime=2.0)
    assert folder == tuned_folder(bundle / "engines")
    model = bundle / "unet" / "model.onnx"
    found = {"onnxruntime": Tuned(2.0, MadeFor(8, (SMALLEST,)))}
    assert read_tuned(bundle / "engines", model, registry.version_of) == found
    record = json.loads((folder / "engine.json").read_text())
    assert record["machine"]["cores"] > 0
    assert record["settings"] == {"threads": 1}
    # The measured times choose: F(2x2) for what they cover, and nothing else.
    forms, _ = choose_forms(load_graph(model), onnxruntime.RULES, found["onnxruntime"].made_for)
    assert {choice.tile for choice in forms} == {F2}


def test_a_second_engine_is_added(bundle):
    store(bundle, onnxruntime=2.0)
    pytest.importorskip("openvino")
    store(bundle, openvino=3.0)
    found = read_tuned(bundle / "engines", bundle / "unet" / "model.onnx", registry.version_of)
    assert {name: entry.seconds for name, entry in found.items()} == {
        "onnxruntime": 2.0,
        "openvino": 3.0,
    }


def another_machine(bundle, monkeypatch):
    monkeypatch.setattr(tuned, "processor_name", lambda: "Abacus")


def another_version(bundle, monkeypatch):
    monkeypatch.setattr(backend, "installed_version", lambda package: "0.0")


def other_rules(bundle, monkeypatch):
    monkeypatch.setattr(tuned, "REWRITE", -1)


def changed_graph(bundle, monkeypatch):
    model = bundle / "unet" / "model.onnx"
    state, proto = model.stat(), onnx.load(model, load_external_data=False)
    proto.graph.name = proto.graph.name[::-1]
    model.write_bytes(proto.SerializeToString())
    os.utime(model, ns=(state.st_atime_ns, state.st_mtime_ns))


def damaged(bundle, monkeypatch):
    record = next(bundle.glob("engines/*/engine.json"))
    record.write_text(record.read_text().replace("8,", "[],", 1).replace('"side"', '"edge"'))


def no_json(bundle, monkeypatch):
    next(bundle.glob("engines/*/engine.json")).write_text("{")


@pytest.mark.parametrize(
    "change",
    [another_machine, another_version, other_rules, changed_graph, damaged, no_json],
    ids=lambda change: change.__name__,
)
def test_what_no_longer_holds_is_ignored(bundle, opened, monkeypatch, change):
    store(bundle, onnxruntime=2.0)
    change(bundle, monkeypatch)
    assert read_tuned(bundle / "engines", bundle / "unet" / "model.onnx", registry.version_of) == {}
    TextToImage.load(bundle, "auto", threads=1)
    assert [(name, made_for) for _, name, made_for in opened] == [("onnxruntime", MadeFor(8))] * 3


@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_an_engine_runs_as_it_was_tuned(bundle, opened, engine):
    plain = TextToImage.load(bundle, threads=1)
    store(bundle, onnxruntime=2.0)
    del opened[:]
    model = TextToImage.load(bundle, engine, threads=1)
    by_component = {component: made_for for component, _, made_for in opened}
    assert by_component["unet"].measured == (SMALLEST,)
    assert by_component["vae_decoder"] == MadeFor(8)
    results = [m("a red apple", num_inference_steps=1, seed=0).pixels for m in (plain, model)]
    # Another order of sums: rounding to 8 bits may fall to either side.
    assert np.abs(np.subtract(*results, dtype=int)).max() <= 1


@pytest.mark.parametrize("faster", ["onnxruntime", "openvino"])
def test_auto_takes_the_faster(bundle, opened, faster):
    pytest.importorskip("openvino")
    store(bundle, **{name: 1.0 if name == faster else 2.0 for name in registry.cpu_engines()})
    TextToImage.load(bundle, "auto", threads=1)
    assert {component: name for component, name, _ in opened}["unet"] == faster
    del opened[:]
    TextToImage.load(bundle, "openvino", threads=1)
    assert {name for _, name, _ in opened} == {"openvino"}


def test_the_command_tunes_lists_and_removes(bundle, capsys):
    command = ["build", str(bundle)]
    assert (
        bksdm([*command, "--engine", "onnxruntime", "--tune", "--threads", "1", "--budget", "5m"])
        == 0
    )
    *lines, folder = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, "onnxruntime"] for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder")
    ]
    assert folder == str(tuned_folder(bundle / "engines"))
    assert not list((bundle / "engines").rglob(".partial*"))
    assert set(
        read_tuned(bundle / "engines", bundle / "unet" / "model.onnx", registry.version_of)
    ) == {"onnxruntime"}
    assert bksdm(["info", str(bundle)]) == 0
    assert "tuned: onnxruntime" in capsys.readouterr().out
    assert bksdm([*command, "--list"]) == 0
    (name,) = capsys.readouterr().out.split()
    assert bksdm([*command, "--remove", name]) == 0
    assert list((bundle / "engines").iterdir()) == []


def test_an_interrupted_command_leaves_what_was_there(bundle, monkeypatch):
    store(bundle, onnxruntime=2.0)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "race", interrupt)
    assert bksdm(["build", str(bundle), "--engine", "onnxruntime", "--tune"]) == 130
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tune", "--engine", "tensorrt"], "tuning is for onnxruntime and openvino"),
        (["--tune", "--engine", "onnxruntime-cuda"], "tuning is for onnxruntime and openvino"),
        (["--tune", "--target", "sm89"], "--target is for GPUs"),
        (["--tune", "--batch", "2"], "--batch is for GPUs"),
        (["--tune", "--size", "64x64"], "--size is for GPUs"),
        (["--tune", "--threads", "0"], "--threads: must be a whole number from 1 to 1024"),
        (["--threads", "1"], "--threads needs --tune"),
        (["--budget", "60s"], "--budget needs --tune"),
        (["--tune", "--budget", "0"], "--budget: must be a time such as 60s or 5m, not '0'"),
        (["--tune", "--budget", "soon"], "must be a time such as 60s or 5m, not 'soon'"),
        (["--engine", "openvino", "--batch", "2"], "--batch is for plans"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(nano_bundle, capsys, arguments, named):
    assert bksdm(["build", str(nano_bundle), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert named in error
    assert len(error.splitlines()) == 1
    assert not list(nano_bundle.glob("engines/tuned-*"))


def test_float16_is_refused(nano_bundle_fp16, capsys):
    assert bksdm(["build", str(nano_bundle_fp16), "--tune"]) == 2
    assert "is float16" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(bundle):
    (bundle / "engines").write_text("in the way")
    with pytest.raises(EngineError, match="cannot write"):
        store(bundle, onnxruntime=1.0)
