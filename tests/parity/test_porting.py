"""Programs for diffusers, run as written with diffusers and here."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

import bksdm
from bksdm import RequestError, TextToImage
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.samplers import NAMED

from ..lora_files import random_lora

pytestmark = pytest.mark.filterwarnings("ignore")

PAGE = (Path(__file__).parents[2] / "docs" / "porting.md").read_text(encoding="utf-8")
SAME, REFUSED = "*same*", "–"


def table_rows():
    """Return the cells of every row: old line, new line and what differs."""
    lines = [
        line for line in PAGE.splitlines() if line.startswith("| ") and "diffusers |" not in line
    ]
    rows = [
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]
    return [
        [cell[1:-1] if cell.startswith("`") else cell for cell in row[:2]] + row[2:] for row in rows
    ]


def snippets():
    return re.findall(r"```python\n(.*?)```", PAGE, re.S)


ROWS = table_rows()
CONTROLLED = (
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
)


def smooth(seed):
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


def hole():
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 20:] = 255
    return Image.fromarray(mask)


EMBEDS = torch.randn((1, 77, 32), generator=torch.Generator().manual_seed(0))
INPUTS = {
    "prompt": "a red apple",
    "picture": smooth(0),
    "mask": hole(),
    "torch": torch,
    "np": np,
    "bksdm": bksdm,
}


@pytest.fixture(scope="module")
def loaded(nano_checkpoint, nano_bundle):
    theirs = StableDiffusionPipeline.from_pretrained(nano_checkpoint)
    theirs.set_progress_bar_config(disable=True)
    return theirs, TextToImage.load(nano_bundle)


@pytest.fixture(scope="module")
def with_control(controlled, tmp_path_factory):
    """Diffusers' three pipelines with a ControlNet, and a model that has it alone."""
    checkpoint, nets, bundle = controlled
    base = StableDiffusionControlNetPipeline.from_pretrained(
        checkpoint, controlnet=ControlNetModel.from_pretrained(nets["canny"])
    )
    parts = {**base.components, "requires_safety_checker": False}
    theirs = [base, *(kind(**parts) for kind in CONTROLLED[1:])]
    for pipeline in theirs:
        pipeline.set_progress_bar_config(disable=True)
    ignored = shutil.ignore_patterns("engines", "controlnet_depth", "controlnet_shuffle")
    one = shutil.copytree(bundle, tmp_path_factory.mktemp("one") / "controlled", ignore=ignored)
    names = ("control", "control_image_to_image", "control_inpaint")
    return dict(zip(names, theirs, strict=True)), dict.fromkeys(names, TextToImage.load(one)), one


@pytest.fixture
def names(loaded, with_control, controlled, nano_checkpoint, nano_bundle, tmp_path, monkeypatch):
    """What the lines of the page use, for diffusers and for us."""
    (tmp_path / "nano-checkpoint").symlink_to(nano_checkpoint)
    (tmp_path / "nano").symlink_to(nano_bundle)
    (tmp_path / "controlled-checkpoint").symlink_to(controlled[0])
    (tmp_path / "edges-net").symlink_to(controlled[1]["canny"])
    (tmp_path / "controlled").symlink_to(with_control[2])
    random_lora(Bundle.open(nano_bundle), tmp_path / "style.safetensors", kind=r"to_[qkv]$")
    monkeypatch.chdir(tmp_path)
    pipe, ours = loaded
    pipe.disable_attention_slicing()
    # Lines that state no number of steps would take diffusers' fifty.
    for kind in (
        StableDiffusionPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionInpaintPipeline,
        *CONTROLLED,
        TextToImage,
    ):
        function = inspect.unwrap(kind.__call__)
        few = tuple(6 if value == 50 else value for value in function.__defaults__)
        monkeypatch.setattr(function, "__defaults__", few)
    pipe.scheduler = diffusers.PNDMScheduler.from_config(
        {**ours.bundle.scheduler, "_class_name": "PNDMScheduler"}
    )
    changing = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    painting = StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    embeds = EMBEDS[:, :, :1].expand(1, 77, pipe.unet.config.cross_attention_dim)
    schedulers = {
        name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")
    }
    common = {**INPUTS, "embeds": embeds, **schedulers}
    return (
        {
            **common,
            **with_control[0],
            "ControlNetModel": ControlNetModel,
            "StableDiffusionControlNetPipeline": StableDiffusionControlNetPipeline,
            "pipe": pipe,
            "img2img": changing,
            "inpaint": painting,
            "StableDiffusionPipeline": StableDiffusionPipeline,
            "StableDiffusionImg2ImgPipeline": StableDiffusionImg2ImgPipeline,
            "StableDiffusionInpaintPipeline": StableDiffusionInpaintPipeline,
        },
        {
            **common,
            **with_control[1],
            "pipe": ours,
            "img2img": ours,
            "inpaint": ours,
            "StableDiffusionPipeline": TextToImage,
            "TextToImage": TextToImage,
        },
    )


