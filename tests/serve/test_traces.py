"""Spans of OpenTelemetry, as an SDK gets them."""

from __future__ import annotations

import time

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bksdm.serve import traces

SMALL = {"prompt": "a dog", "size": "64x64", "num_inference_steps": 5}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exported(monkeypatch):
    """Return the spans of a test."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A process has one provider for good; this is the test's.
    monkeypatch.setattr(traces.trace, "get_tracer", provider.get_tracer)

    def spans(count):
        end = time.monotonic() + 10
        while len(found := exporter.get_finished_spans()) < count:
            assert time.monotonic() < end, found
            time.sleep(0.01)
        return {span.name: span for span in found}

    return spans


def test_a_request_has_a_span_for_each_stage(running, exported):
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    url = f"{running.url}/v1/images/generations"
    before = time.time_ns()
    assert httpx.post(url, json=SMALL, headers=headers, timeout=30).status_code == 200
    after = time.time_ns()
    spans = exported(5)
    whole = spans.pop("draw")
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == SPAN
    assert whole.attributes["bksdm.model"] == "emoji"
    assert (whole.attributes["bksdm.width"], whole.attributes["bksdm.images"]) == (64, 1)
    assert whole.attributes["bksdm.seconds.unet"] > 0
    assert whole.status.is_unset
    assert set(spans) == {"queue", "encode", "denoise", "decode"}
    assert all(span.parent.span_id == whole.context.span_id for span in spans.values())
    # One after the other, and together the whole.
    ends = [whole.start_time]
    for name in ("queue", "encode", "denoise", "decode"):
        assert spans[name].start_time == pytest.approx(ends[-1], abs=1e3)
        ends.append(spans[name].end_time)
        assert ends[-1] >= ends[-2]
    assert before < whole.start_time < ends[-1] <= whole.end_time < after


def test_a_request_that_is_left_says_how_far_it_came(running, exported):
    body = {**SMALL, "num_inference_steps": 200}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/v1/images/generations", json=body, timeout=0.5)
    spans = exported(2)
    running.until_idle()
    whole = spans["draw"]
    assert whole.parent is None
    assert whole.attributes["error.type"] == "cancelled"
    assert whole.status.status_code == trace.StatusCode.ERROR
    assert 0 <= whole.attributes["bksdm.steps"] < 200
    assert "decode" not in spans
