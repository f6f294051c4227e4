"""Jobs: begun with 202, followed, cancelled, and begun once however often they are sent."""

from __future__ import annotations

import base64
import io
import json
import time

import httpx
import numpy as np
import pytest
from PIL import Image

SMALL = {"prompt": "a dog", "num_inference_steps": 4, "seed": 7, "height": 64, "width": 64}


@pytest.fixture
def http(running):
    with httpx.Client(base_url=running.url, timeout=30) as found:
        yield found


def events(http, path):
    """Yield name and data of each event of a stream."""
    with http.stream("GET", path) as stream:
        name = None
        for line in stream.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def test_a_job_is_begun_followed_and_fetched(http, model):
    begun = http.post("/v1/jobs", json={**SMALL, "num_images_per_prompt": 2, "previews": 2})
    assert begun.status_code == 202
    job = begun.json()
    assert begun.headers["location"] == job["links"]["self"]
    told = list(events(http, job["links"]["events"]))
    assert {name for name, _ in told} >= {"state", "end"}
    name, end = told[-1]
    assert (name, end["status"], end["steps"]) == ("end", "done", 5)
    assert end["options"]["seed"] == 7
    expected = model(num_images_per_prompt=2, **SMALL)
    for link, drawn in zip(end["pictures"], expected.pixels, strict=True):
        content = http.get(link)
        assert content.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content.content))), drawn)
    assert http.get(job["links"]["self"]).json() == end
    # Who comes later is told the end at once.
    assert [name for name, _ in events(http, job["links"]["events"])] == ["end"]


def test_previews_come_while_it_draws(http):
    job = http.post("/v1/jobs", json={**SMALL, "num_inference_steps": 60, "previews": 5}).json()
    shown = [data for name, data in events(http, job["links"]["events"]) if name == "preview"]
    assert shown
    content = base64.b64decode(shown[0]["pictures"][0].partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (8, 8)


def test_an_image_and_a_mask(http, model):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mask = Image.fromarray(np.tri(64, dtype=np.uint8) * 255)

    def encoded(picture):
        content = io.BytesIO()
        picture.save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    options = {**SMALL, "strength": 0.7}
    job = http.post(
        "/v1/jobs",
        json={
            **options,
            "image": f"data:image/png;base64,{encoded(image)}",
            "mask": encoded(mask),
        },
    ).json()
    end = list(events(http, job["links"]["events"]))[-1][1]
    drawn = Image.open(io.BytesIO(http.get(end["pictures"][0]).content))
    expected = model(image=image, mask=mask, **options).pixels[0]
    np.testing.assert_array_equal(np.asarray(drawn), expected)


def test_a_job_is_cancelled(http, running):
    job = http.post("/v1/jobs", json={**SMALL, "num_inference_steps": 200}).json()
    time.sleep(0.05)
    http.delete(job["links"]["self"])
    name, end = list(events(http, job["links"]["events"]))[-1]
    assert (name, end["status"], end["error"]["code"]) == ("end", "failed", "cancelled")
    running.until_idle()


def test_the_same_key_begins_one_job(http):
    key = {"idempotency-key": "k1"}
    first, second = (http.post("/v1/jobs", json=SMALL, headers=key).json() for _ in range(2))
    assert first["id"] == second["id"]
    other = http.post("/v1/jobs", json={**SMALL, "seed": 8}, headers=key)
    assert other.status_code == 422
    assert "another body" in other.json()["detail"]
    wrong = http.post("/v1/jobs", json={**SMALL, "seed": "x"}, headers={"idempotency-key": "k2"})
    assert wrong.status_code == 422
    right = http.post("/v1/jobs", json=SMALL, headers={"idempotency-key": "k2"})
    assert right.status_code == 202


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"steps": 3}, "steps"),
        ({"seed": "x"}, "seed"),
        ({"mask": "AAAA"}, "mask"),
        ({"image": "no base64!"}, "image"),
        ({"image": base64.b64encode(b"GIF89a").decode()}, "image"),
        ({"model": "x"}, None),
        ({"previews": 1000}, "previews"),
        ({"output_format": "gif"}, "output_format"),
        ({"guidance_interval": [1]}, "guidance_interval"),
        ({"prompt": ["a", "b"], "num_images_per_prompt": 5}, "num_images_per_prompt"),
        ({"width": 2048, "height": 2048}, "width"),
    ],
)
def test_errors_name_the_field(http, given, field):
    refused = http.post("/v1/jobs", json={**SMALL, **given})
    assert refused.headers["content-type"] == "application/problem+json"
    told = refused.json()
    assert told["status"] == refused.status_code == (404 if "model" in given else 422)
    assert told.get("field") == field


def test_there_are_only_ones_own_jobs(http):
    for path in ("/v1/jobs/none", "/v1/jobs/none/events"):
        assert http.get(path).status_code == 404
