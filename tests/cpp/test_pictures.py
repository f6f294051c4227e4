"""Pictures of the C++ library beside Python's, of the same engine, through the C interface."""

from __future__ import annotations

import io
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

import bksdm
from bksdm import TextToImage
from bksdm.models import EMOJI
from bksdm.optimize.quantizing import quantize_bundle
from bksdm.optimize.saving import save_openvino
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.bundle_tables import WantedTable, write_tables
from bksdm.runtime.images import open_picture
from bksdm.runtime.picture_record import record_of
from bksdm.runtime.samplers.names import NAMED
from bksdm.storage.processor import computes_bfloat16

from .library import BUNDLE, CANCELLED, ENGINE, REQUEST, Failed, Library

STEPS = 5
# One name of every file in runtime/samplers, and the model's own.
FAMILIES = ("ddim", "ddpm", "deis", "dpm++2m-karras", "dpm++2m-sde", "dpm++2s", "euler", "euler-a")
FAMILIES += ("heun", "kdpm2-a", "lcm", "lms", "pndm", "tcd", "unipc")


@pytest.fixture(scope="module")
def library(built):
    return Library(built.library)


@pytest.fixture(scope="module")
def tabled(bundle):
    """The bundle with the tables of all of these."""
    opened = Bundle.open(bundle)
    for sampler in ("default", *FAMILIES):
        write_tables(opened, WantedTable.read(f"{sampler}:{STEPS}:image"))
    return bundle


@pytest.fixture(scope="module")
def model(library, tabled):
    found = library.open(tabled, threads=1)
    yield found
    found.close()


@pytest.fixture(scope="module")
def python(tabled):
    return TextToImage.load(tabled, engine="openvino", threads=1)


@pytest.fixture(scope="module")
def apple(python):
    """A picture to start from."""
    return python("a red apple", num_inference_steps=STEPS, seed=3).images[0]


def alike(found, wanted):
    """At most one level: the last bits of float32 are summed in another order."""
    assert found.shape == wanted.shape
    away = np.abs(found.astype(int) - wanted)
    assert away.max() <= 1
    assert (away > 0).mean() < 0.01


@pytest.mark.parametrize("sampler", FAMILIES)
@pytest.mark.parametrize("start", ["text", "image", "mask"])
def test_every_family_of_samplers(model, python, apple, sampler, start):
    assert sampler in NAMED
    given, images = {}, {}
    if start != "text":
        given = {"image": apple, "strength": 0.7}
        images = {"image": np.asarray(apple), "strength": 0.7}
    if start == "mask":
        mask = np.zeros((128, 128), np.uint8)
        mask[:, 64:] = 255
        given["mask"], images["mask"] = Image.fromarray(mask), mask
    wanted = python(
        "a blue car", num_inference_steps=STEPS, sampler=sampler, seed=11, **given
    ).pixels
    found, _ = model.generate("a blue car", (11,), sampler=sampler, steps=STEPS, **images)
    alike(found, wanted)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}),
        ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
        ({"guidance_interval": (0.2, 0.7)}, {"guidance_start": 0.2, "guidance_end": 0.7}),
        ({"negative_prompt": "red"}, {"negative_prompt": "red"}),
        ({"height": 96, "width": 160}, {"height": 96, "width": 160}),
        ({"num_images_per_prompt": 3}, {"images": 3}),
        ({"num_images_per_prompt": 2, "seed": (5, 6)}, {"images": 2, "seeds": (5, 6)}),
        ({"seed": 2**64 - 1}, {"seeds": (2**64 - 1,)}),
    ],
)
def test_options_and_what_the_file_says_of_them(model, python, tmp_path, options, values):
    asked = {"seed": 4, **options}
    from bksdm.runtime.picture_formats import PictureFormat
    from bksdm.runtime.recorded import Recorder

    prompt = 'a "red" apple, (ripe)'
    result = python(prompt, num_inference_steps=STEPS, **asked)
    found, files = model.generate(prompt, **{"seeds": (4,), **values}, steps=STEPS)
    alike(found, result.pixels)
    recorder = Recorder(python.bundle, {}, {}, PictureFormat())
    for index, content in enumerate(files):
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            np.testing.assert_array_equal(np.asarray(image), found[index])
            record = record_of(image)
        wanted = recorder.record(result.config, index, result)
        assert record.own == dict(wanted.own)
        assert record.a1111 == wanted.a1111


@pytest.mark.parametrize("start", ["image", "mask"])
def test_several_images_of_one_picture(model, python, apple, start):
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 32:96] = 255
    given = {"mask": Image.fromarray(mask)} if start == "mask" else {}
    images = {"mask": mask} if start == "mask" else {}
    for seeds in ((7,), (7, 8)):
        wanted = python(
            "a dog",
            image=apple,
            num_inference_steps=STEPS,
            num_images_per_prompt=2,
            seed=seeds if len(seeds) > 1 else seeds[0],
            **given,
        ).pixels
        found, _ = model.generate(
            "a dog", seeds, image=np.asarray(apple), steps=STEPS, images=2, **images
        )
        alike(found, wanted)


