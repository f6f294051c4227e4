"""Names of samplers, and the class and fields that each stands for."""

from __future__ import annotations

import re
from difflib import get_close_matches

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.sampler import SPACINGS, Fields, Prepare, all_samplers

DIFFUSERS_CLASSES: dict[str, Prepare] = {
    sampler.class_name: sampler.prepare for sampler in all_samplers()
}
"""Classes that ``scheduler_config.json`` may name; everything is taken from its fields."""

NAMED: dict[str, tuple[str, Fields]] = {
    name: found
    for name, found in sorted(
        (
            (name, (sampler.class_name, stated))
            for sampler in all_samplers()
            for name, stated in sampler.names.items()
        ),
        key=lambda entry: entry[0],
    )
}
"""By name: diffusers' class, and the fields that the name stands for."""

ALIASES: dict[str, tuple[str, ...]] = {
    name: aliases for sampler in all_samplers() for name, aliases in sampler.aliases.items()
}
"""Other names, by name."""


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
