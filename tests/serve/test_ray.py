"""The application of Ray Serve: two models, streams, and requests that join between steps."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve", reason="ray is not installed: pip install '.[ray]'")

import ray
from ray import serve

from bksdm import RequestError
from bksdm.models import EMOJI
from bksdm.serve.ray import Arguments, app

SMALL = {"prompt": "a dog", "size": "64x64", "num_inference_steps": 4}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "other"
    unneeded = shutil.ignore_patterns("vae", "train", "classifier", "engines", "__pycache__")
    shutil.copytree(EMOJI, folder, ignore=unneeded)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"bundles": f"emoji,{folder}", "max_batch": "4"}))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def drawn(answer):
    content = base64.b64decode(answer["b64_json"])
    return np.asarray(Image.open(io.BytesIO(content)))


def alone(model, seed, steps):
    options = {"height": 64, "width": 64, "num_inference_steps": steps, "seed": seed}
    return np.asarray(model("a dog", **options).images[0])


@pytest.mark.slow
def test_requests_join_and_pictures_are_equal(url, model):
    found = {}

    def draw(seed, steps, name):
        body = {**SMALL, "seed": seed, "num_inference_steps": steps, "model": name}
        headers = {"serve_multiplexed_model_id": name}
        sent = f"{url}/v1/images/generations"
        answer = httpx.post(sent, json=body, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        found[seed, steps] = drawn(answer.json()["data"][0]), time.monotonic()

    asked = [(1, 120, "emoji"), (2, 3, "emoji"), (3, 5, "other"), (4, 7, "emoji")]
    threads = [threading.Thread(target=draw, args=each) for each in asked]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    for seed, steps, _ in asked:
        np.testing.assert_array_equal(found[seed, steps][0], alone(model, seed, steps))
    # It joined a picture that was under way, and was done before it.
    assert found[2, 3][1] < found[1, 120][1]
    metrics = httpx.get(f"{url}/metrics").text
    assert 'bksdm_running_pictures{model="other"} 0.0' in metrics


@pytest.mark.slow
def test_a_stream_comes_as_it_is_drawn(url, model):
    body = {**SMALL, "seed": 9, "num_inference_steps": 30, "stream": True, "partial_images": 2}
    names, times, last = [], [], None
    with httpx.stream("POST", f"{url}/v1/images/generations", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
                names.append(last["type"])
                times.append(time.monotonic())
    assert names == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert times[0] < times[-1] - 0.02
    np.testing.assert_array_equal(drawn(last), alone(model, 9, 30))


@pytest.mark.slow
def test_a_client_that_leaves_frees_its_place(url):
    body = {**SMALL, "num_inference_steps": 200}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/images/generations", json=body, timeout=0.5)
    for _ in range(50):
        metrics = httpx.get(f"{url}/metrics").text
        if 'bksdm_running_pictures{model="emoji"} 0.0' in metrics and "cancelled" in metrics:
            break
        time.sleep(0.1)
    else:
        pytest.fail(metrics)


@pytest.mark.slow
def test_health_and_errors_pass_through(url):
    assert httpx.get(f"{url}/health/ready").json() == {"ready": True, "reason": None}
    answer = httpx.post(f"{url}/v1/images/generations", json={**SMALL, "model": "none"})
    assert answer.status_code == 404
    assert "there is emoji, other" in answer.json()["error"]["message"]
    jobs = httpx.post(f"{url}/v1/jobs", json={"prompt": "a dog", "num_inference_steps": 1})
    assert jobs.status_code == 202


def test_ray_scales_between_the_numbers_that_are_given():
    found = app({"max_replicas": 3, "threads": 2, "target_requests": "6"})
    settings = found._bound_deployment._deployment_config
    assert settings.autoscaling_config.max_replicas == 3
    assert settings.autoscaling_config.target_ongoing_requests == 6
    assert found._bound_deployment.ray_actor_options["num_cpus"] == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [({"bundle": "x"}, "unknown argument 'bundle'"), ({"threads": "two"}, "wrong value")],
)
def test_wrong_arguments_are_named(given, told):
    with pytest.raises(RequestError, match=told):
        Arguments.of(given)
