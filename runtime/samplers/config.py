"""Typed reading of ``scheduler_config.json`` as diffusers writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bksdm.engines.errors import SamplerError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction")
SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")
LEVEL_SPACINGS = ("karras", "exponential", "beta")
FINAL_SIGMAS = ("zero", "sigma_min")
MAX_TRAIN_TIMESTEPS = 100_000

SCHEDULE: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
"""Arguments of every scheduler class of diffusers, with the defaults of most."""

CUSTOM = ("timesteps", "sigmas")
"""Arguments of a call that take the place of a spacing; beside the configuration's own fields."""
MAX_LEVEL = 1e6
"""The highest noise level that a configuration or a caller may state."""

OFF = (False, None)
"""Of a flag that is not implemented; null counts as false in diffusers."""


@dataclass(frozen=True)
class SchedulerConfig:
    """The fields of a scheduler configuration that a sampler may use.

    Field names, meanings and units are those of diffusers' schedulers. Those that a class does not
    take stay at the defaults here. ``level_spacing`` says which of ``use_karras_sigmas``,
    ``use_lu_lambdas``, ``use_exponential_sigmas`` and ``use_beta_sigmas`` counts; ``eta`` is an
    argument of ``step`` there.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = False
    skip_prk_steps: bool = False
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    algorithm_type: str = "dpmsolver++"
    level_spacing: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    lambda_min_clipped: float = -math.inf
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    eta: float = 0.0
    variance_type: str = "fixed_small"
    final_sigmas_type: str = "zero"
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None

    @classmethod
    def read(
        cls,
        fields: Mapping[str, object],
        arguments: Mapping[str, object],
        implemented: Mapping[str, tuple[object, ...]],
        custom: tuple[str, ...] = (),
    ) -> SchedulerConfig:
        """Read and check the fields of one sampler.

        Parameters
        ----------
        fields : mapping
            The parsed JSON object. What the sampler's class does not take is left alone, as by
            ``from_config`` of diffusers.
        arguments : mapping
            What that class takes and can matter, with its defaults.
        implemented : mapping
            The values that are implemented, of arguments that are not for all values.
        custom : tuple of str
            Which of ``timesteps`` and ``sigmas`` its ``set_timesteps`` takes in diffusers.

        Raises
        ------
        SamplerError
            A field has a wrong type or a value that is not implemented.
        """
        own = {name: fields.get(name, default) for name, default in arguments.items()}
        for name, values in implemented.items():
            if own[name] not in values:
                stated = [repr(value) for value in values if value is not None] or ["null"]
                raise SamplerError(
                    f"scheduler config: {name} = {_shown(own[name])} is not implemented "
                    f"(only {', '.join(stated)})"
                )
        for name in CUSTOM:
            if fields.get(name) is not None and name not in custom:
                raise SamplerError(f"this sampler takes no {name}; `euler` takes both kinds")
        train = _integer(own, "num_train_timesteps", 1000, 1, MAX_TRAIN_TIMESTEPS)
        betas = own.get("trained_betas")
        return cls(
            num_train_timesteps=train,
            beta_start=_beta(own, "beta_start", 0.0001),
            beta_end=_beta(own, "beta_end", 0.02),
            beta_schedule=_choice(own, "beta_schedule", "linear", BETA_SCHEDULES),
            trained_betas=None if betas is None else _betas(betas, train),
            prediction_type=_choice(own, "prediction_type", "epsilon", PREDICTION_TYPES),
            timestep_spacing=_choice(own, "timestep_spacing", "leading", TIMESTEP_SPACINGS),
            steps_offset=_integer(own, "steps_offset", 0, 0, train - 1),
            set_alpha_to_one=_boolean(own, "set_alpha_to_one"),
            skip_prk_steps=_boolean(own, "skip_prk_steps"),
            solver_order=_integer(own, "solver_order", 2, 1, 3),
            solver_type=_choice(own, "solver_type", "midpoint", SOLVER_TYPES),
            lower_order_final=_boolean(own, "lower_order_final"),
            euler_at_final=_boolean(own, "euler_at_final"),
            algorithm_type=str(own.get("algorithm_type", "dpmsolver++")),
            level_spacing=_level_spacing(own),
            sigma_min=_level(own, "sigma_min"),
            sigma_max=_level(own, "sigma_max"),
            lambda_min_clipped=_number(own, "lambda_min_clipped", -math.inf, -math.inf, 1e6),
            original_inference_steps=_integer(
                own, "original_inference_steps", min(50, train), 1, train
            ),
            timestep_scaling=_number(own, "timestep_scaling", 10.0, 0.0, 1e6),
            eta=_number(fields, "eta", 0.0, 0.0, 1.0),
            variance_type=str(own.get("variance_type", "fixed_small")),
            final_sigmas_type=_choice(own, "final_sigmas_type", "zero", FINAL_SIGMAS),
            timesteps=_timesteps(fields.get("timesteps"), train, _level_spacing(own)),
            sigmas=_sigmas(fields.get("sigmas")),
        )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _reject(name: str, value: object, wanted: str) -> SamplerError:
    return SamplerError(f"scheduler config: {name} must be {wanted}, not {_shown(value)}")


def _integer(
    fields: Mapping[str, object], name: str, default: int, lowest: int, highest: int
) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise _reject(name, value, f"an integer from {lowest} to {highest}")
    return value


def _is_beta(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0.0 < value < 1.0  # type: ignore[operator]


def _beta(fields: Mapping[str, object], name: str, default: float) -> float:
    value = fields.get(name, default)
    if not _is_beta(value):
        raise _reject(name, value, "a number between 0 and 1")
    return float(value)  # type: ignore[arg-type]


def _betas(value: object, count: int) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or not all(_is_beta(beta) for beta in value):
        raise _reject("trained_betas", value, "a list of numbers between 0 and 1")
    if len(value) != count:
        raise SamplerError(
            f"scheduler config: trained_betas has {len(value)} values, "
            f"but num_train_timesteps is {count}"
        )
    return tuple(float(beta) for beta in value)


def _timesteps(value: Any, train: int, spacing: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not _descends(value, int):
        raise _reject("timesteps", value, "a list of descending whole numbers from 0 on")
    if spacing is not None:
        raise SamplerError(f"timesteps exclude a sampler with {spacing} spacing; take another")
    if max(value) >= train:
        raise SamplerError(f"timesteps must be below {train}, not {max(value)}")
    return tuple(value)


def _sigmas(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not _descends(value, (int, float)) or len(value) < 2:
        raise _reject("sigmas", value, "a list of two or more descending numbers from 0 on")
    if value[0] > MAX_LEVEL:
        raise _reject("sigmas", value, f"numbers up to {MAX_LEVEL:g}")
    return tuple(value)


def _descends(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Return whether a value is a list of finite numbers from 0 on, each below the one before."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    numbers = all(isinstance(entry, kinds) and not isinstance(entry, bool) for entry in value)
    # Written so that NaN fails.
    return (
        numbers
        and math.inf > value[0]
        and value[-1] >= 0
        and all(one > following for one, following in pairwise(value))
    )


def _choice(fields: Mapping[str, object], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise _reject(name, value, "one of " + ", ".join(choices))
    return value


def _level_spacing(fields: Mapping[str, object]) -> str | None:
    chosen = [name for name in LEVEL_SPACINGS if _boolean(fields, f"use_{name}_sigmas")]
    if len(chosen) > 1:
        raise SamplerError(f"scheduler config: {' and '.join(chosen)} sigmas exclude each other")
    if _boolean(fields, "use_lu_lambdas") and chosen != ["karras"]:
        return "lu"
    return chosen[0] if chosen else None


def _level(fields: Mapping[str, object], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= MAX_LEVEL:  # type: ignore[operator]
        raise _reject(name, value, f"a number above 0 and up to {MAX_LEVEL:g}")
    return float(value)  # type: ignore[arg-type]


def _number(
    fields: Mapping[str, object], name: str, default: float, lowest: float, highest: float
) -> float:
    value = fields.get(name, default)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not lowest <= value <= highest:  # type: ignore[operator]
        raise _reject(name, value, f"a number from {lowest:g} to {highest:g}")
    return float(value)  # type: ignore[arg-type]


def _boolean(fields: Mapping[str, object], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool | None):
        raise _reject(name, value, "true or false")
    return bool(value)
