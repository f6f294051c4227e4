"""Ray Data: every picture is there once, and equal to what one process draws."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("ray.data", reason="ray is not installed: pip install '.[ray]'")

import ray
import ray.data

from bksdm import RequestError
from bksdm.batch.drawer import Drawer, Setup
from bksdm.batch.job import Job
from bksdm.batch.ray import Draw, draw_with_ray
from bksdm.models import EMOJI
from bksdm.runtime.generation_config import GenerationConfig


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def job(line, **options):
    small = {"height": 64, "width": 64, "num_inference_steps": 8, "seed": line}
    config = GenerationConfig("a dog", **{**small, **options})
    return Job(line, config, (config.images, 4, 8, 8), 8)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_workers_that_are_killed_lose_nothing(cluster, tmp_path):
    jobs = [job(line, num_images_per_prompt=1 + line % 2) for line in range(1, 13)]
    one = Drawer(Setup.of(tmp_path / "one", EMOJI, threads=1), "one")
    expected = {j.line: one.draw(j.line, j.config) for j in jobs}
    setup = Setup.of(f"file://{tmp_path}/ray", EMOJI, threads=1)
    killed, told = set(), []
    for outcome in draw_with_ray(setup, jobs, 2, 1):
        told.append(outcome)
        if len(killed) < 2 and outcome.worker not in killed:
            killed.add(outcome.worker)
            os.kill(int(outcome.worker.rpartition(":")[2]), signal.SIGKILL)
    assert len(killed) == 2
    assert sorted(outcome.line for outcome in told) == [j.line for j in jobs]
    for outcome in told:
        assert outcome.files == expected[outcome.line].files
        assert outcome.sha256 == expected[outcome.line].sha256
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")


def test_rows_of_a_dataset_keep_their_columns(cluster, tmp_path):
    options = json.dumps({"prompt": "a cat", "seed": 1, "num_inference_steps": 1})
    rows = ray.data.from_items([{"line": 7, "options": options, "id": "x7"}])
    setup = Setup.of(tmp_path, threads=1)
    drawn = rows.map(Draw, fn_constructor_args=(setup,), compute=ray.data.ActorPoolStrategy(size=1))
    (row,) = drawn.take_all()
    assert (row["id"], row["line"], row["drawn"]) == ("x7", 7, 1)
    assert [path.name for path in tmp_path.iterdir()] == list(row["files"])


def test_an_error_of_a_worker_is_its_own(cluster, tmp_path):
    with pytest.raises(RequestError, match="line 3: needs a seed"):
        list(draw_with_ray(Setup.of(tmp_path, threads=1), [job(3, seed=None)], 1, 1))
    assert not list(tmp_path.iterdir())


def test_the_command_draws_with_a_cluster_that_it_starts(tmp_path):
    rows = [{"prompt": "a dog", "size": "64x64", "steps": 2}] * 3
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["batch", "x.jsonl", "--ray", "local", "-o", "out"]
    command = [sys.executable, "-m", "bksdm.cli", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3 pictures in" in done.stderr
    assert done.stderr.endswith("3 drawn, 0 already there\n")
    rows = (tmp_path / "out/x.manifest.jsonl").read_text().splitlines()
    listed = [json.loads(row) for row in rows]
    assert [entry["options"]["seed"] for entry in listed] == [0, 1, 2]
    files = {entry["file"] for entry in listed}
    assert files == {name.removeprefix("out/") for name in done.stdout.split()}
    assert files == {path.name for path in (tmp_path / "out").glob("*.png")}
