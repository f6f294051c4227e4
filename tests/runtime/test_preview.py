"""What the model sees behind the noise, and how it is shown without the VAE."""

from __future__ import annotations

import json
import shutil

import diffusers
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.errors import BundleError
from bksdm.export.preview import fit_preview, random_pictures
from bksdm.models import EMOJI
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.preview import Preview
from bksdm.runtime.samplers import NAMED, step_table

CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        "ddpm",
        "euler",
        "euler-karras",
        "euler-a",
        "lms",
        "heun",
        "kdpm2",
        "kdpm2-beta",
        "kdpm2-a",
    ],
)
def test_the_predicted_original_is_that_of_diffusers(name, prediction_type):
    """In float64; diffusers rounds its levels to float32, and what it makes of them once more."""
    class_name, fields = NAMED[name]
    config = {**CONFIG, "prediction_type": prediction_type}
    scheduler = getattr(diffusers, class_name).from_config({**config, **fields})
    scheduler.set_timesteps(7)
    table = step_table(config, 7, name)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    x = x * table.init_noise_sigma
    for k, timestep in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, timestep)
        output = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        result = scheduler.step(output, timestep, x)
        first, second = table.denoised[k]
        found = first * x.numpy() + second * output.numpy()
        expected = result.pred_original_sample.numpy()
        np.testing.assert_allclose(found, expected, rtol=3e-6, atol=3e-6 * np.abs(expected).max())
        x = result.prev_sample.double()


def test_the_last_step_of_eulers_method_is_the_picture():
    """Its last step goes along ε to σ = 0, which is what x̂_0 is."""
    model, steps = TextToImage.load(EMOJI), []
    arguments = {"num_inference_steps": 6, "sampler": "euler", "seed": 0}
    result = model("a red apple", on_step=steps.append, **arguments)
    np.testing.assert_allclose(steps[-1].denoised, steps[-1].latents, rtol=0, atol=2e-5)
    decoded = model.decode(steps[-1].denoised)
    assert np.abs(decoded.astype(int) - result.pixels).max() <= 1
    early, late = (
        np.abs(model.decode(steps[k].denoised).astype(float) - result.pixels).mean() for k in (0, 4)
    )
    assert late < early


def test_the_preview_of_a_finished_picture_is_near_it():
    model, steps = TextToImage.load(EMOJI), []
    result = model("a red apple", on_step=steps.append, seed=0)
    small = model.preview(steps[-1].latents)
    side, factor = model.bundle.sample_size, model.bundle.vae_scale
    assert small.shape == (1, side, side, 3)
    blocks = result.pixels.reshape(1, side, factor, side, factor, 3).mean(axis=(2, 4))
    error = np.sqrt(np.mean((small - blocks) ** 2))
    # Measured when it was fitted, on other pictures; a picture of one colour is 60 and more off.
    assert error < 2 * model.preview.rms_error
    assert error < 0.5 * np.sqrt(np.mean((blocks - blocks.mean(axis=(1, 2))) ** 2))


def _linear_vae(folder, matrix):
    """An encoder that averages and mixes colours, and a decoder that undoes it."""
    inverse = np.linalg.pinv(matrix)
    graphs = {
        "vae_encoder": (
            "sample",
            ["n", 3, "h", "w"],
            "latent_parameters",
            np.concatenate([matrix, matrix]),
            lambda out, weight: [
                helper.make_node(
                    "AveragePool", ["sample"], ["mean"], kernel_shape=[8, 8], strides=[8, 8]
                ),
                helper.make_node("Conv", ["mean", weight], [out]),
            ],
        ),
        "vae_decoder": (
            "latent_sample",
            ["n", 4, "h", "w"],
            "sample",
            inverse,
            lambda out, weight: [
                helper.make_node("Conv", ["latent_sample", weight], ["mixed"]),
                helper.make_node("Resize", ["mixed", "", "scales"], [out], mode="nearest"),
            ],
        ),
    }
    for name, (feed, shape, out, weight, nodes) in graphs.items():
        constants = [
            numpy_helper.from_array(weight[:, :, None, None].astype(np.float32), "weight"),
            numpy_helper.from_array(np.array([1, 1, 8, 8], np.float32), "scales"),
        ]
        graph = helper.make_graph(
            nodes(out, "weight"),
            name,
            [helper.make_tensor_value_info(feed, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["n", len(weight), "a", "b"])],
            constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        model.ir_version = 10
        (folder / name).mkdir()
        onnx.save(model, folder / name / "model.onnx")


def test_the_fit_finds_a_vae_that_is_linear(tmp_path):
    matrix = np.random.default_rng(1).standard_normal((4, 3))
    _linear_vae(tmp_path, matrix)
    fit = fit_preview(tmp_path, channels=4, factor=8, scaling=0.2)
    # Latents are the matrix times colours, so the map is only known on what it reaches.
    np.testing.assert_allclose(np.array(fit.weights) @ matrix * 0.2, np.eye(3), atol=1e-4)
    np.testing.assert_allclose(fit.bias, 0, atol=1e-5)
    assert fit.rms_error < 0.01
    assert fit.explained > 0.9999


def test_random_pictures_have_colours_and_every_scale():
    pictures = random_pictures(3, 64)
    assert pictures.shape == (3, 3, 64, 64)
    assert np.abs(pictures).max() <= 1
    spectrum = np.abs(np.fft.fft(pictures, axis=3)).mean(axis=(0, 1, 2))[:32]
    assert spectrum[1] > spectrum[8] > spectrum[24] > 0


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "missing; export the bundle anew"),
        ({"weights": [[1, 2, 3, 4]] * 2, "bias": [0, 0, 0], "rms_error": 1}, "damaged"),
        ({"weights": [[1, 2, 3, 4]] * 3, "bias": [0, 0, 0]}, "damaged"),
        ({"weights": [[1, 2, 3, float("nan")]] * 3, "bias": [0] * 3, "rms_error": 1}, "NaN"),
        ({"weights": [[1, 2, 3, 4]] * 3, "bias": [1e39] * 3, "rms_error": 1}, "NaN"),
        ({"weights": [[1, 2, 3, 10**400]] * 3, "bias": [0] * 3, "rms_error": 1}, "damaged"),
        ({"weights": [[1, 2, 3, 4]] * 3, "bias": [0] * 3, "rms_error": float("nan")}, "NaN"),
    ],
)
def test_a_missing_or_damaged_preview_is_named(tmp_path, content, named):
    (tmp_path / "vae_decoder").mkdir()
    if content is not None:
        (tmp_path / "vae_decoder" / "preview.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=named):
        Preview.read(tmp_path, 4)


def test_an_export_has_a_preview(nano_bundle, tmp_path):
    assert Preview.read(nano_bundle, 4).weights.shape == (3, 4)
    folder = tmp_path / "without"
    shutil.copytree(nano_bundle, folder)
    (folder / "vae_decoder" / "preview.json").unlink()
    with pytest.raises(BundleError, match="missing"):
        _ = TextToImage.load(folder).preview
