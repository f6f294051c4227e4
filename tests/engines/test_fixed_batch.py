"""Bundles of one fixed number of rows draw what others draw."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from PIL import Image

from bksdm.engines.errors import BundleError
from bksdm.engines.fixed_batch import with_any_batch
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.registry import cpu_engines
from bksdm.models import EMOJI
from bksdm.runtime.pipeline import TextToImage

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def fixed(request, nano_bundle, tmp_path_factory):
    """A bundle with graphs for so many rows."""
    folder = tmp_path_factory.mktemp("fixed") / "nano"
    shutil.copytree(nano_bundle, folder, ignore=shutil.ignore_patterns("engines"))
    for component in COMPONENTS:
        path = folder / component / "model.onnx"
        proto = onnx.load(path, load_external_data=False)
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = request.param
        path.write_bytes(proto.SerializeToString())
    return folder


OPTIONS = [
    {"num_images_per_prompt": 3},
    {"guidance_scale": 1.0},
    {"fast": 1},
    {"clip_skip": 1},
    {"image": Image.new("RGB", (64, 64), "red")},
]


@pytest.mark.parametrize(
    ("engine", "options"),
    [
        ("onnxruntime", OPTIONS),
        *((engine, OPTIONS[:1]) for engine in cpu_engines() if engine != "onnxruntime"),
        # It compiles for a second for every network and shape.
        pytest.param("openvino", OPTIONS[1:], marks=pytest.mark.slow),
    ],
)
def test_pictures_are_the_same(nano_bundle, fixed, engine, options):
    pytest.importorskip(engine)
    usual, model = (TextToImage.load(path, engine, threads=1) for path in (nano_bundle, fixed))
    for option in options:
        common = {"num_inference_steps": 2, "height": 64, "width": 64, "seed": 1}
        if "image" in option:
            common |= {"num_inference_steps": 4, "strength": 0.5}
        expected = usual("a red apple", **common, **option).pixels.astype(int)
        found = model("a red apple", **common, **option).pixels.astype(int)
        # Sums are taken in another order where there are other numbers of rows.
        assert np.abs(found - expected).max() <= 1


def test_an_engine_for_any_number_is_left_alone():
    spec = TensorSpec(np.dtype(np.float32), ("batch", 4))
    engine = SimpleNamespace(inputs={"x": spec}, outputs={"y": spec})
    assert with_any_batch(engine, "unet") is engine


def rename_output(folder, name, slots=None):
    path = folder / "vae_encoder" / "model.onnx"
    proto = onnx.load(path, load_external_data=False)
    output = proto.graph.output[0]
    for node in proto.graph.node:
        node.output[:] = [name if old == output.name else old for old in node.output]
    output.name = name
    if slots:
        proto.graph.node.extend(
            [onnx.helper.make_node("Slice", [name, "starts", "ends", "axes"], ["drawn"])]
        )
        for constant, value in (("starts", 0), ("ends", slots), ("axes", 1)):
            tensor = onnx.numpy_helper.from_array(np.array([value]), constant)
            proto.graph.initializer.append(tensor)
        output.name = "drawn"
        output.type.tensor_type.shape.dim[1].dim_value = slots
    path.write_bytes(proto.SerializeToString())


@pytest.fixture
def emoji(tmp_path):
    folder = tmp_path / "emoji"
    shutil.copytree(EMOJI, folder, ignore=shutil.ignore_patterns("train", "vae", "classifier"))
    return folder


IMAGE = {
    "image": Image.new("RGB", (64, 64), "red"),
    "num_inference_steps": 4,
    "strength": 0.5,
    "seed": 0,
}


def test_a_distribution_by_an_older_name_is_read(emoji):
    expected = TextToImage.load(emoji, threads=1)("a", **IMAGE).pixels
    rename_output(emoji, "latent_sample")
    np.testing.assert_array_equal(TextToImage.load(emoji, threads=1)("a", **IMAGE).pixels, expected)


def test_a_sample_in_place_of_a_distribution_is_refused(emoji):
    rename_output(emoji, "latent_sample", slots=4)
    with pytest.raises(BundleError, match="vae_encoder: drawn has 4 channels"):
        TextToImage.load(emoji, threads=1)("a", **IMAGE)
