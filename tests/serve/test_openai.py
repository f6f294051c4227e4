"""OpenAI's own client draws with the server."""

from __future__ import annotations

import base64
import io
import re
import time
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
from PIL import Image

from bksdm.runtime.images import opened
from bksdm.runtime.picture_record import record_of

SMALL = {"num_inference_steps": 4, "seed": 7, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def client(running):
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def pixels(image):
    content = base64.b64decode(image.b64_json)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_models(client):
    assert [model.id for model in client.models.list()] == ["emoji"]
    assert client.models.retrieve("emoji").id == "emoji"
    with pytest.raises(openai.NotFoundError, match="there is emoji") as refused:
        client.models.retrieve("dall-e-3")
    assert refused.value.code == "model_not_found"


def test_pictures_and_their_record(client, model):
    answer = client.images.generate(prompt="a dog", model="emoji", n=2, extra_body=SMALL)
    expected = model("a dog", num_images_per_prompt=2, **SMALL)
    for sent, drawn in zip(answer.data, expected.pixels, strict=True):
        np.testing.assert_array_equal(pixels(sent), drawn)
    assert answer.size == "64x64"
    assert answer.output_format == "png"
    with opened(base64.b64decode(answer.data[1].b64_json), "it") as image:
        told = record_of(image).own
    assert (told["prompt"], told["seed"], told["index"]) == ("a dog", "7", "1")


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"output_format": "webp"}, "WEBP"),
        ({"output_format": "jpeg", "output_compression": 50}, "JPEG"),
    ],
)
def test_formats(client, given, kind):
    answer = client.images.generate(
        prompt="a dog", size="64x64", extra_body={"num_inference_steps": 2}, **given
    )
    found = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert (found.format, found.size) == (kind, (64, 64))


def test_links_are_signed_and_expire(client, running, monkeypatch):
    answer = client.images.generate(prompt="a dog", response_format="url", extra_body=SMALL)
    link = answer.data[0].url
    content = urllib.request.urlopen(link).read()
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    for wrong in (
        re.sub(r"expires=\d+", "expires=99999999999", link),
        link[:-1] + ("0" if link[-1] != "0" else "1"),
        link.partition("?")[0],
        link.replace("signature=", "signature=%ff"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(wrong)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(link)


def test_a_stream_shows_partial_images(client, model):
    events = list(
        client.images.generate(
            prompt="a dog", stream=True, partial_images=2, extra_body={**SMALL, "sampler": "ddim"}
        )
    )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1]
    assert pixels(events[0]).shape == (64, 64, 3)
    expected = model("a dog", sampler="ddim", **SMALL).pixels[0]
    np.testing.assert_array_equal(pixels(events[-1]), expected)


def file(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return "sent.png", content.getvalue(), "image/png"


def test_edits(client, model):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    grey = np.tri(64, dtype=np.uint8) * 255
    mask = image.convert("RGBA")
    mask.putalpha(Image.fromarray(255 - grey))
    options = {"num_inference_steps": 6, "seed": 3, "guidance_scale": 4.0, "strength": 0.9}
    answer = client.images.edit(
        image=file(image), mask=file(mask), prompt="a dog", extra_body=options
    )
    expected = model("a dog", image=image, mask=Image.fromarray(grey), **options)
    np.testing.assert_array_equal(pixels(answer.data[0]), expected.pixels[0])
    events = list(
        client.images.edit(image=file(image), prompt="a dog", stream=True, partial_images=1)
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"quality": "hd"}, "quality"),
        ({"style": "vivid"}, "style"),
        ({"background": "transparent"}, "background"),
        ({"size": "65x64"}, "width"),
        ({"size": "large"}, "size"),
        ({"size": "64x64", "extra_body": {"width": 64}}, "size"),
        ({"n": 99}, "n"),
        ({"partial_images": 2}, "partial_images"),
        ({"output_compression": 50}, "output_compression"),
        ({"extra_body": {"steps": 3}}, "steps"),
        ({"extra_body": {"sampler": "no such"}}, "sampler"),
        ({"extra_body": {"num_inference_steps": 100000}}, "num_inference_steps"),
        ({"extra_body": {"timeout": -1}}, "timeout"),
        ({"extra_body": {"strength": 0.5}}, "strength"),
        ({"prompt": "a" * 5000}, "prompt"),
    ],
)
def test_what_cannot_be_honoured_is_named(client, given, field):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(**{"prompt": "a dog", **given})
    assert refused.value.param == field
    assert field in refused.value.message


def test_a_deadline_that_cannot_be_met_is_refused_at_once(client):
    start = time.monotonic()
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.generate(
            prompt="a dog", extra_body={"timeout": 0.05, "num_inference_steps": 200}
        )
    assert refused.value.status_code == 504
    # However idle the server is, it takes longer.
    assert "retry-after-ms" not in refused.value.response.headers
    assert time.monotonic() - start < 2


def test_a_client_that_leaves_frees_its_place(running):
    body = b'{"prompt": "a dog", "num_inference_steps": 200}'
    for stream in (b"", b', "stream": true'):
        sent = body[:-1] + stream + b"}"
        with running.connect() as connection:
            connection.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: "
                + f"{len(sent)}\r\n\r\n".encode()
                + sent
            )
            scheduler = running.service.models.loaded["emoji"].scheduler
            while not scheduler.running:
                time.sleep(0.002)
        start = time.monotonic()
        running.until_idle()
        assert time.monotonic() - start < 1
