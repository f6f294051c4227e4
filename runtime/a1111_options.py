"""A picture's options in A1111's words, and A1111's words as options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bksdm.engines.errors import SamplerError
from bksdm.runtime.a1111 import A1111Text
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.lora.use import LoraUse
from bksdm.runtime.noise import CPU, CUDA
from bksdm.runtime.samplers.names import NAMED, sampler_name
from bksdm.runtime.samplers.sampler import SPACINGS

SAMPLERS = {
    "ddim": "DDIM",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m-sde": "DPM++ 2M SDE",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "kdpm2": "DPM2",
    "kdpm2-a": "DPM2 a",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "unipc": "UniPC",
}
"""A1111's names of samplers, by ours without the spacing of noise levels."""
AUTOMATIC = {
    "DPM++ 2M": "Karras",
    "DPM++ SDE": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM2": "Karras",
    "DPM2 a": "Karras",
}
"""What the schedule type Automatic is, where it is not even spacing."""
# Without a meaning here, or for the picture.
SILENT = ("Model hash", "Version", "Batch size", "Batch pos", "User", "Emphasis", "RNG")
# One strength for all networks; a second one, for the UNet alone, is not known here.
_LORA = re.compile(r"<(?:lora|lyco):([^<>:]+)(?::(-?\d*\.?\d+))?>")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
_MARKS = re.compile(r"[()\[\]]")
_EDITING = re.compile(r"\[[^\[\]]*[:|][^\[\]]*\]|\bBREAK\b|\bAND\b")
# Beyond what surely fits into 77 tokens, of which A1111 leaves out none.
_LONG = 50


def a1111_text(
    config: GenerationConfig, index: int, scheduler: Mapping[str, Any], model: str, version: str
) -> str:
    """Return what A1111's WebUI would write of an image of a batch.

    Parameters
    ----------
    config : GenerationConfig
        As it was carried out.
    index : int
        Of the image in the batch.
    scheduler : mapping
        The model's own, which draws where no sampler was asked for.
    model, version : str
        The bundle's name, and this program's version.
    """
    which = index // config.num_images_per_prompt
    prompt, negative = config.prompts[which], config.negative_prompts[which]
    seed = config.seed[index] if isinstance(config.seed, tuple) else config.seed
    sampler, spacing = a1111_sampler(config.sampler, scheduler)
    in_batch = config.images > 1 and not isinstance(config.seed, tuple)
    literal = not config.prompt_weights and _MARKS.search(prompt + negative)
    settings = {
        "Steps": config.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": spacing,
        "CFG scale": f"{config.guidance_scale!r}".removesuffix(".0"),
        "Seed": seed,
        "Size": f"{config.width}x{config.height}",
        "Model": re.sub("[,:\n]", "", model),
        "Denoising strength": config.strength,
        "Clip skip": config.clip_skip + 1 if config.clip_skip else None,
        "Batch size": config.images if in_batch else None,
        "Batch pos": index if in_batch else None,
        "Eta DDIM": config.eta if config.eta and sampler == "DDIM" else None,
        # Whose noise a seed means, and whether brackets are weights.
        "RNG": "CPU" if config.noise == CPU else "NV",
        "Emphasis": "None" if literal else None,
        "Version": f"bksdm-runtime {version}",
    }
    stated = {name: str(value) for name, value in settings.items() if value is not None}
    marks = [f"<lora:{use.name}:{use.scale}>" for use in config.loras or ()]
    return str(A1111Text(" ".join([prompt, *marks]), negative, stated))


