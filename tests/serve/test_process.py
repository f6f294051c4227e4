"""The command as a process: it starts, draws, and stops without losing what is under way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from bksdm.cli import main

SMALL = {"prompt": "a secret dog", "num_inference_steps": 4, "height": 64, "width": 64}


WITHOUT = """
import sys

for name in {names}:
    sys.modules[name] = None
from bksdm.cli import main

sys.exit(main(sys.argv[1:]))
"""
EXPORT = ("torch", "diffusers", "transformers", "optimum", "onnx")


class Process:
    """``bksdm serve`` with the built-in model, on a free port.

    Parameters
    ----------
    arguments : str
        Of the command.
    without : tuple of str
        Packages that cannot be imported.
    """

    def __init__(self, *arguments, without=()):
        settled = ("--port", "0", "--replicas", "1", "--threads", "1", "--max-batch", "2")
        program = WITHOUT.format(names=without)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *settled, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = self.process.stdout.readline().removeprefix("serving on ").strip()

    def end(self):
        """Return exit code and standard error."""
        _, told = self.process.communicate(timeout=30)
        return self.process.returncode, told


@pytest.fixture
def start():
    begun = []

    def make(*arguments, **named):
        begun.append(Process(*arguments, **named))
        return begun[-1]

    yield make
    for one in begun:
        one.process.kill()
        one.process.communicate()


def test_it_stops_when_what_is_under_way_is_drawn(start):
    server = start()
    answers = []

    def draw():
        body = {**SMALL, "num_inference_steps": 150}
        answers.append(httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60))

    drawing = threading.Thread(target=draw)
    drawing.start()
    metrics = f"{server.url}/metrics"
    while 'bksdm_running_pictures{model="emoji"} 1.0' not in httpx.get(metrics).text:
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    ready = httpx.get(f"{server.url}/health/ready")
    refused = httpx.post(f"{server.url}/v1/images/generations", json=SMALL)
    drawing.join(30)
    assert answers[0].status_code == 200
    assert (ready.status_code, ready.json()["reason"]) == (503, "stopping")
    assert refused.status_code == 503
    code, told = server.end()
    assert code == 0
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    drawn = next(line for line in lines if line.get("status") == 200 and "model" in line)
    assert drawn["path"] == "/v1/images/generations"
    assert drawn["request_id"] == answers[0].headers["x-request-id"]
    assert "secret" not in told


def test_what_is_not_drawn_in_time_is_handed_back(start):
    server = start("--grace", "0.2", "--log-prompts")
    answers = []

    def draw():
        body = {**SMALL, "num_inference_steps": 200}
        answers.append(httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=60))

    drawing = [threading.Thread(target=draw) for _ in range(4)]
    for thread in drawing:
        thread.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    for thread in drawing:
        thread.join(30)
    assert [answer.status_code for answer in answers] == [503] * 4
    code, told = server.end()
    assert code == 0
    assert "a secret dog" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["--port", "70000"], "--port must be from 0 to 65535"),
        (["--api-key-file", os.devnull], "device"),
        (["--engine", "tensorrt"], "tensorrt"),
        (["emoji", "emoji"], "two bundles are called emoji"),
    ],
)
def test_errors_are_one_line(arguments, told, capsys):
    assert main(["serve", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bksdm: error: ")
    assert told in last


def test_a_port_in_use_is_an_error(start):
    server = start()
    other = Process("--port", server.url.rpartition(":")[2])
    code, told = other.end()
    assert code == 2
    assert told.startswith("bksdm: error: cannot listen on 127.0.0.1, port ")
    assert "in use" in told


def test_it_needs_nothing_of_what_an_export_takes(start):
    server = start(without=EXPORT)
    drawn = httpx.post(f"{server.url}/v1/images/generations", json=SMALL, timeout=30)
    assert drawn.status_code == 200
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_the_extra_is_named_where_it_is_missing(start, package):
    code, told = start(without=(package,)).end()
    assert code == 2
    assert told == (
        f"bksdm: error: this command needs {package}; run: pip install 'bksdm-runtime[serve]'\n"
    )
