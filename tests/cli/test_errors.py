"""Bad input: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bksdm.cli import main
from bksdm.engines.errors import BksdmError, BundleError, RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.samplers import SAMPLERS, step_table
from bksdm.runtime.samplers.config import SchedulerConfig


def refuse(capsys, arguments, named):
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert named in error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--size", "60x64"], "multiple of 8"),
        (["--size", "0x64"], "width"),
        (["--size", "64"], "--size"),
        (["--steps", "0"], "num_inference_steps"),
        (["--steps", "1001"], "num_inference_steps"),
        (["--guidance", "nan"], "guidance_scale"),
        (["--guidance", "inf"], "guidance_scale"),
        (["--seed", "-1"], "seed"),
        (["--seed", str(2**64)], "seed"),
        (["--sampler", "magic"], "unknown sampler 'magic'"),
        (["--count", "0"], "num_images_per_prompt"),
        (["--engine", "abacus"], "onnxruntime"),
        (["--engine", "onnxruntime:cuda"], "onnxruntime-gpu"),
        (["--threads", "0"], "threads"),
    ],
)
def test_bad_arguments_write_nothing(nano_bundle, tmp_path, capsys, arguments, named):
    output = tmp_path / "x.png"
    command = ["generate", "x", "--model", nano_bundle, "-o", output, "--steps", "1", *arguments]
    error = refuse(capsys, command, named)
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "text", "bomb", "missing"])
def test_no_picture_to_start_from(nano_bundle, tmp_path, capsys, monkeypatch, damage):
    source = tmp_path / "in.png"
    Image.effect_noise((64, 64), 50).save(source)
    if damage == "cut":
        source.write_bytes(source.read_bytes()[:1500])
    elif damage == "text":
        source.write_text("no picture")
    elif damage == "bomb":
        # As a file of a few bytes that claims 180 million pixels would be.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    else:
        source.unlink()
    output = tmp_path / "out.png"
    command = ["generate", "x", "--model", nano_bundle, "-o", output, "--image", source]
    refuse(capsys, command, "in.png: not a readable picture")
    assert not output.exists()


def test_unwritable_output_is_refused_before_the_work(nano_bundle, tmp_path, capsys):
    command = ["generate", "x", "--model", nano_bundle, "-o", tmp_path / "no" / "x.png"]
    refuse(capsys, command, "cannot write")


def test_seed_zero_is_a_seed(nano_bundle):
    model = TextToImage.load(nano_bundle)
    first, second = (model("x", num_inference_steps=1, seed=0) for _ in range(2))
    assert first.seed == 0
    np.testing.assert_array_equal(first.pixels, second.pixels)


@pytest.fixture
def broken(nano_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(nano_bundle, folder)
    return folder


def test_empty_and_missing_folders(tmp_path, capsys):
    refuse(capsys, ["generate", "x", "--model", tmp_path], "model_index.json: missing")
    refuse(capsys, ["info", tmp_path / "nowhere"], "no such folder")


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_missing_and_truncated_graphs(broken, capsys, component):
    model = broken / component / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    refuse(capsys, ["generate", "x", "--model", broken], f"{component}/model.onnx")
    model.unlink()
    refuse(capsys, ["generate", "x", "--model", broken], "missing")


def test_missing_and_truncated_weights(broken, capsys):
    data = next(broken.glob("*/model.onnx.data"))
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    refuse(capsys, ["generate", "x", "--model", broken], data.parent.name)
    data.unlink()
    refuse(capsys, ["generate", "x", "--model", broken], data.parent.name)


def test_a_bundle_of_another_pipeline(broken, capsys):
    index = broken / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    refuse(capsys, ["generate", "x", "--model", broken], "StableDiffusionXLPipeline")


def test_a_checkpoint_in_place_of_a_bundle(nano_checkpoint, capsys):
    refuse(capsys, ["generate", "x", "--model", nano_checkpoint], "bksdm export")


def test_prompt_counts_and_latent_shapes(nano_bundle):
    model = TextToImage.load(nano_bundle)
    with pytest.raises(RequestError, match="negative_prompt has 2"):
        model(["a", "b", "c"], negative_prompt=["d", "e"])
    with pytest.raises(RequestError, match="shape"):
        model("a", latents=np.zeros((1, 4, 8, 9), np.float32))
    with pytest.raises(RequestError, match="NaN"):
        model("a", latents=np.full((1, 4, 8, 8), np.nan, np.float32))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3),
    max_leaves=4,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        sorted(
            {
                *vars(SchedulerConfig()),
                "_class_name",
                "clip_sample",
                "thresholding",
                "use_karras_sigmas",
            }
        )
    ),
    VALUES | st.sampled_from(["linear", "scaled_linear", "leading", "PNDMScheduler", 10, 0.01]),
)


@settings(max_examples=300, deadline=None)
@given(FIELDS, st.integers(-1, 20), st.sampled_from([None, *SAMPLERS]))
def test_scheduler_configs_give_a_finite_table_or_a_documented_error(fields, steps, sampler):
    try:
        table = step_table(fields, steps, sampler)
    except BksdmError:
        return
    assert np.isfinite(table.rows).all()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["model_index.json", "unet/config.json", "vae_decoder/config.json"]),
    st.dictionaries(
        st.sampled_from(["_class_name", "in_channels", "sample_size", "latent_channels",
                         "block_out_channels", "scaling_factor", "cross_attention_dim"]),
        VALUES | st.integers(min_value=10**20),
    ) | VALUES,
)  # fmt: skip
def test_bundle_json_is_accepted_or_refused_by_name(nano_bundle, tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("fuzz")
    for path in nano_bundle.rglob("*"):
        if path.is_file() and "engines" not in path.parts:
            target = folder / path.relative_to(nano_bundle)
            target.parent.mkdir(exist_ok=True, parents=True)
            target.symlink_to(path)
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(content))
    named = ""
    try:
        Bundle.open(folder)
    except BundleError as error:
        named = str(error)
    # The widths of two files can contradict each other; either may then be the one named.
    assert not named or str(folder) in named


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from(["--steps", "--guidance", "--seed", "--size", "--count", "--sampler",
                         "--threads", "--engine"]).flatmap(
            lambda flag: st.sampled_from(["0", "-1", "nan", "x", "1e9", "64x64", "", "９"]).map(
                lambda value: [flag, value])),
        min_size=1, max_size=3)
)  # fmt: skip
def test_command_lines_end_with_0_or_2(nano_bundle, tmp_path_factory, capsys, pairs):
    output = tmp_path_factory.mktemp("out") / "x.png"
    flat = [part for pair in pairs for part in pair]
    try:
        code = main(["generate", "x", "--model", str(nano_bundle), "-o", str(output),
                     "--steps", "1", *flat])  # fmt: skip
    except SystemExit as stop:
        code = stop.code
    assert code in (0, 2)
    assert (code == 0) == output.exists()