def value_of(code, names):
    """Run code, and return the value of its last line: an expression, or what is assigned."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if not isinstance(last, (ast.Expr, ast.Assign)):
        exec(compile(tree, "line", "exec"), names)
        return None
    tree.body[-1] = ast.Assign([ast.Name("_last", ast.Store())], last.value)
    tree.body.append(ast.parse("None").body[0])
    if isinstance(last, ast.Assign):
        tree.body[-1] = ast.Assign(last.targets, ast.Name("_last", ast.Load()))
    exec(compile(ast.fix_missing_locations(tree), "line", "exec"), names)
    return names["_last"]


def arrays(value):
    """Return the arrays that are in a value."""
    if isinstance(value, Image.Image):
        return [np.asarray(value, float)]
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return [np.asarray(value, float)]
    if isinstance(value, (list, tuple)):
        return [array for entry in value for array in arrays(entry)]
    return []


def assert_same(found, expected):
    """Within a level of 8-bit pixels; what is not rounded within a 50th of one."""
    found, expected = arrays(found), arrays(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        rounded = theirs.max() > 50
        assert np.abs(ours - theirs).max() <= (1 if rounded else 8e-5)
        assert theirs.std() > (1 if rounded else 1e-3), "the comparison needs a picture"


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:60] for row in ROWS])
def test_every_line_of_the_page_runs_as_it_is_written(names, row):
    theirs, ours = names
    old, new, differs = row
    if new == REFUSED:
        assert differs
        with pytest.raises((RequestError, AttributeError)) as caught:
            value_of(old, ours)
        words = re.findall(r"\w+", old)
        assert any(word in str(caught.value) for word in words[1:])
        return
    expected = value_of(old, theirs)
    found = value_of(old if new == SAME else new, ours)
    assert_same(found, expected)
    assert bool(arrays(expected)) == ("prompt" in old)


@pytest.mark.parametrize("code", snippets())
def test_every_snippet_of_the_page_runs_as_it_is_written(names, code):
    theirs, ours = names
    assert_same(value_of(code, ours), value_of(code, theirs))


def test_the_page_has_lines_of_every_kind():
    assert len(ROWS) > 30
    kinds = {SAME: 0, REFUSED: 0}
    for _, new, _ in ROWS:
        kinds[new] = kinds.get(new, 0) + 1
    assert kinds[SAME] > 15
    assert kinds[REFUSED] > 8


PROGRAMS = {
    "one generator for two calls": """
generator = torch.Generator("cpu").manual_seed(11)
first = pipe(prompt, num_inference_steps=3, generator=generator, output_type="np").images
second = pipe(prompt, num_inference_steps=3, generator=generator, output_type="np").images
result = [first, second, torch.randn(9, generator=generator)]
""",
    "a list of generators for two calls": """
