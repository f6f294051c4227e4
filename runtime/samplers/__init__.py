"""Samplers: one file each, textbook code that :mod:`.table` compiles into a matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.consistency import lcm, tcd
from bksdm.runtime.samplers.ddim import ddim
from bksdm.runtime.samplers.ddpm import ddpm
from bksdm.runtime.samplers.deis import deis
from bksdm.runtime.samplers.dpm import dpm_multistep
from bksdm.runtime.samplers.dpm_single import dpm_singlestep
from bksdm.runtime.samplers.euler import euler, euler_ancestral
from bksdm.runtime.samplers.heun import heun
from bksdm.runtime.samplers.kdpm2 import kdpm2, kdpm2_ancestral
from bksdm.runtime.samplers.lms import lms
from bksdm.runtime.samplers.pndm import pndm
from bksdm.runtime.samplers.table import Solver, StepTable, compile_solver
from bksdm.runtime.samplers.unipc import unipc

Prepare = Callable[[Mapping[str, object], int], Solver]


def _with(prepare: Prepare, **fields: object) -> Prepare:
    """Return a sampler with fields of its own in place of the configuration's."""
    return lambda config, steps: prepare({**config, **fields}, steps)


SPACINGS = ("karras", "exponential", "beta")


def _spaced(name: str, prepare: Prepare, **fields: object) -> dict[str, Prepare]:
    """Return a sampler with even spacing, and one with each other spacing of its noise levels."""

    def stated(chosen: str | None) -> dict[str, object]:
        return {f"use_{spacing}_sigmas": spacing == chosen for spacing in SPACINGS}

    return {
        name: _with(prepare, **fields, **stated(None)),
        **{f"{name}-{s}": _with(prepare, **fields, **stated(s)) for s in SPACINGS},
    }


SAMPLERS: dict[str, Prepare] = {
    "pndm": pndm,
    "ddim": ddim,
    "ddpm": ddpm,
    **_spaced("euler", euler),
    "euler-a": euler_ancestral,
    **_spaced("heun", heun),
    **_spaced("lms", lms),
    **_spaced("kdpm2", kdpm2),
    **_spaced("kdpm2-a", kdpm2_ancestral),
    **_spaced("dpm++2m", dpm_multistep, solver_order=2, algorithm_type="dpmsolver++"),
    **_spaced("dpm++3m", dpm_multistep, solver_order=3, algorithm_type="dpmsolver++"),
    **_spaced("dpm++2m-sde", dpm_multistep, solver_order=2, algorithm_type="sde-dpmsolver++"),
    **_spaced("dpm++2s", dpm_singlestep, solver_order=2),
    **_spaced("dpm++3s", dpm_singlestep, solver_order=3),
    **_spaced("unipc", unipc),
    **_spaced("deis", deis),
    "lcm": lcm,
    "tcd": tcd,
}
"""What can be asked for by name; orders and spacings are stated by the name."""

DIFFUSERS_CLASSES: dict[str, Prepare] = {
    "PNDMScheduler": pndm,
    "DDIMScheduler": ddim,
    "DDPMScheduler": ddpm,
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "HeunDiscreteScheduler": heun,
    "LMSDiscreteScheduler": lms,
    "KDPM2DiscreteScheduler": kdpm2,
    "KDPM2AncestralDiscreteScheduler": kdpm2_ancestral,
    "DPMSolverMultistepScheduler": dpm_multistep,
    "DPMSolverSinglestepScheduler": dpm_singlestep,
    "UniPCMultistepScheduler": unipc,
    "DEISMultistepScheduler": deis,
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
}
"""What a bundle's ``scheduler_config.json`` may name; everything is taken from its fields."""


def step_table(
    fields: Mapping[str, object], steps: int, sampler: str | None = None, first: int = 0
) -> StepTable:
    """Compile the sampler of a scheduler configuration.

    Parameters
    ----------
    fields : mapping
        ``scheduler_config.json`` as diffusers writes it.
    steps : int
        Number of inference steps, from 1 to ``num_train_timesteps``.
    sampler : str, optional
        A name of :data:`SAMPLERS`; by default the one that ``_class_name`` stands for.
    first : int
        How many of the steps are left out at the beginning; ``steps`` leaves none.

    Raises
    ------
    SamplerError
        The sampler is unknown, a field is not implemented, or ``steps`` is out of range.
    """
    # A table takes longer to compile than a few steps of the loop take on the host.
    return _compiled(json.dumps(dict(fields), sort_keys=True, default=repr), steps, sampler, first)


@lru_cache(maxsize=64)
def _compiled(config: str, steps: int, sampler: str | None, first: int) -> StepTable:
    fields = json.loads(config)
    if sampler is None:
        class_name = fields.get("_class_name")
        known = isinstance(class_name, str) and class_name in DIFFUSERS_CLASSES
        if not known:
            raise SamplerError(
                f"scheduler config: _class_name {class_name!r} is not implemented; "
                f"known: {', '.join(DIFFUSERS_CLASSES)}"
            )
        return compile_solver(DIFFUSERS_CLASSES[str(class_name)](fields, steps), first)
    if sampler not in SAMPLERS:
        raise SamplerError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    return compile_solver(SAMPLERS[sampler](fields, steps), first)


__all__ = ["SAMPLERS", "Solver", "StepTable", "compile_solver", "step_table"]
