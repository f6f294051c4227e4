"""What a sampler can be called, and what each name stands for."""

from __future__ import annotations

import re
from difflib import get_close_matches

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.classes import DIFFUSERS_CLASSES

Fields = dict[str, object]

SPACINGS = ("karras", "exponential", "beta")


def _spaced(name: str, class_name: str, **fields: object) -> dict[str, tuple[str, Fields]]:
    """Return a sampler with even spacing, and one with each other spacing of its noise levels."""

    def stated(chosen: str | None) -> Fields:
        return {**fields, **{f"use_{spacing}_sigmas": spacing == chosen for spacing in SPACINGS}}

    return {
        name: (class_name, stated(None)),
        **{f"{name}-{s}": (class_name, stated(s)) for s in SPACINGS},
    }


def _multistep(name: str, order: int, algorithm: str) -> dict[str, tuple[str, Fields]]:
    return _spaced(
        name,
        "DPMSolverMultistepScheduler",
        solver_order=order,
        algorithm_type=algorithm,
        use_lu_lambdas=False,
        variance_type=None,
    )


def _singlestep(name: str, order: int) -> dict[str, tuple[str, Fields]]:
    return _spaced(
        name,
        "DPMSolverSinglestepScheduler",
        solver_order=order,
        algorithm_type="dpmsolver++",
        variance_type=None,
    )


NAMED: dict[str, tuple[str, Fields]] = {
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    **_spaced("euler", "EulerDiscreteScheduler"),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    **_spaced("heun", "HeunDiscreteScheduler"),
    **_spaced("lms", "LMSDiscreteScheduler"),
    **_spaced("kdpm2", "KDPM2DiscreteScheduler"),
    **_spaced("kdpm2-a", "KDPM2AncestralDiscreteScheduler"),
    **_multistep("dpm++2m", 2, "dpmsolver++"),
    **_multistep("dpm++3m", 3, "dpmsolver++"),
    **_multistep("dpm++2m-sde", 2, "sde-dpmsolver++"),
    **_singlestep("dpm++2s", 2),
    **_singlestep("dpm++3s", 3),
    **_spaced("unipc", "UniPCMultistepScheduler"),
    **_spaced("deis", "DEISMultistepScheduler", algorithm_type="deis"),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""By name: diffusers' class, and the fields that the name stands for.

The rest is what ``from_config`` of the class takes over from the configuration at hand.
"""

ALIASES: dict[str, tuple[str, ...]] = {
    "pndm": ("plms",),
    "euler-a": ("euler_ancestral",),
    "kdpm2": ("dpm_2",),
    "kdpm2-a": ("dpm_2_ancestral", "dpm2_a"),
    "dpm++2m": ("dpmpp_2m",),
    "dpm++2m-sde": ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    # diffusers' own documentation sets this against its singlestep class, which adds no noise.
    "dpm++2s": ("dpmpp_sde",),
    "unipc": ("uni_pc", "uni_pc_bh2"),
}
"""What k-diffusion, ComfyUI, A1111 and diffusers' documentation call them beside.

A name's aliases hold for its spacings too: ``dpm_2_karras`` is ``kdpm2-karras``.
"""


def aliases(name: str) -> tuple[str, ...]:
    """Return what else a name of :data:`NAMED` is called."""
    class_name, stated = NAMED[name]
    base, _, spacing = name.rpartition("-")
    if spacing in SPACINGS:
        return tuple(f"{alias}_{spacing}" for alias in ALIASES.get(base, ()))
    return ALIASES.get(name, ()) + (() if stated else (class_name,))


def sampler_name(text: str) -> str:
    """Return the one name of a sampler, however it was written.

    Case, spaces, ``_`` and ``-`` do not matter, nor do k-diffusion's and A1111's ``sample_`` and
    ``k_`` before and ``_ka`` behind; ``pp`` is ``++``.

    Parameters
    ----------
    text : str
        A name of :data:`NAMED`, an alias of one, or a class of :data:`DIFFUSERS_CLASSES` with or
        without ``Scheduler``.

    Returns
    -------
    str
        A name of :data:`NAMED`; or of :data:`DIFFUSERS_CLASSES`, where a class is asked for that
        has fields which no name leaves to the configuration.

    Raises
    ------
    SamplerError
        There is no such sampler; says which come nearest.
    """
    key = _key(text) if isinstance(text, str) else ""
    if key in _KNOWN:
        return _KNOWN[key]
    near = dict.fromkeys(_KNOWN[found] for found in get_close_matches(key[:60], _KNOWN, n=6))
    hint = f"nearest: {', '.join([*near][:3])}; " if near else ""
    shown = repr(text) if len(repr(text)) <= 60 else repr(text)[:57] + "..."
    raise SamplerError(f"unknown sampler {shown}; {hint}`bksdm samplers` lists them all")


def meaning(name: str) -> tuple[str, Fields]:
    """Return the class that a name from :func:`sampler_name` stands for, and the fields it states.

    A class stands for itself with every field of the configuration.
    """
    return NAMED.get(name, (name, {}))


def _key(text: str) -> str:
    parts = re.sub(r"[\s_-]+", "_", text.lower()).strip("_")
    parts = parts.removeprefix("sample_").removeprefix("k_").removesuffix("scheduler")
    if parts.endswith("_ka"):
        parts += "rras"
    return parts.replace("_", "").replace("++", "pp")


def _known() -> dict[str, str]:
    found = {_key(class_name): class_name for class_name in DIFFUSERS_CLASSES}
    for name in NAMED:
        found |= dict.fromkeys(map(_key, (name, *aliases(name))), name)
    return found


_KNOWN = _known()