generators = [torch.Generator("cpu").manual_seed(s) for s in (1, 2)]
result = [
    pipe(["a cat", "a dog"], num_inference_steps=3, generator=generators, output_type="np").images
    for _ in range(2)
]
""",
    "image to image, then inpainting, of one generator": """
generator = torch.Generator("cpu").manual_seed(5)
first = img2img(prompt=prompt, image=picture, strength=0.7, num_inference_steps=5,
                generator=generator, output_type="np").images
second = inpaint(prompt=prompt, image=picture, mask_image=mask, height=64, width=64,
                 num_inference_steps=4, generator=generator, output_type="np").images
result = [first, second, torch.randn(20, generator=generator)]
""",
    "a callback that changes all it can": """
seen = []
def change(pipe, index, timestep, tensors):
    seen.append((index, float(timestep), sorted(tensors)))
    latents, embeds = tensors["latents"], tensors["prompt_embeds"]
    if index == 1:
        tensors["latents"] = latents * 0.8 + 0.1
    if index == 2:
        latents[:, 2] = 0.25
    if index == 3:
        tensors["prompt_embeds"] = embeds * 1.1
        tensors["negative_prompt_embeds"] = tensors["negative_prompt_embeds"] * 0
        pipe._guidance_scale = 3.0
    if index == 4:
        return {"latents": tensors["latents"] * 1.2}
    return tensors
made = pipe(prompt, num_inference_steps=6, generator=torch.Generator().manual_seed(2),
            num_images_per_prompt=2, negative_prompt="fog", output_type="np",
            callback_on_step_end=change, callback_on_step_end_tensor_inputs=[
                "latents", "prompt_embeds", "negative_prompt_embeds"])
result = [made.images, torch.tensor([(i, t, len(names)) for i, t, names in seen])]
""",
    "guidance that a callback turns on": """
both = None
def remember(pipe, index, timestep, tensors):
    global both
    both = tensors["prompt_embeds"]
    return tensors
pipe(prompt, num_inference_steps=1, callback_on_step_end=remember,
     callback_on_step_end_tensor_inputs=["prompt_embeds"])
def turn_on(pipe, index, timestep, tensors):
    if index == 1:
        pipe._guidance_scale = 6.0
        tensors["prompt_embeds"] = both
    return tensors
result = pipe(prompt, num_inference_steps=4, guidance_scale=1.0, output_type="np",
              generator=torch.Generator().manual_seed(2), callback_on_step_end=turn_on,
              callback_on_step_end_tensor_inputs=["prompt_embeds"]).images
""",
    "inpainting with a callback": """
def change(pipe, index, timestep, tensors):
    return {"latents": tensors["latents"] * (0.7 if index == 1 else 1)}
result = inpaint(prompt=prompt, image=picture, mask_image=mask, height=64, width=64, strength=0.8,
                 num_inference_steps=6, generator=torch.Generator().manual_seed(4),
                 callback_on_step_end=change, output_type="np").images
""",
    "image to image that is interrupted": """
def stop(pipe, index, timestep, tensors):
    if index == 1:
        pipe._interrupt = True
        return {"latents": tensors["latents"] * 0.5}
    return tensors
result = img2img(prompt=prompt, image=picture, num_inference_steps=6, output_type="np",
                 generator=torch.Generator().manual_seed(4), callback_on_step_end=stop).images
""",
    "interrupted through the pipeline itself": """
def stop(_, index, timestep, tensors):
    pipe._interrupt = index >= 2
    return tensors
first = pipe(prompt, num_inference_steps=6, generator=torch.Generator().manual_seed(4),
             callback_on_step_end=stop, output_type="np").images
second = pipe(prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(4),
              output_type="np").images
result = [first, second]
""",
    "embeddings beside a negative text, two of them": """
embeds = torch.cat([embeds, embeds * 0.5])
result = pipe(prompt_embeds=embeds, negative_prompt=["fog", "rain"], num_inference_steps=3,
              num_images_per_prompt=2, generator=torch.Generator().manual_seed(2),
              output_type="np").images
