"""A client of A1111's WebUI draws with the server."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
import requests
import webuiapi
from PIL import Image, ImageFilter

OPTIONS = {"width": 64, "height": 64, "steps": 4, "seed": 7}


@pytest.fixture(scope="module")
def client(running):
    return webuiapi.WebUIApi(baseurl=f"{running.url}/sdapi/v1")


def noise(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((64, 64))


def test_txt2img_counts_seeds_up_as_the_webui_does(client, model):
    found = client.txt2img(
        prompt="a (red:1.2) apple", negative_prompt="green", batch_size=2, n_iter=1, **OPTIONS
    )
    expected = model(
        "a (red:1.2) apple",
        negative_prompt="green",
        num_images_per_prompt=2,
        seed=[7, 8],
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=7.0,
        sampler="euler-a",
        prompt_weights=True,
    )
    for sent, drawn in zip(found.images, expected.pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(sent), drawn)
    assert found.info["all_seeds"] == [7, 8]
    assert "Sampler: Euler a" in found.info["infotexts"][0]
    assert found.parameters["steps"] == 4


def test_samplers_and_schedules(client, model):
    found = client.txt2img(prompt="a dog", sampler_name="DPM++ 2M", scheduler="Karras", **OPTIONS)
    assert found.info["sampler_name"] == "dpm++2m-karras"
    assert "DPM++ 2M" in client.util_get_sampler_names()
    assert "karras" in client.util_get_scheduler_names()
    for name in client.util_get_sampler_names():
        entry = client.txt2img(prompt="a dog", sampler_name=name, **{**OPTIONS, "steps": 5})
        assert entry.images


def test_img2img_with_a_mask_and_soft_edges(client, model):
    image, mask = noise(), Image.fromarray(np.tri(64, dtype=np.uint8) * 255)
    options = {"prompt": "a dog", "denoising_strength": 0.8, **OPTIONS, "steps": 6}
    drawn = model(
        "a dog",
        image=image,
        mask=mask,
        strength=0.8,
        seed=7,
        num_inference_steps=6,
        guidance_scale=7.0,
        sampler="euler-a",
    ).images[0]
    soft = mask.filter(ImageFilter.GaussianBlur(3))
    masked = {"mask_image": mask, "inpainting_fill": 1, "inpaint_full_res": False}
    found = client.img2img(images=[image], mask_blur=3, **masked, **options)
    expected = Image.composite(drawn, image, soft)
    np.testing.assert_array_equal(np.asarray(found.image), np.asarray(expected))
    inverted = client.img2img(
        images=[image], mask_blur=0, inpainting_mask_invert=1, **masked, **options
    )
    assert not np.array_equal(np.asarray(inverted.image), np.asarray(found.image))
    alone = client.img2img(images=[image], **options)
    assert alone.image.size == (64, 64)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"enable_hr": True}, "enable_hr"),
        ({"restore_faces": True}, "restore_faces"),
        ({"styles": ["x"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"save_images": True}, "save_images"),
        ({"alwayson_scripts": {"ControlNet": {}}}, "alwayson_scripts"),
        ({"override_settings": {"sd_vae": "x"}}, "override_settings"),
        ({"override_settings": {"sd_model_checkpoint": "x"}}, "sd_model_checkpoint"),
        ({"sampler_name": "no such"}, "sampler_name"),
        ({"prompt": "a dog <lora:x:1>"}, "loras"),
        ({"prompt": "a dog <lora:x:1:0.5>"}, "prompt"),
        ({"prompt": "a dog <hypernet:x:1>"}, "prompt"),
        ({"prompt": "a dog", "negative_prompt": "<lora:x:1>"}, "prompt"),
        ({"eta": 0.5}, "eta"),
        ({"batch_size": 99}, "num_images_per_prompt"),
    ],
)
def test_what_cannot_be_honoured_is_named(client, given, field):
    with pytest.raises(RuntimeError) as refused:
        client.txt2img(**{"prompt": "a dog", **OPTIONS, **given})
    status, text = refused.value.args
    assert status == 422
    assert json.loads(text)["detail"][0]["loc"] == ["body", field]


def test_fields_of_masks_that_cannot_be_honoured_are_named(client):
    with pytest.raises(RuntimeError, match="inpaint_full_res"):
        client.img2img(images=[noise()], mask_image=noise(1), **OPTIONS)
    with pytest.raises(RuntimeError, match="inpainting_fill"):
        client.img2img(images=[noise()], mask_image=noise(1), inpaint_full_res=False, **OPTIONS)
    with pytest.raises(RuntimeError, match="init_images"):
        client.img2img(images=[], **OPTIONS)


def test_progress_and_interrupt(client):
    drawn = []
    options = {**OPTIONS, "steps": 200}
    thread = threading.Thread(
        target=lambda: drawn.append(client.txt2img(prompt="a dog", **options))
    )
    assert client.get_progress()["progress"] == 0
    thread.start()
    while not (told := client.get_progress())["current_image"]:
        time.sleep(0.01)
    assert 0 < told["progress"] < 1
    assert told["state"]["sampling_steps"] == 200
    client.interrupt()
    thread.join(20)
    assert drawn[0].images
    assert client.get_progress()["state"]["job_count"] == 0


def test_models_options_and_what_open_webui_does(client, running):
    assert client.util_get_model_names() == ["emoji"]
    assert client.util_get_current_model() == "emoji"
    options = requests.get(f"{running.url}/sdapi/v1/options").json()
    sent = requests.post(f"{running.url}/sdapi/v1/options", json=options)
    assert sent.status_code == 200
    refused = requests.post(f"{running.url}/sdapi/v1/options", json={"sd_vae": "x"})
    assert (refused.status_code, refused.json()["detail"][0]["loc"][1]) == (422, "sd_vae")
    drawn = requests.post(
        f"{running.url}/sdapi/v1/txt2img",
        json={
            "prompt": "a dog",
            "batch_size": 1,
            "width": 64,
            "height": 64,
            "negative_prompt": None,
            "steps": 4,
        },
    )
    assert len(drawn.json()["images"]) == 1


def test_png_info(client, model, running):
    found = client.txt2img(prompt="a dog", **OPTIONS)
    told = client.png_info(found.image)
    assert told.info.startswith("a dog\nSteps: 4, Sampler: Euler a")
    body = {"image": found.json["images"][0]}
    read = requests.post(f"{running.url}/sdapi/v1/png-info", json=body).json()
    assert read["parameters"]["Seed"] == "7"
    assert read["items"]["bksdm:sampler"] == "euler-a"
