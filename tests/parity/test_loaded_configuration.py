"""Configurations as diffusers' pipelines load them, and the pictures that come of it."""

from __future__ import annotations

import inspect
import json
import shutil
from functools import partial
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from bksdm.engines.errors import BundleError, ExportError, RequestError, SamplerError
from bksdm.export import exporter
from bksdm.export.dummy import unet_config, vae_config
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.loaded_configuration import (
    CLASS_DEFAULTS,
    INPAINTING,
    UNSET,
    loaded_sample_size,
    loaded_scheduler,
    scheduler_fields,
    written_scheduler,
)
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.samplers import DIFFUSERS_CLASSES, NAMED, step_table

from .pictures import assert_same_pictures, pictures

pytestmark = [
    # The pipelines say each time what they mend, and schedulers use NumPy as of old.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PIPELINES = {
    "noise": StableDiffusionPipeline,
    "image": StableDiffusionImg2ImgPipeline,
    "masked image": StableDiffusionInpaintPipeline,
}
PRIVATE = {"_class_name", UNSET, INPAINTING}
ABSENT = object()


def edit(path, drop=(), **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in drop}))


@pytest.fixture(scope="module")
def networks(nano_checkpoint):
    """What every pipeline here has in common, and need not load again."""
    base = StableDiffusionPipeline.from_pretrained(nano_checkpoint)
    return {name: getattr(base, name) for name in ("vae", "text_encoder", "unet", "tokenizer")}


@pytest.fixture(scope="module")
def base_config(nano_checkpoint):
    config = json.loads((nano_checkpoint / "scheduler" / "scheduler_config.json").read_text())
    return {name: value for name, value in config.items() if name not in CLASS_DEFAULTS}


def write_scheduler(folder, class_name, file):
    """Let a checkpoint or bundle have another scheduler."""
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(file))
    edit(folder / "model_index.json", scheduler=["diffusers", class_name])


def open_pipelines(folder, networks):
    opened = {
        start: kind.from_pretrained(folder, safety_checker=None, **networks)
        for start, kind in PIPELINES.items()
    }
    for pipeline in opened.values():
        pipeline.set_progress_bar_config(disable=True)
    return opened


def test_defaults_are_those_of_diffusers_constructors():
    for name, defaults in CLASS_DEFAULTS.items():
        found = {}
        for class_name in DIFFUSERS_CLASSES:
            parameters = inspect.signature(getattr(diffusers, class_name)).parameters
            if name in parameters:
                found[class_name] = parameters[name].default
        assert found == defaults, name


def assert_same_configuration(scheduler, fields):
    """What a scheduler has is what is stated, or else its class's default."""
    class_name = type(scheduler).__name__
    for name, defaults in CLASS_DEFAULTS.items():
        ours = fields.get(name, defaults.get(class_name, ABSENT))
        assert scheduler.config.get(name, ABSENT) == ours, (class_name, name)
    for name in set(fields) - PRIVATE:
        assert scheduler.config[name] == fields[name], (class_name, name)


OTHERS = ("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler")
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "_class_name": st.sampled_from(sorted(DIFFUSERS_CLASSES)),
        "steps_offset": st.sampled_from([0, 1, 2, True]),
        "clip_sample": st.sampled_from([True, False, None]),
        "skip_prk_steps": st.booleans(),
        UNSET: st.lists(st.sampled_from([*CLASS_DEFAULTS, "beta_end"]), max_size=2),
    },
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(DIFFUSERS_CLASSES)), FIELDS)
@example("PNDMScheduler", {})
@example("DDIMScheduler", {})
@example("PNDMScheduler", {"steps_offset": 0, "clip_sample": True, "skip_prk_steps": False})
def test_schedulers_are_loaded_as_by_each_pipeline(
    nano_checkpoint, networks, base_config, tmp_path_factory, class_name, changes
):
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copyfile(nano_checkpoint / "model_index.json", folder / "model_index.json")
    file = {**base_config, "_class_name": class_name, **changes}
    loaded = loaded_scheduler(file, class_name)
    assert loaded_scheduler(loaded, class_name) == loaded
    exported = written_scheduler(loaded)
    assert loaded_scheduler(exported, class_name) == loaded
    # The file as it was, and as an export writes it.
    for written in (file, exported):
        write_scheduler(folder, class_name, written)
        for start, pipeline in open_pipelines(folder, networks).items():
            scheduler = pipeline.scheduler
            assert type(scheduler).__name__ == class_name
            assert_same_configuration(scheduler, scheduler_fields(loaded, start, None))
            for other in OTHERS:
                switched = getattr(diffusers, other).from_config(scheduler.config)
                assert_same_configuration(switched, scheduler_fields(loaded, start, "any"))