def options_of(text: A1111Text) -> tuple[dict[str, Any], list[str]]:
    """Return options by name, and in words what none of them can say.

    Values are not checked; what is no number where one belongs counts as what cannot be said.
    """
    settings = dict(text.settings)
    options: dict[str, Any] = {}
    lost: list[str] = []
    sampler = settings.pop("Sampler", "")
    spacing = settings.pop("Schedule type", "")
    if sampler:
        try:
            options["sampler"] = _sampler(sampler, spacing)
        except SamplerError:
            lost.append(f"Sampler: {' '.join(filter(None, (sampler, spacing)))}")
    size = re.fullmatch(r"(\d{1,9})x(\d{1,9})", settings.get("Size", ""))
    if size is not None:
        options["width"], options["height"] = int(size[1]), int(size[2])
        del settings["Size"]
    for name, option, kind in NUMBERS:
        if name in settings:
            try:
                options[option] = kind(settings[name])
            except ValueError:
                continue
            del settings[name]
    options["clip_skip"] = max(0, options.pop("clip_skip", 1) - 1)
    strength = settings.pop("Denoising strength", None)
    if strength is not None and not any(name.startswith("Hires") for name in settings):
        lost.append(f"Denoising strength: {strength}, with a picture to start from")
    # Without a word, it is the GPU's, which NV imitates.
    if settings.get("RNG", "GPU") != "CPU" and "seed" in options:
        options["noise"] = CUDA
    prompt = _LORA.sub("", text.prompt)
    strengths: dict[str, float] = {}
    for found in _LORA.finditer(text.prompt):
        strengths[found[1].strip()] = strengths.get(found[1].strip(), 0.0) + float(found[2] or 1)
    if strengths:
        options["loras"] = tuple(LoraUse(name, scale) for name, scale in strengths.items())
    for name, written in (("prompt", prompt), ("negative_prompt", text.negative_prompt)):
        lost += [*_NETWORK.findall(written), *_EDITING.findall(written)]
        options[name] = _NETWORK.sub("", written).strip()
    both = options["prompt"] + options["negative_prompt"]
    if settings.get("Emphasis", "Original") != "None" and _MARKS.search(both):
        options["prompt_weights"] = True
    longest = max(options["prompt"], options["negative_prompt"], key=len)
    if len(re.findall(r"\w+|[^\w\s]", longest)) > _LONG:
        options["long_prompt"] = True
    settings.pop("Model", None)
    lost += [f"{name}: {value}" for name, value in settings.items() if name not in SILENT]
    return options, lost


NUMBERS = (
    ("Steps", "num_inference_steps", int),
    ("CFG scale", "guidance_scale", float),
    ("Seed", "seed", int),
    ("Clip skip", "clip_skip", int),
    ("Eta DDIM", "eta", float),
)
"""Names of A1111, the options that they are, and what these hold."""


def a1111_sampler(sampler: str | None, scheduler: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return A1111's names of a sampler and of its spacing; None where there is no choice.

    Parameters
    ----------
    sampler : str or None
        One of ours; None is the model's own.
    scheduler : mapping
        The model's own.
    """
    return _spelled(sampler or _own_sampler(scheduler))


def _spelled(sampler: str) -> tuple[str, str | None]:
    """Return A1111's names of a sampler and of its spacing; None where there is no choice."""
    base, _, spacing = sampler.rpartition("-")
    if spacing in SPACINGS:
        return SAMPLERS.get(base, base), spacing.capitalize()
    even = "Uniform" if f"{sampler}-{SPACINGS[0]}" in NAMED else None
    return SAMPLERS.get(sampler, sampler), even


def _own_sampler(scheduler: Mapping[str, Any]) -> str:
    """Return our name of a model's own sampler, or its class's where that has none."""
    own = str(scheduler.get("_class_name"))
    for name, (class_name, stated) in NAMED.items():
        if class_name == own and all(scheduler.get(k, False) == v for k, v in stated.items()):
            return name
    return own.removesuffix("Scheduler")


def _sampler(name: str, spacing: str) -> str:
    chosen = AUTOMATIC.get(name, "") if spacing == "Automatic" else spacing
    plain = chosen.lower() in ("", "uniform", "automatic")
    return sampler_name(name if plain else f"{name} {chosen}")
