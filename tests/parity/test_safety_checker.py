"""The safety checker against diffusers': preprocessing, scores, decision, pictures."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from bksdm.cli import main
from bksdm.engines.errors import BundleError, ExportError, NonFiniteError
from bksdm.engines.protocol import TensorSpec
from bksdm.export import exporter
from bksdm.export.networks import NETWORKS
from bksdm.export.networks import SafetyChecker as CheckerNetwork
from bksdm.export.preview import Fit
from bksdm.export.source import has_safety_checker, weight_files
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.images import read_parameters
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.safety_checker import SafetyChecker, unfit

from .pictures import assert_same_pictures, pictures

SIDE = 32


def make_checker():
    """A checker of random weights, whose thresholds about half of all pictures pass."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    for embeddings in (checker.concept_embeds, checker.special_care_embeds):
        embeddings.data = torch.randn(embeddings.shape)
    return checker.eval()


@pytest.fixture(scope="module")
def checkpoint(nano_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked") / "checkpoint"
    shutil.copytree(nano_checkpoint, folder)
    make_checker().save_pretrained(folder / "safety_checker")
    extractor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    extractor.save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint):
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    # Thresholds that part these pictures: the middle of what they score.
    checker, scores = pipeline.safety_checker, []
    for seed in range(8):
        image = pipeline(
            "a cat",
            num_inference_steps=2,
            output_type="np",
            generator=torch.Generator().manual_seed(seed),
        ).images
        shown = pipeline.feature_extractor(pipeline.numpy_to_pil(image), return_tensors="pt")
        with torch.no_grad():
            embedding = checker.visual_projection(checker.vision_model(shown.pixel_values)[1])
        scores.append(torch.nn.functional.cosine_similarity(embedding, checker.concept_embeds))
    highest = torch.stack(scores)
    checker.concept_embeds_weights.data[:] = highest.max(dim=0).values + 1
    checker.special_care_embeds_weights.data[:] = 2.0
    # One concept decides; the gap that is cut through is the widest, so that rounding cannot.
    concept = int((highest.max(dim=0).values - highest.min(dim=0).values).argmax())
    ordered = highest[:, concept].sort().values
    gap = int((ordered[1:] - ordered[:-1]).argmax())
    checker.concept_embeds_weights.data[concept] = (ordered[gap] + ordered[gap + 1]) / 2
    checker.save_pretrained(checkpoint / "safety_checker")
    return pipeline