SCHEDULERS = {
    "nothing stated": ("PNDMScheduler", {}),
    "old Stable Diffusion": (
        "PNDMScheduler",
        {"steps_offset": 0, "clip_sample": True, "skip_prk_steps": False},
    ),
    "another class": ("EulerDiscreteScheduler", {"steps_offset": 1, "skip_prk_steps": True}),
    "clips by default": ("DDIMScheduler", {"_class_name": "DDIMScheduler"}),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_timesteps_equal_those_of_each_pipeline(
    nano_checkpoint, networks, base_config, tmp_path, case
):
    class_name, changes = SCHEDULERS[case]
    shutil.copyfile(nano_checkpoint / "model_index.json", tmp_path / "model_index.json")
    file = {**base_config, **changes}
    write_scheduler(tmp_path, class_name, file)
    loaded, compared = loaded_scheduler(file, class_name), 0
    for start, pipeline in open_pipelines(tmp_path, networks).items():
        for sampler in (None, "euler", "pndm"):
            scheduler = pipeline.scheduler
            if sampler is not None:
                kind, fields = NAMED[sampler]
                scheduler = getattr(diffusers, kind).from_config(scheduler.config, **fields)
            scheduler.set_timesteps(10)
            try:
                table = step_table(scheduler_fields(loaded, start, sampler), 10, sampler)
            except SamplerError:
                # Clipping is no linear map: refused where diffusers would clip.
                assert scheduler.config.clip_sample
                continue
            np.testing.assert_allclose(table.timesteps, scheduler.timesteps.numpy(), atol=1e-4)
            compared += 1
    assert compared >= 8


@pytest.fixture(scope="module")
def open_quickly(nano_bundle):
    """Open a bundle whose networks are nano's; these are loaded once."""
    shared = TextToImage.load(nano_bundle)
    return lambda folder: TextToImage(Bundle.open(folder), shared.executor, shared._encoder)


def copy_bundle(nano_bundle, folder):
    return shutil.copytree(nano_bundle, folder, ignore=shutil.ignore_patterns("engines"))


def export_small_files(checkpoint, nano_bundle, folder):
    """Write what an export of nano writes beside its networks, and nano's networks."""
    shutil.copytree(
        nano_bundle, folder, ignore=shutil.ignore_patterns("engines", "scheduler", "tokenizer")
    )
    exporter._copy_small_files(checkpoint, folder, [])
    return folder


def arguments_of(start):
    """What ours and diffusers' pipelines are given."""
    if start == "noise":
        return {}, {}
    colours = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    image = Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC)
    if start == "image":
        return ({"image": image, "strength": 0.7},) * 2
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 64, 40))
    return (
        {"image": image, "mask": mask},
        {"image": image, "mask_image": mask, "height": 64, "width": 64},
    )


@pytest.mark.parametrize("case", ["old Stable Diffusion", "another class", "clips by default"])
def test_pictures_of_mended_schedulers(
    nano_checkpoint, nano_bundle, networks, base_config, open_quickly, tmp_path, case
):
    class_name, changes = SCHEDULERS[case]
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    foreign = copy_bundle(nano_bundle, tmp_path / "foreign")
    for folder in (checkpoint, foreign):
        write_scheduler(folder, class_name, {**base_config, **changes})
    exported = export_small_files(checkpoint, nano_bundle, tmp_path / "exported")
    drawn = set()
    for start, pipeline in open_pipelines(checkpoint, networks).items():
        ours, theirs = arguments_of(start)
        config = pipeline.scheduler.config
        refused = None
        if class_name == "DDIMScheduler" and config.clip_sample:
            refused = "clip_sample"
        if start == "image" and config.get("skip_prk_steps") is False:
            refused = "skip_prk_steps"
        if not refused:
            expected = pictures(pipeline, "a house", seed=3, num_inference_steps=4, **theirs)
        for bundle in (foreign, exported):
            draw = partial(open_quickly(bundle), "a house", seed=3, num_inference_steps=4, **ours)
            if refused:
                with pytest.raises(SamplerError, match=refused):
                    draw()
            else:
                assert_same_pictures(draw().pixels, expected)
                drawn.add(start)
    assert "noise" in drawn
    assert len(drawn) >= 2


@pytest.mark.parametrize("class_name", ["DDIMScheduler", "PNDMScheduler", "LCMScheduler"])
def test_a_stated_clipping_is_loaded_from_a_bundle_as_from_its_checkpoint(
    nano_checkpoint, nano_bundle, networks, base_config, tmp_path, class_name
):
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    write_scheduler(checkpoint, class_name, {**base_config, "clip_sample": True})
    exported = export_small_files(checkpoint, nano_bundle, tmp_path / "exported")
    found, expected = (
        {
            start: pipeline.scheduler.config.get("clip_sample", ABSENT)
            for start, pipeline in open_pipelines(folder, networks).items()
        }
        for folder in (exported, checkpoint)
    )
    assert found == expected == {"noise": False, "image": False, "masked image": True}


