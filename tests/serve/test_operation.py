"""What an operator relies on: limits, keys, probes, metrics, models on demand, bad clients."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import io
import json
import logging
import random
import socket
import struct
import time
import zlib
from collections import Counter

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI
from bksdm.serve.app import make_app
from bksdm.serve.callers import Keys
from bksdm.serve.errors import Refused, Unauthorized, Unavailable
from bksdm.serve.logs import JsonLines
from bksdm.serve.models import Models
from bksdm.serve.service import Service
from bksdm.serve.settings import Limits, Settings

from .app import WANTED, Running

SMALL = {"prompt": "a dog", "num_inference_steps": 2, "height": 64, "width": 64}
DIGEST = hashlib.sha256(b"s3cret").hexdigest()
KEYS = f"# of a test\nann sha256:{DIGEST} priority=3\nbob key2 rate=2\n"


@pytest.fixture(scope="module")
def guarded():
    """A server with keys, small limits, and two models of which one fits into memory."""
    settings = Settings(
        wanted=WANTED,
        memory_bytes=int(0.4e9),
        limits=Limits(body_bytes=200_000, body_seconds=0.5, sent_pixels=10_000),
        cors=("https://example.org",),
    )
    found = Running(settings, KEYS, {"emoji": EMOJI, "other": EMOJI})
    yield found
    found.stop()


@pytest.fixture
def http(guarded):
    headers = {"authorization": "Bearer s3cret"}
    with httpx.Client(base_url=guarded.url, timeout=30, headers=headers) as found:
        yield found


def test_keys():
    keys = Keys(KEYS)
    assert keys.caller({"authorization": "Bearer s3cret"}, "").priority == 3
    basic = base64.b64encode(b"anybody:s3cret").decode()
    assert keys.caller({"authorization": f"Basic {basic}"}, "").name == "ann"
    bob = {"x-api-key": "key2"}
    assert [keys.caller(bob, "").name for _ in range(2)] == ["bob", "bob"]
    with pytest.raises(Refused) as refused:
        keys.caller(bob, "")
    assert refused.value.retry_after == pytest.approx(30, abs=1)
    for wrong in (
        {},
        {"authorization": "Bearer"},
        {"authorization": "Basic !"},
        {"x-api-key": "s"},
    ):
        with pytest.raises(Unauthorized):
            keys.caller(wrong, "")


@pytest.mark.parametrize(
    "line", ["ann", "ann k rate=0", "ann k power=3", "ann sha256:00", "a k rate=x"]
)
def test_lines_of_keys_that_are_wrong_are_named(line, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# one\n{line}\n")
    with pytest.raises(RequestError, match="line 2 must look like NAME KEY"):
        Keys.read(path)
    path.write_text("# none\n")
    with pytest.raises(RequestError, match="holds no key"):
        Keys.read(path)


def test_who_has_no_key_is_told_in_the_form_of_the_api(guarded):
    with httpx.Client(base_url=guarded.url) as http:
        found = http.post("/v1/images/generations", json=SMALL)
        assert (found.status_code, found.json()["error"]["type"]) == (401, "authentication_error")
        assert http.get("/sdapi/v1/options").json()["error"] == "unauthorized"
        assert http.get("/v1/jobs/x").json()["title"] == "unauthorized"
        assert http.get("/metrics").status_code == 401
        for path in ("/", "/health/live", "/health/ready", "/openapi.json", "/static/page.js"):
            assert http.get(path).status_code == 200


def test_a_key_that_is_used_too_often_waits(guarded):
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": "key2"}) as http:
        found = [http.post("/v1/jobs", json=SMALL) for _ in range(3)]
        assert [answer.status_code for answer in found] == [202, 202, 429]
        assert 25 <= int(found[2].headers["retry-after"]) <= 30
        # To ask after a job costs nothing.
        assert http.get(found[0].json()["links"]["self"]).status_code == 200


def test_jobs_are_their_callers_own(guarded, http):
    job = http.post("/v1/jobs", json=SMALL).json()
    with httpx.Client(base_url=guarded.url, headers={"x-api-key": "key2"}) as other:
        assert other.get(job["links"]["self"]).status_code == 404
        assert other.delete(job["links"]["self"]).status_code == 404


def test_models_are_loaded_on_demand_within_memory(guarded, http):
    assert list(guarded.service.models.loaded) == ["emoji"]
    drawn = http.post("/v1/images/generations", json={**SMALL, "model": "other"})
    assert drawn.status_code == 200
    assert list(guarded.service.models.loaded) == ["other"]
    assert http.get("/health/ready").status_code == 200
    assert http.post("/v1/images/generations", json=SMALL).status_code == 200
    assert list(guarded.service.models.loaded) == ["emoji"]


def bomb(width, height):
    """Return a PNG of few bytes and many pixels."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000 * (width + 1)), 9)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encoded(content):
    return base64.b64encode(content).decode()