@pytest.fixture(scope="module")
def bundle(checkpoint, reference, nano_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked") / "bundle"
    # The other networks are those of another bundle; tracing is what takes the time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "kinds_of", lambda checkpoint, checker: (CheckerNetwork,))
        patch.setattr(exporter, "write_preview", lambda folder: Fit([[]], [], 0.0, 0.0))
        (row,) = exporter.export(checkpoint, folder)
    assert row.component == "safety_checker"
    assert row.passed
    for component in NETWORKS:
        name = component.component
        shutil.copytree(nano_bundle / name, folder / name, dirs_exist_ok=True)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_pictures_and_findings_equal_diffusers(reference, bundle):
    ours = TextToImage.load(bundle)
    seeds = list(range(8))
    arguments = {"num_inference_steps": 2, "num_images_per_prompt": 8}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    expected = reference("a cat", generator=generators, output_type="np", **arguments)
    found = ours("a cat", seed=seeds, **arguments)
    assert found.nsfw_content_detected == expected.nsfw_content_detected
    assert 0 < sum(found.nsfw_content_detected) < 8, "the comparison needs both"
    black = found.pixels[found.nsfw_content_detected]
    assert not black.any()
    assert "safety_checker" in found.seconds
    assert_same_pictures(found.pixels, (expected.images * 255).round().astype(np.uint8))


def test_nothing_is_checked_without_it(reference, bundle, nano_bundle):
    for model in (TextToImage.load(bundle, safety_checker=False), TextToImage.load(nano_bundle)):
        found = model("a cat", seed=0, num_inference_steps=2)
        assert found.nsfw_content_detected is None
        reference.safety_checker, checker = None, reference.safety_checker
        expected = pictures(reference, "a cat", seed=0, num_inference_steps=2)
        reference.safety_checker = checker
        assert_same_pictures(found.pixels, expected)


def test_an_unfit_picture_is_not_written(reference, bundle, tmp_path, capsys):
    found = TextToImage.load(bundle)(
        "a cat", seed=list(range(8)), num_inference_steps=2, num_images_per_prompt=8
    ).nsfw_content_detected
    command = ["generate", "a cat", "--model", str(bundle), "--steps", "2"]
    for flag in (True, False):
        seed, path = str(found.index(flag)), tmp_path / f"{flag}.png"
        film = path.with_suffix(".webp")
        steps = tmp_path / f"{flag}"
        code = main(
            [
                *command,
                "--seed",
                seed,
                "-o",
                str(path),
                "--animate",
                str(film),
                "--save-steps",
                str(steps),
            ]
        )
        assert film.exists() == path.exists() == any(steps.iterdir())
        assert (code, path.exists()) == ((1, False) if flag else (0, True))
        assert ("the safety checker found the picture unfit" in capsys.readouterr().err) == flag
        assert main([*command, "--seed", seed, "-o", str(path), "--no-safety-checker"]) == 0
        assert read_parameters(path)["safety_checker"] == "off"
    assert main([*command, "--seed", str(found.index(False)), "-o", str(path)]) == 0
    assert read_parameters(path)["safety_checker"] == "passed"


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (72, 200), (17, 31)])
def test_what_is_shown_equals_transformers(tmp_path, size):
    """Both divide and subtract in float32, in another order: a few units in the last place."""
    extractor = CLIPImageProcessor()
    extractor.save_pretrained(tmp_path)
    checker = SafetyChecker(engine_of(None, 224), tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = extractor(Image.fromarray(pixels), return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(checker.prepare(pixels), expected, rtol=0, atol=2e-6)


def engine_of(scores, side=SIDE):
    def run(feeds):
        return {"scores": np.asarray(scores, np.float32)[None]}

    run.inputs = {"clip_input": TensorSpec(np.dtype(np.float32), ("batch", 3, side, side))}
    return run


def test_the_decision_is_that_of_diffusers():
    """Similarities of a basis are the embedding itself; scores lie close around every rounding."""
    generator = torch.Generator().manual_seed(0)
    basis, seen = torch.eye(20), set()
    for _ in range(400):
        embedding = torch.randn(1, 20, generator=generator)
        cosine = torch.nn.functional.normalize(embedding)[0]
        # Thresholds a few thousandths off, on either side.
        thresholds = cosine + (torch.rand(20, generator=generator) * 24 - 2 - 0.3) / 1000
        checker = SimpleNamespace(
            vision_model=lambda x: (None, x),
            visual_projection=lambda x: x,
            special_care_embeds=basis[:3],
            special_care_embeds_weights=thresholds[:3],
            concept_embeds=basis[3:],
            concept_embeds_weights=thresholds[3:],
        )
        images = [np.ones((8, 8, 3))]
        _, (expected,) = StableDiffusionSafetyChecker.forward(checker, embedding, images)
        scores = (cosine - thresholds).numpy()
        assert unfit(scores) == expected
        seen.add((bool((scores[:3] > 0.0005).any()), expected))
    assert len(seen) >= 3


def test_damage_is_named(checkpoint, tmp_path):
    settings = json.loads((checkpoint / "feature_extractor/preprocessor_config.json").read_text())
    path = tmp_path / "preprocessor_config.json"
    for change, named in (
        ({"resample": 2}, "supported is 3"),
        ({"image_mean": [1]}, "damaged"),
        ({"size": {"height": 3}}, "damaged"),
        ({"size": 0}, "damaged"),
        ({"do_normalize": False}, "do_normalize is False, supported is True"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"crop_size": {"height": SIDE, "width": 8}}, "damaged"),
        ({"crop_size": 16, "size": 16}, f"the network takes {SIDE}"),
        ({"image_std": [0, 0, 0]}, "no mean and deviation"),
        ({"image_mean": [10**400] * 3}, "damaged"),
    ):
        path.write_text(json.dumps(settings | change))
        with pytest.raises(BundleError, match=named):
            SafetyChecker(engine_of(None), tmp_path)
    path.write_text(json.dumps(settings))
    checker = SafetyChecker(engine_of([np.nan] * 20), tmp_path)
    with pytest.raises(NonFiniteError, match="safety checker"):
        checker(np.zeros((1, 64, 64, 3), np.uint8))


def test_only_what_a_checkpoint_has_is_exported(nano_checkpoint, nano_bundle, checkpoint, tmp_path):
    assert not has_safety_checker(nano_checkpoint)
    assert not Bundle.open(nano_bundle).has_safety_checker
    assert has_safety_checker(checkpoint)
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    index = json.loads((other / "model_index.json").read_text())
    index["safety_checker"][1] = "SafeStableDiffusionChecker"
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ExportError, match="supported is StableDiffusionSafetyChecker"):
        has_safety_checker(other)
    shutil.rmtree(other / "safety_checker")
    assert not has_safety_checker(other)


def test_weights_are_fetched_only_if_they_are_wanted():
    files = {"safety_checker/model.safetensors", "safety_checker/pytorch_model.bin"}
    assert weight_files(files) == ["safety_checker/model.safetensors"]
    assert weight_files(files, safety_checker=False) == []
