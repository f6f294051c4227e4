"""LoRAs of a server: by name, in every API, and beside each other."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from bksdm import TextToImage
from bksdm.cli.serve import lora_files
from bksdm.engines.errors import LoraError, RequestError
from bksdm.models import EMOJI
from bksdm.runtime.picture_record import record_of
from bksdm.serve.models import Models
from bksdm.serve.settings import Settings

from ..lora_files import random_lora
from .app import WANTED, Running

STEPS, SEED = 6, 3
BOTH = {"ink": 0.5, "cat": -1.0}
COMPONENTS = ("unet", "text_encoder")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two LoRAs: of attention alone, and of all layers, those of the text encoder included."""
    from bksdm.runtime.bundle import Bundle

    folder, bundle = tmp_path_factory.mktemp("loras"), Bundle.open(EMOJI)
    return {
        "ink": (random_lora(bundle, folder / "a.safetensors", 1, r"to_[qkv]$"), 1.0),
        "cat": (random_lora(bundle, folder / "b.safetensors", 2, components=COMPONENTS), 0.3),
    }


@pytest.fixture(scope="module")
def server(files):
    found = Running(Settings(wanted=WANTED, loras=files))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def alone(files):
    """Pictures of a model that has one LoRA or none, by the choice and the seed."""
    model = TextToImage.load(threads=1)
    plain = {s: model("a red apple", num_inference_steps=STEPS, seed=s).pixels[0] for s in range(4)}
    drawn = {("none", seed): pixels for seed, pixels in plain.items()}
    for name, (path, scale) in files.items():
        with TextToImage.load(threads=1) as model:
            model.load_lora(path, name, scale)
            for seed in range(4):
                result = model("a red apple", num_inference_steps=STEPS, seed=seed)
                drawn[name, seed] = result.pixels[0]
    return drawn


def post(server, path, **fields):
    request = urllib.request.Request(server.url + path, json.dumps(fields).encode())
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def refused(server, path, **fields):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, path, **fields)
    return caught.value.code, caught.value.read().decode()


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def drawn(server, **fields):
    """Draw by OpenAI's API."""
    options = {"prompt": "a red apple", "num_inference_steps": STEPS, "seed": SEED, **fields}
    return opened(post(server, "/v1/images/generations", **options)["data"][0]["b64_json"])


def test_under_load_each_picture_is_that_of_its_lora_alone(server, alone):
    """All at once, so that they share turns, and calls where they may."""
    wanted = [(name, seed) for seed in range(4) for name in ("ink", "none", "cat")]

    def one(order):
        name, seed = order
        loras = [] if name == "none" else [{"name": name}]
        return np.asarray(drawn(server, seed=seed, loras=loras))

    with ThreadPoolExecutor(len(wanted)) as clients:
        found = list(clients.map(one, wanted))
    for order, pixels in zip(wanted, found, strict=True):
        assert np.array_equal(pixels, alone[order]), order
    assert not np.array_equal(alone["ink", 0], alone["none", 0])
    assert not np.array_equal(alone["cat", 0], alone["none", 0])


def test_a_request_that_says_nothing_has_none(server, alone):
    assert np.array_equal(np.asarray(drawn(server)), alone["none", SEED])


def test_apis_agree_and_pictures_say_which(server, files):
    uses = [{"name": name, "scale": scale} for name, scale in BOTH.items()]
    first = drawn(server, loras=uses)
    own = record_of(first).own["loras"]
    assert [use.split(":")[:2] for use in own.split(",")] == [["ink", "0.5"], ["cat", "-1.0"]]
    assert "a red apple <lora:ink:0.5> <lora:cat:-1.0>" in first.info["parameters"]
    a1111 = post(
        server,
        "/sdapi/v1/txt2img",
        prompt="a red <lora:ink:0.2>apple <lora:ink:0.3><lyco:cat:-1>",
        steps=STEPS,
        seed=SEED,
        cfg_scale=7.5,
        override_settings={"randn_source": "CPU"},
    )
    assert np.array_equal(np.asarray(opened(a1111["images"][0])), np.asarray(first))
    job = post(
        server,
        "/v1/jobs",
        prompt="a red apple",
        num_inference_steps=STEPS,
        seed=SEED,
        loras=BOTH,
    )
    assert job["status"] in ("queued", "running", "done", "waiting"), job
    with urllib.request.urlopen(server.url + "/sdapi/v1/loras") as answer:
        assert [found["name"] for found in json.load(answer)] == list(files)


def test_refusals_name_the_field(server):
    path = "/v1/images/generations"
    code, said = refused(server, path, prompt="x", loras=[{"name": "fox"}])
    assert code == 400
    assert "no LoRA is loaded as 'fox'; loaded: ink, cat" in said
    assert json.loads(said)["error"]["param"] == "loras"
    for loras, told in (
        ("/etc/passwd", "names and scales"),
        ([{"name": "ink", "path": "/etc/passwd"}], "name and scale"),
        (["ink", "ink"], "twice"),
        ({"ink": "much"}, "must be a number"),
    ):
        code, said = refused(server, "/v1/jobs", prompt="x", loras=loras)
        assert (code, told in said) == (422, True), said


def test_a_lora_that_fits_no_model_is_refused_at_the_start(files, tmp_path, nano_bundle):
    path, _ = files["ink"]
    assert list(lora_files([f"ink={path}:0.5"])) == ["ink"]
    for text, told in (("ink", "must look like"), ("a,b=x", "must be a name"), ("=x", "name of a")):
        with pytest.raises(RequestError, match=told):
            lora_files([text])
    settings = Settings(wanted=WANTED, loras={"ink": (path, 1.0)})
    with pytest.raises(
        LoraError,
        match=r"attn1.to_k is for \[48, 48\], the unet has \[16, 16\]; a",
    ):
        Models({"nano": nano_bundle}, settings)
    both = Models({"nano": nano_bundle, "emoji": EMOJI}, settings)
    assert {name: list(found.loaded) for name, found in both.loras.items()} == {
        "nano": [],
        "emoji": ["ink"],
    }
