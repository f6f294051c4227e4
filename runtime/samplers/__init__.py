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

Fields = dict[str, object]
Prepare = Callable[[Mapping[str, object], int], Solver]


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

SPACINGS = ("karras", "exponential", "beta")


def _spaced(name: str, class_name: str, **fields: object) -> dict[str, tuple[str, Fields]]:
    """Return a sampler with even spacing, and one with each other spacing of its noise levels."""

    def stated(chosen: str | None) -> Fields:
        return {**fields, **{f"use_{spacing}_sigmas": spacing == chosen for spacing in SPACINGS}}

    return {
        name: (class_name, stated(None)),
        **{f"{name}-{s}": (class_name, stated(s)) for s in SPACINGS},
    }


_DPM, _DPM_SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
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
    **_spaced("dpm++2m", _DPM, solver_order=2, algorithm_type="dpmsolver++"),
    **_spaced("dpm++3m", _DPM, solver_order=3, algorithm_type="dpmsolver++"),
    **_spaced("dpm++2m-sde", _DPM, solver_order=2, algorithm_type="sde-dpmsolver++"),
    **_spaced("dpm++2s", _DPM_SINGLE, solver_order=2),
    **_spaced("dpm++3s", _DPM_SINGLE, solver_order=3),
    **_spaced("unipc", "UniPCMultistepScheduler"),
    **_spaced("deis", "DEISMultistepScheduler"),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""By name: diffusers' class, and the fields that the name stands for."""


def _named(class_name: str, stated: Fields) -> Prepare:
    return lambda config, steps: DIFFUSERS_CLASSES[class_name]({**config, **stated}, steps)


SAMPLERS: dict[str, Prepare] = {name: _named(*entry) for name, entry in NAMED.items()}
"""What can be asked for by name; its fields take the place of the configuration's."""


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
    prediction_type = str(fields.get("prediction_type", "epsilon"))
    if sampler is None:
        class_name = fields.get("_class_name")
        known = isinstance(class_name, str) and class_name in DIFFUSERS_CLASSES
        if not known:
            raise SamplerError(
                f"scheduler config: _class_name {class_name!r} is not implemented; "
                f"known: {', '.join(DIFFUSERS_CLASSES)}"
            )
        solver = DIFFUSERS_CLASSES[str(class_name)](fields, steps)
        return compile_solver(solver, first, prediction_type)
    if sampler not in SAMPLERS:
        raise SamplerError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    return compile_solver(SAMPLERS[sampler](fields, steps), first, prediction_type)


__all__ = ["NAMED", "SAMPLERS", "Solver", "StepTable", "compile_solver", "step_table"]
