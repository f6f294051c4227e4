"""ControlNets over HTTP: in jobs, and refused by name elsewhere."""

from __future__ import annotations

import base64
import io
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from bksdm import GenerationConfig, TextToImage
from bksdm.serve.plan import CONTROL, Plan

from .app import Running

SMALL = {"prompt": "a cat", "num_inference_steps": 3, "seed": 7}


def picture(seed):
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


def encoded(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


@pytest.fixture(scope="module")
def http(controlled):
    running = Running(bundles={"controlled": controlled[2]})
    with httpx.Client(base_url=running.url, timeout=60) as found:
        yield found
    running.stop()


def drawn(http, **fields):
    """Return the pixels of a job, and what its file records."""
    begun = http.post("/v1/jobs", json={**SMALL, **fields})
    assert begun.status_code == 202, begun.text
    path = begun.json()["links"]["self"]
    end = time.monotonic() + 60
    while (job := http.get(path).json())["status"] not in ("done", "failed"):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert job["status"] == "done", job
    image = Image.open(io.BytesIO(http.get(job["pictures"][0]).content))
    return np.asarray(image), image.info


def test_a_job_draws_with_one_or_several(http, controlled):
    one, record = drawn(http, control_image=encoded(picture(1)), controlnet="canny")
    assert record["bksdm:controlnet"] == "canny"
    assert record["bksdm:control_image"] == "control_image"
    both = {"controlnet": ["canny", "depth"], "controlnet_conditioning_scale": [0.5, 1.5]}
    shown = [encoded(picture(1)), f"data:image/png;base64,{encoded(picture(2))}"]
    two, record = drawn(http, control_image=shown, guess_mode=True, **both)
    assert {key for key in record if key.startswith("bksdm:control_image")} == {
        f"bksdm:control_image{rest}" for rest in ("", "_digest", "_2", "_2_digest")
    }
    plain, record = drawn(http)
    assert "bksdm:control_image" not in record
    with TextToImage.load(controlled[2], threads=1) as model:
        expected = [
            model(control_image=picture(1), controlnet="canny", **SMALL),
            model(control_image=[picture(1), picture(2)], guess_mode=True, **both, **SMALL),
            model(**SMALL),
        ]
    for found, wanted in zip((one, two, plain), expected, strict=True):
        assert np.abs(found.astype(int) - wanted.pixels[0]).max() <= 1
    assert (one != plain).any()
    assert (two != one).any()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"control_image": "x"}, "control_image"),
        ({"control_image": 3}, "control_image"),
        ({"control_image": [encoded(picture(1))] * 9}, "control_image"),
        ({"control_image": encoded(picture(1))}, "controlnet"),
        ({"control_image": encoded(picture(1)), "controlnet": "pose"}, "controlnet"),
        ({"guess_mode": True}, "guess_mode"),
        ({"control_guidance_end": 2}, "control_guidance_end"),
    ],
)
def test_errors_name_the_field(http, fields, field):
    told = http.post("/v1/jobs", json={**SMALL, **fields})
    assert told.status_code == 422
    assert told.json().get("field") == field


def test_the_other_apis_refuse_it_by_name(http):
    shown = {"prompt": "a cat", "control_image": encoded(picture(1))}
    told = http.post("/v1/images/generations", json=shown)
    assert told.status_code == 400
    assert "control_image" in told.json()["error"]["message"]
    told = http.post("/sdapi/v1/txt2img", json=shown)
    assert told.status_code == 422
    assert "control_image" in told.text


def test_the_openapi_document_has_it(http):
    paths = http.get("/openapi.json").json()["paths"]
    body = paths["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"control_image", "controlnet", "guess_mode"} <= set(body["properties"])


def test_work_counts_them(controlled):
    with TextToImage.load(controlled[2], threads=1) as model:

        def left(images=None, **options):
            config = GenerationConfig("a cat", num_inference_steps=10, sampler="ddim", **options)
            return int(Plan.of(model.request(config, control_image=images)).whole[0])

        plain, one = left(), {"images": picture(1), "controlnet": "canny"}
        assert plain == 20
        assert left(**one) == 10 * (2 + np.ceil(2 * CONTROL))
        assert left(**one, guess_mode=True) == 10 * (2 + np.ceil(CONTROL))
        assert plain < left(**one, control_guidance_end=0.5) < left(**one)
