"""Samplers: one file each, textbook code that :mod:`.table` compiles into a matrix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.ddim import ddim
from bksdm.runtime.samplers.dpm import dpm_multistep
from bksdm.runtime.samplers.euler import euler
from bksdm.runtime.samplers.pndm import pndm
from bksdm.runtime.samplers.table import Solver, StepTable, compile_solver

Prepare = Callable[[Mapping[str, object], int], Solver]


def _with(prepare: Prepare, **fields: object) -> Prepare:
    """Return a sampler with fields of its own in place of the configuration's."""
    return lambda config, steps: prepare({**config, **fields}, steps)


SAMPLERS: dict[str, Prepare] = {
    "pndm": pndm,
    "ddim": ddim,
    "euler": euler,
    "dpm++": dpm_multistep,
    "dpm++2m": _with(dpm_multistep, solver_order=2, use_karras_sigmas=False),
    "dpm++2m-karras": _with(dpm_multistep, solver_order=2, use_karras_sigmas=True),
    "dpm++3m": _with(dpm_multistep, solver_order=3, use_karras_sigmas=False),
    "dpm++3m-karras": _with(dpm_multistep, solver_order=3, use_karras_sigmas=True),
}
"""``dpm++`` takes its order and its noise levels from the configuration, the others state them."""

DIFFUSERS_CLASSES = {
    "PNDMScheduler": "pndm",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpm++",
}


def step_table(fields: Mapping[str, object], steps: int, sampler: str | None = None) -> StepTable:
    """Compile the sampler of a scheduler configuration.

    Parameters
    ----------
    fields : mapping
        ``scheduler_config.json`` as diffusers writes it.
    steps : int
        Number of inference steps, from 1 to ``num_train_timesteps``.
    sampler : str, optional
        A name of :data:`SAMPLERS`; by default the one that ``_class_name`` stands for.

    Raises
    ------
    SamplerError
        The sampler is unknown, a field is not implemented, or ``steps`` is out of range.
    """
    # A table takes longer to compile than a few steps of the loop take on the host.
    return _compiled(json.dumps(dict(fields), sort_keys=True, default=repr), steps, sampler)


@lru_cache(maxsize=64)
def _compiled(config: str, steps: int, sampler: str | None) -> StepTable:
    fields = json.loads(config)
    if sampler is None:
        class_name = fields.get("_class_name")
        known = isinstance(class_name, str) and class_name in DIFFUSERS_CLASSES
        if not known:
            raise SamplerError(
                f"scheduler config: _class_name {class_name!r} is not implemented; "
                f"known: {', '.join(DIFFUSERS_CLASSES)}"
            )
        sampler = DIFFUSERS_CLASSES[str(class_name)]
    if sampler not in SAMPLERS:
        raise SamplerError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    return compile_solver(SAMPLERS[sampler](fields, steps))


__all__ = ["SAMPLERS", "Solver", "StepTable", "compile_solver", "step_table"]
