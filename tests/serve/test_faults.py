"""Requests made at random from the OpenAPI document, and none of them is a fault of the server."""

from __future__ import annotations

import json
from collections import Counter

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bksdm.runtime.generation_config import OPTIONS
from bksdm.serve.openapi import option_schema
from bksdm.serve.settings import Limits, Settings

from .app import WANTED, Running

# Everything is checked as it would be, but hardly anything is drawn.
LIMITS = Limits(steps=2, images=2, pixels=96 * 96)


@pytest.fixture(scope="module")
def small():
    found = Running(Settings(wanted=WANTED, limits=LIMITS, queue_seconds=5))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def http(small):
    with httpx.Client(base_url=small.url, timeout=60) as found:
        yield found


def test_the_document_is_valid_and_has_every_option(small, http):
    described = http.get("/openapi.json").json()
    fields = described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    properties = fields["application/json"]["schema"]["properties"]
    for name in OPTIONS:
        assert properties[name] == json.loads(json.dumps(option_schema(name)))
    served = {
        path for path in described["paths"] if "{" not in path and "get" in described["paths"][path]
    }
    for path in served:
        assert http.get(path).status_code == 200, path


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
FIELDS = {
    "/v1/jobs": [
        *OPTIONS,
        *("model", "image", "mask", "output_format", "quality", "timeout", "previews"),
    ],
    "/v1/images/generations": [
        *OPTIONS,
        *("n", "size", "response_format", "output_compression", "user", "stream"),
    ],
    "/sdapi/v1/txt2img": [
        *("prompt", "seed", "steps", "sampler_name", "scheduler", "batch_size", "n_iter", "eta"),
        *("width", "height", "cfg_scale", "override_settings", "styles", "send_images"),
    ],
    "/sdapi/v1/img2img": ["prompt", "init_images", "mask", "mask_blur", "denoising_strength"],
    "/sdapi/v1/options": ["sd_model_checkpoint", "randn_source", "x"],
    "/sdapi/v1/png-info": ["image"],
}


@pytest.mark.parametrize("path", FIELDS)
def test_no_body_is_a_fault_of_the_server(http, path):
    seen = Counter()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.dictionaries(st.sampled_from(FIELDS[path]), ANYTHING, max_size=4),
        st.booleans(),
    )
    def try_it(fields, proper):
        if proper and "prompt" in FIELDS[path]:
            fields["prompt"] = "a dog"
        answer = http.post(path, content=json.dumps(fields))
        seen[answer.status_code] += 1
        # A full queue is no fault; all else is somebody's mistake, and is told in JSON.
        assert answer.status_code < 500, (fields, answer.text)
        assert isinstance(answer.json(), dict)

    try_it()
    assert sum(seen.values()) >= 20


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(small):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    seen = Counter()

    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def try_it(case):
            answer = case.call(base_url=small.url, timeout=60)
            seen[answer.status_code] += 1
            assert answer.status_code < 500, (case.path, case.body, answer.text)

        try_it()
    assert sum(seen.values()) > 400, seen
    assert not small.service.models.failure
