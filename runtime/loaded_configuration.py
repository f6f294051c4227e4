"""Checkpoint configurations as diffusers' pipelines leave them once they are loaded.

Their constructors mend what old checkpoints say. The files alone are therefore not what a picture
is drawn with, and which fields are mended depends on the pipeline: ``StableDiffusionPipeline`` and
``StableDiffusionImg2ImgPipeline`` agree, ``StableDiffusionInpaintPipeline`` differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from bksdm.runtime.samplers import DIFFUSERS_CLASSES

Start = Literal["noise", "image", "masked image"]
"""The start of a picture, which decides which of diffusers' pipelines is compared."""

Fields = dict[str, object]

UNSET, INPAINTING = "_use_default_values", "_inpainting"
"""Private keys of a scheduler's configuration. The first is diffusers' own: fields that the
checkpoint leaves to the class, which another class must not inherit. The second holds what the
inpainting pipeline sees otherwise."""

CLASS_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "steps_offset": {
        name: 0 for name in DIFFUSERS_CLASSES if name != "DPMSolverSinglestepScheduler"
    },
    "clip_sample": {
        "DDIMScheduler": True,
        "DDPMScheduler": True,
        "HeunDiscreteScheduler": False,
        "LCMScheduler": False,
        "TCDScheduler": False,
    },
    "skip_prk_steps": {"PNDMScheduler": False},
}
"""Fields that are mended, with what each class of diffusers that has the field takes for it."""

_ABSENT = object()


def scheduler_class(index: Mapping[str, object]) -> str | None:
    """Return the class that ``model_index.json`` names for the scheduler, None if it names none.

    ``DiffusionPipeline.from_pretrained`` goes by the index, whatever ``_class_name`` of
    ``scheduler_config.json`` says.
    """
    entry = index.get("scheduler")
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "diffusers":
        return None
    return entry[1] if isinstance(entry[1], str) else None


def loaded_scheduler(file: Mapping[str, object], class_name: str) -> Fields:
    """Return a scheduler's configuration as the constructors of the pipelines leave it.

    What this returned, as in a bundle, it returns again.

    Parameters
    ----------
    file : mapping
        ``scheduler_config.json``.
    class_name : str
        Of the index.

    Returns
    -------
    dict
        What ``StableDiffusionPipeline`` sees. Where a field was mended that the file does not have,
        :data:`UNSET` lists it; :data:`INPAINTING` holds what another pipeline sees.

    Raises
    ------
    ValueError
        A private key is not what diffusers or ``bksdm export`` writes.
    """
    unset, inpainting = file.get(UNSET, []), file.get(INPAINTING, {})
    if not isinstance(unset, list) or not isinstance(inpainting, dict):
        raise ValueError(f"{UNSET} must be a list, {INPAINTING} an object")
    stated = {
        name: value
        for name, value in file.items()
        if name not in unset and name not in (UNSET, INPAINTING)
    }

    def found(name: str) -> object:
        return stated.get(name, CLASS_DEFAULTS[name].get(class_name, _ABSENT))

    mended: Fields = {}
    if found("steps_offset") not in (1, _ABSENT):
        mended["steps_offset"] = 1
    if found("clip_sample") is True:
        mended["clip_sample"] = False
        inpainting = {**inpainting, "clip_sample": True}
    if found("skip_prk_steps") is False:
        inpainting = {**inpainting, "skip_prk_steps": True}
    loaded: Fields = {**stated, "_class_name": class_name, **mended}
    if still_unset := sorted({*mended, *inpainting} - set(stated)):
        loaded[UNSET] = still_unset
    if inpainting:
        loaded[INPAINTING] = inpainting
    return loaded


def written_scheduler(loaded: Mapping[str, Any]) -> Fields:
    """Return what a bundle's ``scheduler_config.json`` has to say to be loaded as the checkpoint's.

    A stated ``clip_sample`` is kept: two of the pipelines mend it by themselves, and the
    inpainting one would take a mended value for the checkpoint's own.

    Parameters
    ----------
    loaded : mapping
        Of :func:`loaded_scheduler`, which makes the same of what this returns.
    """
    seen = dict(loaded.get(INPAINTING, {}))
    written: Fields = dict(loaded)
    if "clip_sample" in seen and "clip_sample" not in loaded.get(UNSET, ()):
        written["clip_sample"] = seen.pop("clip_sample")
        written.pop(INPAINTING)
        if seen:
            written[INPAINTING] = seen
    return written


def scheduler_fields(loaded: Mapping[str, Any], start: Start, sampler: str | None) -> Fields:
    """Return the configuration of the scheduler that a picture is drawn with.

    Parameters
    ----------
    loaded : mapping
        Of :func:`loaded_scheduler`.
    start : str
        What the picture is started from.
    sampler : str or None
        A sampler takes the place of the checkpoint's as in ``pipeline.scheduler =
        EulerDiscreteScheduler.from_config(pipeline.scheduler.config)``: what the checkpoint does
        not state is left to the new class, mended or not.
    """
    fields = {**loaded, **(loaded.get(INPAINTING, {}) if start == "masked image" else {})}
    left_out = {UNSET, INPAINTING, *(loaded.get(UNSET, ()) if sampler is not None else ())}
    return {name: value for name, value in fields.items() if name not in left_out}


def loaded_sample_size(unet: Mapping[str, object]) -> object:
    """Return ``sample_size`` of a UNet's ``config.json`` as the pipelines' constructors leave it.

    Below 64 it is taken for a mistake of diffusers before 0.9, and becomes 64.

    Parameters
    ----------
    unet : mapping
        ``config.json``; without ``_diffusers_version`` it is left alone.
    """
    size, version = unet.get("sample_size"), unet.get("_diffusers_version")
    text = version if isinstance(version, str) else ""
    release = re.match(r"v?(\d{1,9})(?:\.(\d{1,9}))?", text)
    old = release is not None and (int(release[1]), int(release[2] or 0)) < (0, 9)
    return 64 if old and isinstance(size, int) and size < 64 else size