""",
    "negative embeddings beside a text": """
result = pipe(prompt, negative_prompt_embeds=embeds, num_inference_steps=3, output_type="np",
              generator=torch.Generator().manual_seed(2)).images
""",
    "embeddings of two parts of 77 tokens": """
long = torch.cat([embeds, embeds * 0.5], dim=1)
result = pipe(prompt_embeds=long, negative_prompt_embeds=-long, num_inference_steps=3,
              generator=torch.Generator().manual_seed(2), output_type="np").images
""",
    "latents in, latents out": """
latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(9))
result = pipe([prompt, "a house"], num_inference_steps=3, latents=latents.half().float(),
              output_type="latent", return_dict=False)[0]
""",
    "by name and by position": """
result = pipe(prompt, 72, 64, 4, None, None, 3.0, "fog", 2, 0.0, torch.Generator().manual_seed(1),
              None, None, None, None, None, "np", False, None, 0.5, None)[0]
""",
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_make_the_same(names, program):
    theirs, ours = names
    exec(PROGRAMS[program], theirs)
    exec(PROGRAMS[program], ours)
    assert_same(ours["result"], theirs["result"])


CHANGED = """
def change(pipe, index, timestep, tensors):
    latents = tensors["latents"]
    if index in (1, 3, 4):
        tensors["latents"] = latents * 0.9 + 0.1 * index
    return tensors
result = pipe("a cat", num_inference_steps=6, generator=torch.Generator().manual_seed(8),
              callback_on_step_end=change, output_type="np", **sampler).images
"""


@pytest.mark.parametrize(
    "name",
    [
        "pndm",
        "ddim",
        "euler",
        "dpm++2m",
        "unipc",
        "heun",
        "euler-a",
        "dpm++2s",
        "lms",
        "lcm",
        "deis",
        "kdpm2",
        "ddpm",
        "dpm++2m-sde",
    ],
)
def test_latents_that_a_callback_changes_by_sampler(names, name):
    theirs, ours = names
    class_name, fields = NAMED[name]
    config = {**ours["pipe"].bundle.scheduler, **fields}
    theirs["pipe"].scheduler = getattr(diffusers, class_name).from_config(config)
    for side, extra in ((theirs, {}), (ours, {"sampler": name})):
        side["sampler"] = extra
        exec(CHANGED, side)
    assert_same(ours["result"], theirs["result"])


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMED
        if "-karras" not in name and "-exponential" not in name and "-beta" not in name
    ],
)
def test_a_sampler_draws_as_much_as_in_diffusers(names, name):
    """So that the next call with the same generator starts where it starts there."""
    theirs, ours = names
    class_name, fields = NAMED[name]
    config = {**ours["pipe"].bundle.scheduler, **fields}
    theirs["pipe"].scheduler = getattr(diffusers, class_name).from_config(config)
    left = []
    for side, extra in ((theirs, {}), (ours, {"sampler": name})):
        generator = torch.Generator().manual_seed(1)
        side["pipe"]("x", num_inference_steps=3, generator=generator, guidance_scale=1.0, **extra)
        left.append(generator.get_state())
    assert torch.equal(*left)


def parameters(function):
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "kwargs")
    }


def test_the_arguments_are_diffusers_own_in_their_order():
    ours, theirs = parameters(TextToImage.__call__), parameters(StableDiffusionPipeline.__call__)
    positional = [name for name, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)
    for name, parameter in theirs.items():
        default = parameter.default
        wanted = tuple(default) if isinstance(default, list) else default
        assert ours[name].default == wanted, name
    for other in (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, *CONTROLLED):
        assert set(parameters(other.__call__)) <= set(ours)
    assert all(p.kind is p.KEYWORD_ONLY for name, p in ours.items() if name not in theirs)
