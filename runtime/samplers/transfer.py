"""The step from one noise level to another that PNDM and DDIM share."""

from __future__ import annotations

from dataclasses import dataclass

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers.config import SchedulerConfig
from bksdm.runtime.samplers.schedule import alphas_cumprod
from bksdm.runtime.samplers.table import Level, Vector


@dataclass(frozen=True)
class NoiseLevels:
    """ᾱ by timestep, with the value that stands before the first one."""

    table: tuple[float, ...]
    final: float
    prediction_type: str

    @classmethod
    def of(cls, config: SchedulerConfig) -> NoiseLevels:
        """Read the levels of a configuration."""
        table = tuple(float(value) for value in alphas_cumprod(config))
        return cls(table, 1.0 if config.set_alpha_to_one else table[0], config.prediction_type)

    def alpha(self, timestep: int) -> float:
        """Return ᾱ_t, ``final`` for a negative t.

        Raises
        ------
        SamplerError
            t lies beyond the training timesteps (as with ``steps_offset`` 1 and 1000 steps).
        """
        if timestep >= len(self.table):
            raise SamplerError(
                f"scheduler config: steps_offset leads to timestep {timestep}, but the model "
                f"was trained on 0 to {len(self.table) - 1}; take fewer steps"
            )
        return self.table[timestep] if timestep >= 0 else self.final

    def at(self, timestep: int) -> Level:
        """Return √ᾱ_t and √(1−ᾱ_t)."""
        alpha = self.alpha(timestep)
        return alpha**0.5, (1 - alpha) ** 0.5

    def noise(self, x: Vector, timestep: int, output: Vector) -> Vector:
        """Return ε from the model's output; ε = √ᾱ v + √(1−ᾱ) x (Salimans & Ho 2022) for v."""
        if self.prediction_type == "epsilon":
            return output
        alpha = self.alpha(timestep)
        noise: Vector = alpha**0.5 * output + (1 - alpha) ** 0.5 * x
        return noise

    def data(self, x: Vector, timestep: int, output: Vector) -> Vector:
        """Return x̂_0 = (x − √(1−ᾱ) ε) / √ᾱ."""
        alpha, sigma = self.at(timestep)
        data: Vector = (x - sigma * self.noise(x, timestep, output)) / alpha
        return data

    def transfer(self, x: Vector, timestep: int, target: int, output: Vector) -> Vector:
        """Move ``x`` from ``timestep`` to ``target`` along the predicted noise.

        Equation 11 of Liu et al. 2022 (PNDM), which equals DDIM's step at η = 0:
        x' = √(ᾱ'/ᾱ) x − (ᾱ' − ᾱ) ε / (ᾱ √(1−ᾱ') + √(ᾱ (1−ᾱ) ᾱ')).
        """
        alpha, goal = self.alpha(timestep), self.alpha(target)
        denominator = alpha * (1 - goal) ** 0.5 + (alpha * (1 - alpha) * goal) ** 0.5
        noise = self.noise(x, timestep, output)
        moved: Vector = (goal / alpha) ** 0.5 * x - (goal - alpha) / denominator * noise
        return moved
