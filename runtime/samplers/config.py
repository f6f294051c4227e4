"""Typed reading of ``scheduler_config.json`` as diffusers writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bksdm.engines.errors import SamplerError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction")
SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")
ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")
LEVEL_SPACINGS = ("karras", "exponential", "beta")
VARIANCES = ("fixed_small", "fixed_large")
FINAL_SIGMAS = ("zero", "sigma_min")
MAX_TRAIN_TIMESTEPS = 100_000


@dataclass(frozen=True)
class SchedulerConfig:
    """The fields of a scheduler configuration that a sampler may use.

    Field names, meanings and units are those of diffusers' schedulers, and the defaults those that
    they share. ``level_spacing`` says which of ``use_karras_sigmas``, ``use_exponential_sigmas``
    and ``use_beta_sigmas`` is set; ``eta`` is an argument of ``step`` there.
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
    predict_x0: bool = True
    level_spacing: str | None = None
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    eta: float = 0.0
    variance_type: str = "fixed_small"
    final_sigmas_type: str = "zero"

    @classmethod
    def read(
        cls,
        fields: Mapping[str, object],
        defaults: Mapping[str, object],
        required: Mapping[str, object],
    ) -> SchedulerConfig:
        """Read and check the fields of one sampler.

        Parameters
        ----------
        fields : mapping
            The parsed JSON object.
        defaults : mapping
            What the sampler's diffusers class assumes where a field is absent.
        required : mapping
            Fields with the only value that is implemented; absent ones take it from ``defaults``.

        Raises
        ------
        SamplerError
            A field has a wrong type or a value that is not implemented.
        """
        merged = {**defaults, **{k: v for k, v in fields.items() if v is not None}}
        for name, value in required.items():
            found = merged.get(name, value)
            if found != value:
                raise SamplerError(
                    f"scheduler config: {name} = {found!r} is not implemented (only {value!r})"
                )
        train = _integer(merged, "num_train_timesteps", 1000, 1, MAX_TRAIN_TIMESTEPS)
        betas = merged.get("trained_betas")
        return cls(
            num_train_timesteps=train,
            beta_start=_beta(merged, "beta_start", 0.0001),
            beta_end=_beta(merged, "beta_end", 0.02),
            beta_schedule=_choice(merged, "beta_schedule", "linear", BETA_SCHEDULES),
            trained_betas=None if betas is None else _betas(betas, train),
            prediction_type=_choice(merged, "prediction_type", "epsilon", PREDICTION_TYPES),
            timestep_spacing=_choice(merged, "timestep_spacing", "leading", TIMESTEP_SPACINGS),
            steps_offset=_integer(merged, "steps_offset", 0, 0, train - 1),
            set_alpha_to_one=_boolean(merged, "set_alpha_to_one"),
            skip_prk_steps=_boolean(merged, "skip_prk_steps"),
            solver_order=_integer(merged, "solver_order", 2, 1, 3),
            solver_type=_choice(merged, "solver_type", "midpoint", SOLVER_TYPES),
            lower_order_final=_boolean(merged, "lower_order_final"),
            euler_at_final=_boolean(merged, "euler_at_final"),
            algorithm_type=_choice(merged, "algorithm_type", "dpmsolver++", ALGORITHMS),
            predict_x0=_boolean(merged, "predict_x0"),
            level_spacing=_level_spacing(merged),
            original_inference_steps=_integer(
                merged, "original_inference_steps", min(50, train), 1, train
            ),
            timestep_scaling=_number(merged, "timestep_scaling", 10.0, 1e6),
            eta=_number(merged, "eta", 0.0, 1.0),
            variance_type=_choice(merged, "variance_type", "fixed_small", VARIANCES),
            final_sigmas_type=_choice(merged, "final_sigmas_type", "zero", FINAL_SIGMAS),
        )


def _reject(name: str, value: object, wanted: str) -> SamplerError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return SamplerError(f"scheduler config: {name} must be {wanted}, not {shown}")


def _integer(
    fields: Mapping[str, object], name: str, default: int, lowest: int, highest: int
) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise _reject(name, value, f"an integer from {lowest} to {highest}")
    return value


def _is_beta(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0.0 < value < 1.0  # type: ignore[arg-type, operator]


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


def _choice(fields: Mapping[str, object], name: str, default: str, choices: tuple[str, ...]) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise _reject(name, value, "one of " + ", ".join(choices))
    return value


def _level_spacing(fields: Mapping[str, object]) -> str | None:
    chosen = [name for name in LEVEL_SPACINGS if _boolean(fields, f"use_{name}_sigmas")]
    if len(chosen) > 1:
        raise SamplerError(f"scheduler config: {' and '.join(chosen)} sigmas exclude each other")
    return chosen[0] if chosen else None


def _number(fields: Mapping[str, object], name: str, default: float, highest: float) -> float:
    value = fields.get(name, default)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= highest:  # type: ignore[operator]
        raise _reject(name, value, f"a number from 0 to {highest:g}")
    return float(value)  # type: ignore[arg-type]


def _boolean(fields: Mapping[str, object], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise _reject(name, value, "true or false")
    return value