def test_refusals_have_a_code_and_say_what_to_do(library, model, bundle, tmp_path):
    for values, told in (
        ({"steps": 49}, "--table default:49"),
        ({"steps": STEPS, "sampler": "no-such"}, "no such table"),
        ({"steps": STEPS, "height": 7}, "height must be a multiple of 8"),
        ({"steps": STEPS, "images": 0}, "images must be"),
    ):
        with pytest.raises(Failed, match=told) as failed:
            model.generate("a dog", **values)
        assert failed.value.code == REQUEST
    with pytest.raises(Failed, match=r"model_index\.json is missing") as failed:
        library.open(tmp_path)
    assert failed.value.code == BUNDLE
    with pytest.raises(Failed, match="without the engine") as failed:
        library.open(bundle, engine="tensorrt")
    assert failed.value.code == ENGINE
    assert library.calls.bksdm_version().decode() == bksdm.__version__


def test_a_callback_cancels_and_the_model_goes_on(model):
    seen = []

    def stop(done, total):
        seen.append((done, total))
        return done < 2

    with pytest.raises(Failed, match="cancelled") as failed:
        model.generate("a dog", steps=STEPS, on_step=stop)
    assert failed.value.code == CANCELLED
    assert seen == [(1, STEPS + 1), (2, STEPS + 1)]
    assert model.generate("a dog", steps=STEPS)[0].shape == (1, 128, 128, 3)


def test_threads_share_a_model(model):
    alone = [model.generate("a dog", (seed,), steps=STEPS)[0] for seed in range(4)]
    found = {}

    def draw(number):
        found[number] = model.generate("a dog", (number % 4,), steps=STEPS)[0]

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        np.testing.assert_array_equal(found[number], alone[number % 4])


def test_pngs_are_what_other_programs_read(model, tmp_path):
    _, (content,) = model.generate("ein Äpfelchen 🍎", steps=STEPS)
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert open_picture(path).size == (128, 128)
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.text["bksdm:prompt"] == "ein Äpfelchen 🍎"


@pytest.mark.slow
def test_a_float16_bundle(library, nano_bundle_fp16, tmp_path):
    """Inputs and outputs of its networks are float16."""
    folder = tmp_path / "bundle"
    shutil.copytree(nano_bundle_fp16, folder)
    opened = Bundle.open(folder)
    save_openvino(opened, folder / "engines")
    write_tables(opened, WantedTable.read("euler-a:4:image"))
    model = library.open(folder, threads=1)
    python = TextToImage.load(folder, engine="openvino", threads=1)
    asked = {"num_inference_steps": 4, "sampler": "euler-a", "seed": 1}
    wanted = python("a dog", **asked)
    alike(model.generate("a dog", (1,), steps=4, sampler="euler-a")[0], wanted.pixels)
    image = wanted.images[0]
    again = python("a dog", image=image, **asked).pixels
    given = {"steps": 4, "sampler": "euler-a", "image": np.asarray(image)}
    alike(model.generate("a dog", (1,), **given)[0], again)
    model.close()


def drawn(library, folder, **options):
    """Pixels, and what the file says that the UNet computed in."""
    model = library.open(folder, threads=1, **options)
    pixels, (content,) = model.generate("a dog", (3,), steps=STEPS)
    model.close()
    with Image.open(io.BytesIO(content)) as image:
        return pixels, image.text["bksdm:precision"]


def close(found, wanted, decibels):
    error = np.square(found.astype(float) - wanted).mean()
    assert error < 255**2 / 10 ** (decibels / 10)


def test_a_quantised_bundle_is_drawn_and_recorded_as_in_python(library, tmp_path):
    folder = tmp_path / "int8"
    quantize_bundle(EMOJI, folder, ["a dog"], steps=1)
    opened = Bundle.open(folder)
    save_openvino(opened, folder / "engines")
    write_tables(opened, WantedTable.read(f"default:{STEPS}"))
    asked = {"num_inference_steps": STEPS, "seed": 3}
    python = TextToImage.load(folder, engine="openvino", threads=1)("a dog", **asked)
    found, precision = drawn(library, folder)
    assert precision == python.precision == "int8"
    # Sums in another order fall to another of the 256 levels here and there.
    close(found, python.pixels, 40)
    exact = TextToImage.load(EMOJI, engine="openvino", threads=1)("a dog", **asked)
    assert (found != exact.pixels).any()


@pytest.mark.skipif(not computes_bfloat16(), reason="the processor does not compute bfloat16")
def test_bfloat16_is_recorded_as_in_python(library, tabled):
    found, precision = drawn(library, tabled, precision="bf16")
    asked = {"num_inference_steps": STEPS, "seed": 3}
    exact = TextToImage.load(tabled, engine="openvino", threads=1)("a dog", **asked)
    assert precision == "bfloat16"
    assert (found != exact.pixels).any()
    close(found, exact.pixels, 34)


def test_a_precision_of_no_meaning_is_refused(library, tmp_path):
    folder = tmp_path / "emoji"
    shutil.copytree(EMOJI, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_quantized": 8}))
    with pytest.raises(Failed, match="_quantized is no object") as failed:
        library.open(folder)
    assert failed.value.code == BUNDLE