def test_an_export_writes_the_mended_values(nano_checkpoint, base_config, tmp_path, monkeypatch):
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    write_scheduler(checkpoint, "DDIMScheduler", {**base_config, "steps_offset": 0})
    edit(checkpoint / "unet" / "config.json", _diffusers_version="0.8.1")
    nothing = SimpleNamespace(passed=True, explained=1.0, rms_error=0.0)
    for name in ("load_network", "write_graph", "references", "compare", "write_preview"):
        monkeypatch.setattr(exporter, name, lambda *arguments: nothing)
    exporter.export(checkpoint, tmp_path / "bundle")
    written = tmp_path / "bundle" / "scheduler" / "scheduler_config.json"
    fields = json.loads(written.read_text())
    assert {name: fields[name] for name in ("_class_name", "steps_offset", "clip_sample")} == {
        "_class_name": "DDIMScheduler",
        "steps_offset": 1,
        "clip_sample": False,
    }
    unet = tmp_path / "bundle" / "unet" / "config.json"
    assert json.loads(unet.read_text())["sample_size"] == 64


@pytest.mark.parametrize("entry", [[None, None], ["own_schedulers", "DDIMScheduler"], None])
def test_an_index_without_a_scheduler_is_refused(nano_checkpoint, nano_bundle, tmp_path, entry):
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    bundle = copy_bundle(nano_bundle, tmp_path / "bundle")
    for folder in (checkpoint, bundle):
        edit(folder / "model_index.json", scheduler=entry)
    with pytest.raises(BundleError, match=r"model_index.json: scheduler must name a class"):
        Bundle.open(bundle)
    with pytest.raises(ExportError, match=r"model_index.json: scheduler must name a class"):
        exporter.export(checkpoint, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("size", [8, 63, 64, [8, 8]])
@pytest.mark.parametrize("version", ["0.8.0", "0.8.1.dev0", "0.9.0.dev0", "0.9", "0.10.2", None])
def test_small_unets_of_old_versions_grow(nano_checkpoint, networks, size, version):
    fields = {"sample_size": size, "_diffusers_version": version}
    config = UNet2DConditionModel.load_config(nano_checkpoint / "unet")
    config = {**config, **fields}
    if version is None:
        del config["_diffusers_version"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    pipeline = StableDiffusionPipeline(
        **{**networks, "unet": unet},
        scheduler=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    assert loaded_sample_size(config) == pipeline.unet.config.sample_size


def test_height_and_width_may_differ_by_default(
    nano_checkpoint, nano_bundle, open_quickly, tmp_path
):
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    bundle = copy_bundle(nano_bundle, tmp_path / "bundle")
    for folder in (checkpoint, bundle):
        edit(folder / "unet" / "config.json", sample_size=[8, 16], cross_attention_dim=[32] * 4)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    expected = pictures(pipeline, "a house", seed=1, num_inference_steps=2)
    assert expected.shape == (1, 64, 128, 3)
    found = open_quickly(bundle)("a house", seed=1, num_inference_steps=2).pixels
    assert_same_pictures(found, expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_cond_proj_dim": "wide"}, "time_cond_proj_dim"),
        ({"sample_size": [8, 8, 8]}, "sample_size"),
        ({"sample_size": None}, "sample_size"),
        ({"cross_attention_dim": [32, 64]}, "cross_attention_dim"),
    ],
)
def test_unets_that_the_pipeline_cannot_feed_are_refused(nano_bundle, tmp_path, changes, words):
    bundle = copy_bundle(nano_bundle, tmp_path / "bundle")
    edit(bundle / "unet" / "config.json", **changes)
    with pytest.raises(BundleError, match=f"unet/config.json: {words}"):
        Bundle.open(bundle)


@pytest.mark.slow
def test_eight_latent_channels_and_a_width_for_every_block(nano_checkpoint, tmp_path):
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = {**unet_config("nano"), "cross_attention_dim": [32] * 4, "sample_size": [8, 16]}
        UNet2DConditionModel(**{**unet, "in_channels": 8, "out_channels": 8}).save_pretrained(
            checkpoint / "unet"
        )
        AutoencoderKL(**{**vae_config("nano"), "latent_channels": 8}).save_pretrained(
            checkpoint / "vae"
        )
    exporter.export(checkpoint, tmp_path / "bundle")
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    ours = TextToImage.load(tmp_path / "bundle")
    arguments = {"seed": 1, "num_inference_steps": 3}
    expected = pictures(pipeline, "a house", **arguments)
    assert expected.shape == (1, 64, 128, 3)
    assert_same_pictures(ours("a house", **arguments).pixels, expected)
    # Of pictures, whose sizes are their own; the constructor compares the default's with a number.
    edit(checkpoint / "unet" / "config.json", sample_size=8)
    changing = StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint)
    changing.set_progress_bar_config(disable=True)
    mine, theirs = arguments_of("image")
    expected = pictures(changing, "a house", **arguments, **theirs)
    assert_same_pictures(ours("a house", **arguments, **mine).pixels, expected)
    with pytest.raises(RequestError, match="4 latent channels"):
        ours("a house", **arguments_of("masked image")[0])
