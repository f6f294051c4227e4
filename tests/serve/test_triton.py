"""The repository that is written for Triton, and its model, by itself and in Triton."""

from __future__ import annotations

import importlib
import io
import json
import os
import queue
import re
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from bksdm import GenerationConfig
from bksdm.cli import main
from bksdm.engines.errors import EngineError
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle

from . import triton_stand_in

SMALL = {"prompt": "a dog", "height": 64, "width": 64, "num_inference_steps": 4, "seed": 7}
UTILITIES = "triton_python_backend_utils"
FINAL = "TRITONSERVER_RESPONSE_COMPLETE_FINAL"
LAYOUT = ("--threads", "1", "--replicas", "1", "--max-batch", "4")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "repository"
    assert main(["triton", "-o", str(folder), "--name", "dogs", *LAYOUT]) == 0
    return folder


@pytest.fixture(scope="module")
def served(repository):
    """Return the model, as Triton calls it, without Triton."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, UTILITIES, triton_stand_in)
        for name in ("triton", "triton_tensors"):
            patch.delitem(sys.modules, f"bksdm.serve.{name}", raising=False)
        spec = importlib.util.spec_from_file_location("model", repository / "dogs/1/model.py")
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as later:
            # As in Triton, which has them only when its model is imported.
            for name in ("TritonError", "InferenceResponse", FINAL):
                later.delattr(triton_stand_in, name)
            spec.loader.exec_module(module)
        found = module.TritonPythonModel()
        written = (repository / "dogs/config.pbtxt").read_text()
        pattern = r'parameters { key: "(\w+)" value { string_value: "(.*)" } }'
        stated = {name: {"string_value": text} for name, text in re.findall(pattern, written)}
        found.initialize(
            {
                "model_config": json.dumps({"parameters": stated}),
                "model_repository": str(repository / "dogs"),
                "model_version": "1",
            }
        )
        yield found
        found.finalize()
        for name in ("triton", "triton_tensors"):
            sys.modules.pop(f"bksdm.serve.{name}")


def alone(model, **options):
    return model.generate(model.request(GenerationConfig(**{**SMALL, **options}))).pixels


def test_the_bundle_is_in_the_repository(repository):
    copied = Bundle.open(repository / "dogs/1/bundle")
    assert copied.digest() == Bundle.open(EMOJI).digest()
    config = (repository / "dogs/config.pbtxt").read_text()
    assert "decoupled: true" in config
    assert 'key: "max_batch" value { string_value: "4" }' in config


def test_pictures_on_the_way_come_before_the_last_ones(served, model):
    request = triton_stand_in.Request({**SMALL, "previews": 2, "num_images_per_prompt": 2})
    served.execute([request])
    *shown, last = request.until_final()
    assert [answer.about["step"] for answer in shown] == [1, 3]
    assert all(answer.tensors["pixels"].shape == (2, 8, 8, 3) for answer in shown)
    np.testing.assert_array_equal(last.tensors["pixels"], alone(model, num_images_per_prompt=2))
    about = last.about
    assert (about["step"], about["options"]["seed"]) == (about["steps"], 7)


def test_requests_join_those_that_are_under_way(served, model):
    long = triton_stand_in.Request({**SMALL, "num_inference_steps": 100})
    served.execute([long])
    short = [triton_stand_in.Request({**SMALL, "seed": seed}) for seed in (1, 2)]
    served.execute(short)
    for seed, request in enumerate(short, 1):
        (answer,) = request.until_final()
        np.testing.assert_array_equal(answer.tensors["pixels"], alone(model, seed=seed))
    assert long.answers.empty()
    (answer,) = long.until_final()
    np.testing.assert_array_equal(answer.tensors["pixels"], alone(model, num_inference_steps=100))


def test_what_parameters_cannot_hold_is_json(served, model):
    content = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(content, "PNG")
    options = json.dumps({"prompt": ["a cat", "ein Äffchen"], "seed": [3, 4], "strength": 0.5})
    request = triton_stand_in.Request(
        {"num_inference_steps": 6}, options=options.encode(), image=content.getvalue()
    )
    served.execute([request])
    (answer,) = request.until_final()
    config = GenerationConfig(
        ("a cat", "ein Äffchen"), num_inference_steps=6, seed=(3, 4), strength=0.5
    )
    with Image.open(content) as image:
        expected = model.generate(model.request(config, image=image.convert("RGB"))).pixels
    np.testing.assert_array_equal(answer.tensors["pixels"], expected)


@pytest.mark.parametrize(
    ("parameters", "tensors", "told"),
    [
        ({"steps": 3}, {}, "'steps' is not a field"),
        ({"prompt": "a", "num_inference_steps": 0}, {}, "num_inference_steps must be"),
        ({}, {}, "prompt is missing"),
        ({"prompt": "a", "previews": 1000}, {}, "previews must be a whole number from 0"),
        ({"prompt": "a"}, {"options": b"[1]"}, "options must be a JSON object"),
        ({"prompt": "a"}, {"options": b"\xff"}, "options: not valid JSON"),
        ({"prompt": "a"}, {"image": b"GIF89a"}, "image"),
    ],
)
def test_what_is_wrong_is_named(served, parameters, tensors, told):
    request = triton_stand_in.Request(parameters, **tensors)
    served.execute([request])
    (answer,) = request.until_final()
    assert told in str(answer.error)
    assert answer.error.code == triton_stand_in.TritonError.INVALID_ARG


def test_who_cancels_gets_its_end_at_once(served):
    request = triton_stand_in.Request({**SMALL, "num_inference_steps": 200, "previews": 100})
    served.execute([request])
    request.answers.get(timeout=30)
    request.cancelled = True
    assert request.until_final()[-1].error.code == triton_stand_in.TritonError.CANCELLED


def test_an_engine_that_fails_is_told(served, monkeypatch):
    def fail(*words, **named):
        raise EngineError("broken")

    monkeypatch.setattr(served._scheduler.model.executor, "predict", fail)
    request = triton_stand_in.Request(SMALL)
    served.execute([request])
    assert request.until_final()[0].error.code == triton_stand_in.TritonError.INTERNAL


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--name", "a/b"], "--name may have letters"),
        (["nowhere"], "nowhere: no such folder"),
        (["--engine", "none"], "unknown engine"),
        (["--engine", "tensorrt"], "the server runs networks on the host"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, capsys, words, told):
    assert main(["triton", *words, "-o", str(tmp_path / "x")]) == 2
    assert told in capsys.readouterr().err
    assert main(["triton", "-o", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def triton(repository, tmp_path_factory):
    """Return the ports of Triton for gRPC and HTTP."""
    for package in ("pytriton", "tritonclient"):
        if find_spec(package) is None:
            pytest.skip(
                f"{package} is not installed: pip install --no-deps nvidia-pytriton, and "
                "'tritonclient[grpc]'"
            )
    program = Path(find_spec("pytriton").origin).parent / "tritonserver"
    folder = tmp_path_factory.mktemp("backends")
    (folder / "python").mkdir()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = program / "python_backend_stubs" / version / "triton_python_backend_stub"
    for file in (stub, *(program / "backends/python").glob("*.*")):
        # A copy would not find its libraries.
        (folder / "python" / file.name).symlink_to(file)
    grpc, http = free_port(), free_port()
    log = folder / "log"
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [
                program / "bin/tritonserver",
                *("--model-repository", repository, "--backend-directory", folder),
                *("--grpc-port", str(grpc), "--http-port", str(http), "--allow-metrics=false"),
                "--exit-timeout-secs=5",
            ],
            stdout=stream,
            stderr=subprocess.STDOUT,
            # By the first Python on it, Triton finds what this one has.
            env={**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        ) as process,
    ):
        try:
            end = time.monotonic() + 60
            while b"Started HTTPService" not in log.read_bytes():
                assert process.poll() is None, log.read_text(errors="replace")[-2000:]
                assert time.monotonic() < end, log.read_text(errors="replace")[-2000:]
                time.sleep(0.2)
            yield grpc, http
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
def test_triton_streams_pictures_over_grpc(triton, model):
    import tritonclient.grpc as client

    answers = queue.Queue()
    with client.InferenceServerClient(f"127.0.0.1:{triton[0]}") as server:
        assert server.is_model_ready("dogs")
        server.start_stream(lambda result, error: answers.put((result, error)))
        steps = {"a": 60, "b": 4}
        for name, count in steps.items():
            parameters = {**SMALL, "num_inference_steps": count, "guidance_scale": 3.5}
            extra = {"previews": 2} if name == "a" else {}
            server.async_stream_infer("dogs", [], request_id=name, parameters=parameters | extra)
        content = np.frombuffer(json.dumps({**SMALL, "seed": [8]}).encode(), np.uint8)
        options = client.InferInput("options", [len(content)], "UINT8")
        options.set_data_from_numpy(content)
        server.async_stream_infer("dogs", [options], request_id="c")
        server.async_stream_infer("dogs", [], request_id="d", parameters={"prompt": "ä", "x": 1})
        found, order = {}, []
        while len(order) < 4:
            result, error = answers.get(timeout=60)
            if error is not None:
                assert "'x' is not a field" in str(error)
                order.append("d")
                continue
            name = result.get_response().id
            found.setdefault(name, []).append(result)
            about = json.loads(result.as_numpy("about").tobytes())
            if "options" in about:
                order.append(name)
    # The short ones joined, and were done first.
    assert order[-1] == "a"
    assert [result.as_numpy("pixels").shape for result in found["a"]] == [
        *[(1, 8, 8, 3)] * 2,
        (1, 64, 64, 3),
    ]
    expected = {
        "a": {"num_inference_steps": 60, "guidance_scale": 3.5},
        "b": {"guidance_scale": 3.5},
        "c": {"seed": (8,)},
    }
    for name, options in expected.items():
        np.testing.assert_array_equal(found[name][-1].as_numpy("pixels"), alone(model, **options))


@pytest.mark.slow
def test_triton_answers_over_http(triton, model):
    url = f"http://127.0.0.1:{triton[1]}/v2/models/dogs"
    answer = httpx.post(f"{url}/generate", json=SMALL, timeout=60)
    assert answer.status_code == 200, answer.text
    pixels = np.reshape(answer.json()["pixels"], (1, 64, 64, 3))
    np.testing.assert_array_equal(pixels, alone(model))
    streamed = httpx.post(f"{url}/generate_stream", json={**SMALL, "previews": 1}, timeout=60)
    rows = [row for row in streamed.text.splitlines() if row.startswith("data: ")]
    assert len(rows) == 2
    refused = httpx.post(f"{url}/generate", json={"prompt": "a dog", "num_inference_steps": 0})
    assert refused.status_code == 400
    assert "num_inference_steps must be" in refused.json()["error"]
