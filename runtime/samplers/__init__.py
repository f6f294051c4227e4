"""Samplers: one file each, textbook code that :mod:`.table` compiles into a matrix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.names import DIFFUSERS_CLASSES, NAMED, meaning, sampler_name
from bksdm.runtime.samplers.sampler import Fields, Prepare
from bksdm.runtime.samplers.table import Solver, StepTable, compile_solver


def taken_over(fields: Mapping[str, object], sampler: str | None) -> tuple[str, Fields]:
    """Return a class, and the fields with which ``from_config`` of diffusers makes it.

    Fields that the class does not take are left in, and left alone by it.

    Parameters
    ----------
    fields : mapping
        A scheduler configuration, of whichever class.
    sampler : str or None
        A name from :func:`sampler_name`. One that clips where it is not told otherwise does not, as
        diffusers' ``StableDiffusionPipeline`` has it with the scheduler that it is given.

    Raises
    ------
    SamplerError
        No sampler is asked for, and the configuration's class is not implemented.
    """
    unstated = fields.get("_use_default_values", [])
    if not isinstance(unstated, list):
        raise SamplerError("scheduler config: _use_default_values must be a list")
    kept = {name: value for name, value in fields.items() if name not in unstated}
    if sampler is not None:
        class_name, stated = meaning(sampler)
        return class_name, {"clip_sample": False, **kept, **stated}
    own = fields.get("_class_name")
    if not isinstance(own, str) or own not in DIFFUSERS_CLASSES:
        raise SamplerError(
            f"scheduler config: _class_name {own!r} is not implemented; "
            f"known: {', '.join(DIFFUSERS_CLASSES)}"
        )
    return own, kept


def _named(name: str) -> Prepare:
    def prepare(fields: Mapping[str, object], steps: int) -> Solver:
        class_name, taken = taken_over(fields, name)
        return DIFFUSERS_CLASSES[class_name](taken, steps)

    return prepare


SAMPLERS: dict[str, Prepare] = {name: _named(name) for name in NAMED}
"""Samplers by name; the fields that a name states replace those of the configuration."""


def step_table(
    fields: Mapping[str, object], steps: int, sampler: str | None = None, first: int = 0
) -> StepTable:
    """Compile the sampler of a scheduler configuration.

    Parameters
    ----------
    fields : mapping
        ``scheduler_config.json`` as diffusers writes it, of any of its scheduler classes.
    steps : int
        Number of inference steps, from 1 to ``num_train_timesteps``.
    sampler : str, optional
        What :func:`sampler_name` knows; by default the class that ``_class_name`` names.
    first : int
        How many of the steps are left out at the beginning; ``steps`` leaves none.

    Raises
    ------
    SamplerError
        The sampler is unknown, a field is not implemented, or ``steps`` is out of range.
    """
    name = None if sampler is None else sampler_name(sampler)
    # A table takes longer to compile than a few steps of the loop take on the host.
    return _compiled(json.dumps(dict(fields), sort_keys=True, default=repr), steps, name, first)


@lru_cache(maxsize=64)
def _compiled(config: str, steps: int, sampler: str | None, first: int) -> StepTable:
    class_name, taken = taken_over(json.loads(config), sampler)
    solver = DIFFUSERS_CLASSES[class_name](taken, steps)
    return compile_solver(solver, first, str(taken.get("prediction_type", "epsilon")))


__all__ = [
    "DIFFUSERS_CLASSES",
    "NAMED",
    "SAMPLERS",
    "Solver",
    "StepTable",
    "compile_solver",
    "sampler_name",
    "step_table",
]
