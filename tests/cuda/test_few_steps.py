"""Tiny VAEs and UNets that take the guidance scale, in the loop on the simulated GPU."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.cli import main
from bksdm.export.dummy import create_dummy
from bksdm.export.exporter import export
from bksdm.export.prepared import Parts
from bksdm.export.verify import verify
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.plans import read_record

from .conftest import with_plans

# Each exports a bundle, which takes most of a minute.
pytestmark = pytest.mark.slow
SCALES = {"nano-lcm": (1.0, 7.5), "nano-sdxs": (0.0,)}
"""By the models. One that was distilled to a step has no guidance."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return the parts, the float16 export and the same with plans of a dummy model by its name."""
    made = {}

    def pair(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            # The tiny VAE of the one goes beside that of the other.
            for kind in SCALES:
                create_dummy(kind, folder / kind)
            parts = Parts(tiny_vae=folder / "nano-sdxs" if name == "nano-lcm" else None)
            export(folder / name, folder / "bundle", "float16", parts=parts)
            with_plans(folder / "bundle", folder / "built")
            made[name] = folder / name, parts, folder / "bundle", folder / "built"
        return made[name]

    return pair


@pytest.mark.parametrize("name", SCALES)
def test_pictures_are_those_of_the_cpu(load, exported, name):
    *_, bundle, built = exported(name)
    model, on_host = load(built), TextToImage.load(bundle)
    shown = []
    for vae in model.bundle.decoders:
        for scale in SCALES[name]:
            arguments = {"num_inference_steps": 3, "seed": 5, "guidance_scale": scale, "vae": vae}
            expected = on_host("a lighthouse", **arguments).pixels.astype(int)
            # The second picture comes from the recorded step alone.
            for _ in range(2):
                found = model("a lighthouse", **arguments).pixels.astype(int)
                # The GPU rounds every tensor to float16, the CPU what leaves a network.
                difference = np.abs(found - expected)
                assert difference.max() <= 2
                assert (difference <= 1).mean() > 0.99
            shown.append(found)
    assert all((one != shown[0]).any() for one in shown[1:])


def test_slots_have_scales_of_their_own(load, exported):
    """One session, whose slots are taken anew by a picture with another scale."""
    *_, bundle, built = exported("nano-lcm")
    model, on_host = load(built), TextToImage.load(bundle)
    for scale in (2.0, 9.0, 2.0):
        arguments = {"num_inference_steps": 2, "seed": [1, 2, 3], "guidance_scale": scale}
        found = model(["a", "b", "c"], **arguments).pixels.astype(int)
        assert np.abs(found - on_host(["a", "b", "c"], **arguments).pixels).max() <= 2


def test_image_to_image(load, exported):
    """A tiny VAE encoder makes latents, also on the GPU."""
    from PIL import Image

    *_, bundle, built = exported("nano-sdxs")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(noise).resize((64, 64))
    arguments = {"num_inference_steps": 4, "seed": 5, "image": image, "strength": 0.6}
    found = load(built)("a", **arguments).pixels.astype(int)
    assert np.abs(found - TextToImage.load(bundle)("a", **arguments).pixels).max() <= 2


def test_an_export_is_verified_with_its_parts(exported):
    checkpoint, parts, bundle, _ = exported("nano-lcm")
    report, passed = verify(bundle, checkpoint, parts=parts)
    assert passed
    assert "vae_decoder_tiny" in report
    from bksdm.engines.errors import ExportError

    with pytest.raises(ExportError, match="give --tiny-vae the folder"):
        verify(bundle, checkpoint)


@pytest.mark.parametrize("name", SCALES)
def test_tensorrt_builds_them(exported, name):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    *_, bundle, _ = exported(name)
    assert main(["build", str(bundle), "--engine", "tensorrt-rtx", "--target", "sm89"]) == 0
    (record,) = (bundle / "engines").glob("tensorrt-rtx*/engine.json")
    plans = read_record(record.parent)["plans"]
    plans.pop("kernels-sm89")
    kinds = {name: plan["tensors"].get("float", 0) for name, plan in plans.items()}
    expected = {"text_encoder": 4, "unet": 9, "vae_decoder": 0, "vae_encoder": 0}
    if name == "nano-lcm":
        expected["vae_decoder_tiny"] = 0
    # Float32 only on the timestep's path and in scalars of the text encoder.
    assert kinds == expected
