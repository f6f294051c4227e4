"""The record of a sampler, which stands in the sampler's own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from bksdm.runtime.samplers.table import Solver

Fields = dict[str, object]
Prepare = Callable[[Mapping[str, object], int], Solver]
SPACINGS = ("karras", "exponential", "beta")


@dataclass(frozen=True)
class Sampler:
    """A scheduler class of diffusers. A module of this package lists its own as ``SAMPLERS``.

    Attributes
    ----------
    class_name : str
        Of diffusers; what a bundle's ``scheduler_config.json`` may name.
    prepare : callable
        From fields and a number of steps to a :class:`~bksdm.runtime.samplers.table.Solver`.
    names : mapping
        Its names, and the fields that each name states; the rest is what
        ``from_config`` of the class takes over from the configuration at hand.
    aliases : mapping
        By name, its names in k-diffusion, ComfyUI, A1111 and diffusers' documentation. They
        hold for a name's spacings too: ``dpm_2_karras`` is ``kdpm2-karras``.
    """

    class_name: str
    prepare: Prepare
    names: Mapping[str, Fields]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def spaced(name: str, **stated: object) -> dict[str, Fields]:
    """Return a name for even spacing of the noise levels, and one for each other spacing."""

    def with_spacing(chosen: str | None) -> Fields:
        return {**stated, **{f"use_{spacing}_sigmas": spacing == chosen for spacing in SPACINGS}}

    return {name: with_spacing(None), **{f"{name}-{s}": with_spacing(s) for s in SPACINGS}}


@cache
def all_samplers() -> tuple[Sampler, ...]:
    """Return the samplers of every module here."""
    package = __name__.rpartition(".")[0]
    found: list[Sampler] = []
    for module in iter_modules(import_module(package).__path__):
        if module.name not in ("names", "sampler"):
            found += getattr(import_module(f"{package}.{module.name}"), "SAMPLERS", ())
    return tuple(found)