def test_decompression_bombs_are_not_opened(http):
    start = time.monotonic()
    for side, told in ((5000, "5000x5000 pixels are too many"), (20000, "decompression bomb")):
        body = {**SMALL, "image": encoded(bomb(side, side))}
        refused = http.post("/v1/jobs", json=body)
        assert (refused.status_code, refused.json()["field"]) == (422, "image")
        assert told in refused.json()["detail"]
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("cut", [0, 8, 20, 60, -4])
def test_damaged_pictures_are_refused(http, cut):
    content = io.BytesIO()
    Image.effect_noise((60, 60), 50).save(content, "PNG")
    refused = http.post("/v1/jobs", json={**SMALL, "image": encoded(content.getvalue()[:cut])})
    # Pillow takes a picture of which only the end mark is missing.
    assert refused.status_code == (202 if cut == -4 else 422)


def test_bodies_that_are_too_large_or_too_slow(guarded, http):
    assert http.post("/v1/jobs", content=b" " * 300_000).status_code == 413
    chunks = (b" " * 50_000 for _ in range(100))
    refused = http.post("/v1/images/generations", content=chunks)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")
    with guarded.connect() as slow:
        slow.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nX-API-Key: s3cret\r\n")
        slow.sendall(b"Content-Length: 10\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"prompt": NaN}', b"\xff", b"[" * 100_000, b'{"prompt": "\\ud800"}'],
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"])
def test_bodies_that_are_no_json_object_are_refused(http, path, content):
    answer = http.post(path, content=content)
    assert 400 <= answer.status_code < 500 or (b"ud800" in content and path == "/v1/jobs")


def test_damaged_forms_are_refused(http):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    for content in (
        b"",
        b"--x\r\n",
        b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
    ):
        answer = http.post("/v1/images/edits", content=content, headers=kind)
        assert answer.status_code == 400
    assert http.post("/v1/images/edits", content=b"x").status_code == 400


def test_probes_metrics_and_ids(http):
    http.post("/v1/images/generations", json=SMALL)
    assert http.get("/health/live").json() == {"alive": True}
    told = http.get("/metrics").text
    for line in (
        'bksdm_http_requests_total{route="/v1/images/generations",status="200"}',
        'bksdm_ended_total{how="done",model="emoji"}',
        'bksdm_batch_pictures_count{model="emoji"}',
        'bksdm_stage_seconds_count{model="emoji",stage="decode"}',
        'bksdm_waiting_requests{model="emoji"} 0.0',
        "process_resident_memory_bytes",
    ):
        assert line in told
    assert "a dog" not in told
    assert http.get("/", headers={"x-request-id": "my-1"}).headers["x-request-id"] == "my-1"
    other = http.get("/", headers={"x-request-id": "no id!"}).headers["x-request-id"]
    assert len(other) == 32


def test_other_sites_may_call_where_they_are_named(http):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    for origin, allowed in (("https://example.org", 200), ("https://example.com", 400)):
        answer = http.options("/v1/jobs", headers={**asked, "origin": origin})
        assert answer.status_code == allowed


def test_paths_that_are_not_there(http):
    assert http.get("/v1/images/none").json()["error"]["code"] == "not_found"
    assert http.get("/static/../server.py").status_code == 404
    assert http.get("/static/%2e%2e/server.py").status_code == 404
    assert http.get("/v1/jobs").status_code == 405


def test_hundreds_of_idle_and_half_closed_connections_do_no_harm(guarded, http):
    idle = [guarded.connect() for _ in range(300)]
    for number, connection in enumerate(idle):
        if number % 2:
            connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Le")
        else:
            connection.shutdown(socket.SHUT_WR)
    assert http.post("/v1/images/generations", json=SMALL).status_code == 200
    for connection in idle:
        connection.close()


def test_clients_that_read_nothing_hold_nobody_up(guarded, http):
    body = json.dumps({**SMALL, "num_inference_steps": 60, "previews": 50}).encode()
    silent = []
    for _ in range(8):
        job = http.post("/v1/jobs", content=body).json()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", guarded.port))
        path = job["links"]["events"]
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: s3cret\r\n\r\n".encode())
        silent.append(connection)
    assert http.post("/v1/images/generations", json=SMALL).status_code == 200
    guarded.until_idle()
    for connection in silent:
        connection.close()


def test_log_lines_are_json_with_what_went_wrong():
    try:
        raise ValueError("why")
    except ValueError as error:
        told = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed\nhere", (), told)
    record.told = {"request_id": "7"}
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["request_id"], found["message"]) == ("7", "failed\nhere")
    assert "ValueError: why" in found["exception"]


def test_a_model_that_does_not_fit_is_refused():
    models = Models({"emoji": EMOJI}, Settings(wanted=WANTED, memory_bytes=1000))
    with pytest.raises(Unavailable, match=r"model emoji takes about .* GB, more than"):
        asyncio.run(models.get())


def of_requests():
    """Return how many objects of requests are in memory."""
    gc.collect()
    found = Counter(type(one).__name__ for one in gc.get_objects())
    return found["Ticket"] + found["Drawing"] + found["Draft"]


def test_finished_jobs_take_no_memory_but_that_of_their_files(http, guarded):
    before = of_requests()
    jobs = [http.post("/v1/jobs", json={**SMALL, "previews": 2}).json() for _ in range(5)]
    guarded.until_idle()
    end = time.monotonic() + 10
    while any(http.get(job["links"]["self"]).json()["status"] != "done" for job in jobs):
        assert time.monotonic() < end
    assert of_requests() <= before + 3


@pytest.mark.slow
def test_a_thousand_clients_that_leave_at_random_leave_nothing_behind():
    before = of_requests()
    server = Running(Settings(wanted=WANTED, queue_seconds=1))
    chance = random.Random(0)
    answers = Counter()
    body = {**SMALL, "num_inference_steps": 20}

    async def client(http, stream):
        await asyncio.sleep(chance.uniform(0, 20))
        try:
            post = http.post("/v1/images/generations", json={**body, "stream": stream})
            answer = await asyncio.wait_for(post, chance.uniform(0, 0.5))
            answers[answer.status_code] += 1
        except TimeoutError:
            answers["left"] += 1

    async def clients():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
            await asyncio.gather(*(client(http, k % 2 == 0) for k in range(1000)))

    asyncio.run(clients())
    scheduler = server.until_idle()
    assert sum(answers.values()) == 1000
    assert set(answers) <= {200, 429, "left"}
    assert answers["left"] > 100
    assert scheduler.running == scheduler.waiting == 0
    assert httpx.post(f"{server.url}/v1/images/generations", json=SMALL).status_code == 200
    server.stop()
    # The frame of the request that was answered last may still be there.
    assert of_requests() <= before + 3


def test_one_of_several_servers_offers_what_needs_no_memory():
    settings = Settings(one_of_several=True)
    client = TestClient(make_app(Service({"emoji": EMOJI}, settings)))
    assert client.get("/v1/models").status_code == 200
    for path in ("/v1/jobs", "/sdapi/v1/txt2img"):
        assert client.post(path, json=SMALL).status_code == 404
    sent = {"prompt": "a dog", "response_format": "url"}
    answer = client.post("/v1/images/generations", json=sent)
    assert answer.status_code == 400
    assert "the link might lead to another server" in answer.json()["error"]["message"]
