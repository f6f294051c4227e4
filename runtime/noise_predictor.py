"""The UNet with guidance, for one job or for many in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError, SamplerError
from bksdm.engines.lora_inputs import is_factor
from bksdm.engines.once import once
from bksdm.engines.protocol import Array, Engine
from bksdm.engines.variants import (
    CONTROLLED,
    DEEP,
    DEEP_FEATURES,
    SAMPLE_OF_ROW,
    SHALLOW,
    is_residual,
)
from bksdm.runtime.controlnets import ControlNets
from bksdm.runtime.finite import require_finite
from bksdm.runtime.guidance import guide, rescale_deviation
from bksdm.runtime.host_trajectory import HostTrajectory
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.lora.factors import Factors
from bksdm.runtime.lora.networks import AdaptedNetworks
from bksdm.runtime.sampling import Denoising, Watch

FIXED = ("sample", "timestep", SAMPLE_OF_ROW)
"""The UNet's inputs that the loop makes; the others are conditionings."""


class HostDenoising(Denoising[Latents]):
    """A job whose latents are in numpy, and which is told its noise predictions there.

    Attributes
    ----------
    hints : tuple of ndarray
        What each ControlNet sees in its pictures, [images, channels, height / 8, width / 8].
    """

    trajectory: HostTrajectory
    hints: tuple[Array, ...] = ()


class NoisePredictor:
    """Predicts the noise in the next evaluation of any jobs, in as few UNet calls as possible.

    A job's prediction depends on none of the others. Threads may share it.

    Parameters
    ----------
    unet : Engine
        Names and shapes of its tensors are Optimum's.
    load_shallow : callable, optional
        Loads the layers after the UNet's deep features, if the UNet outputs these (Ma et al. 2024,
        "DeepCache", arXiv 2312.00858).
    controlnets : ControlNets, optional
        For jobs that are shown pictures.
    adapted : AdaptedNetworks, optional
        The UNets of jobs with LoRAs.
    """

    def __init__(
        self,
        unet: Engine,
        load_shallow: Callable[[], Engine] | None = None,
        controlnets: ControlNets | None = None,
        adapted: AdaptedNetworks | None = None,
    ) -> None:
        self._unet = unet
        self.adapted = adapted
        self._load_shallow = None if load_shallow is None else once(load_shallow)
        self._controlnets = controlnets

    def start(
        self,
        job: DenoisingJob,
        conditioning: Mapping[str, NDArray[Any]],
        watch: Watch | None = None,
    ) -> HostDenoising:
        """Return a job at its first evaluation.

        Parameters
        ----------
        job : DenoisingJob
            The pictures to make.
        conditioning : mapping
            Arrays [rows, …] by the UNet's names; with guidance the rows of the unconditional half
            come first.
        watch : Watch, optional
            Who looks on.

        Raises
        ------
        SamplerError
            The UNet takes whole timesteps only, and there are others.
        RequestError
            The UNet takes no such conditioning, or outputs no deep features to reuse.
        """
        inputs = {
            name: spec
            for name, spec in self._network(job, whole=True).inputs.items()
            if not (is_residual(name) or is_factor(name))
        }
        if np.issubdtype(inputs["timestep"].dtype, np.integer):
            for timestep in job.table.timesteps:
                if timestep != round(timestep):
                    raise SamplerError(
                        f"timestep {timestep:g} is fractional, but this bundle's UNet takes whole "
                        "ones; use another timestep_spacing or export the bundle with "
                        "`bksdm export`"
                    )
        if job.cache_interval > 1 and not self._reuses_features:
            raise RequestError(
                "fast is for the engines onnxruntime and openvino, and UNets that join features; "
                "for the package onnx to find these, it has to be installed at the first start"
            )
        names = [name for name in inputs if name not in FIXED]
        if missing := [name for name in names if name not in conditioning]:
            raise RequestError(f"this bundle's UNet takes {missing[0]} too, which is not given")
        if unknown := [name for name in conditioning if name not in inputs]:
            raise RequestError(
                f"this bundle's UNet takes no {unknown[0]}; export it anew with `bksdm export`"
            )
        cast = {name: conditioning[name].astype(inputs[name].dtype, copy=False) for name in names}
        tokens, taken = cast["encoder_hidden_states"], inputs["encoder_hidden_states"].shape[1]
        if isinstance(taken, int) and taken != tokens.shape[1]:
            raise RequestError(
                f"this bundle's UNet takes {taken} tokens, not the {tokens.shape[1]} of a long "
                "prompt; export it anew with `bksdm export`"
            )
        trajectory = HostTrajectory(job, cast, inputs["sample"], inputs["timestep"])
        denoising = HostDenoising(job, trajectory, watch)
        if self._controlnets is not None:
            denoising.hints = self._controlnets.hints(job)
        return denoising

    @property
    def _reuses_features(self) -> bool:
        return self._load_shallow is not None and DEEP_FEATURES in self._unet.outputs

    def __call__(
        self, denoisings: Sequence[HostDenoising], seconds: dict[str, float]
    ) -> list[Latents]:
        """Return the guided noise predictions of the next evaluations, float32.

        Parameters
        ----------
        denoisings : sequence of HostDenoising
            As :meth:`start` returned them, none of them done.
        seconds : dict
            Where the wall time of ``unet`` is added.

        Raises
        ------
        NonFiniteError
            The UNet produced NaN or infinity.
        """
        groups: dict[Any, list[_Evaluation]] = {}
        evaluations = [_Evaluation(denoising) for denoising in denoisings]
        for evaluation in evaluations:
            groups.setdefault(evaluation.kind, []).append(evaluation)
        for (whole, *_), group in groups.items():
            outputs = self._run(group, whole, seconds)
            first = 0
            for evaluation in group:
                evaluation.guide(outputs[first : first + evaluation.rows])
                first += evaluation.rows
        return [evaluation.prediction for evaluation in evaluations]

    def _run(
        self, group: Sequence[_Evaluation], whole: bool, seconds: dict[str, float]
    ) -> NDArray[np.float32]:
        """Return the outputs of one call, [rows, channels, height, width], job after job."""
        job = group[0].job
        network, added = self._network(job, whole), dict[str, Array]()
        if job.controls:
            assert self._controlnets is not None
            added = self._controlnets.residuals(group, partial(_feeds, group), seconds)
        if job.loras.unet is not None:
            added |= job.loras.unet.feeds(network.inputs)
        feeds = {**_feeds(group, network, [each.guided for each in group]), **added}
        if not whole:
            feeds[DEEP_FEATURES] = _joined([each.deep_features() for each in group])
            # The last layer need not attend to the text.
            feeds = {name: feeds[name] for name in network.inputs}
        start = time.perf_counter()
        outputs = network(feeds)
        seconds["unet"] = seconds.get("unet", 0.0) + time.perf_counter() - start
        if whole:
            row = 0
            for each in group:
                if each.job.cache_interval > 1:
                    each.trajectory.deep_features = outputs[DEEP_FEATURES][row : row + each.rows]
                row += each.rows
        return outputs["out_sample"].astype(np.float32, copy=False)

    def load_adapted(self, factors: Factors, whole: bool = True) -> Engine:
        """Return the UNet that takes a job's factors, or its last layers; loads it first."""
        assert self.adapted is not None
        deep = DEEP if DEEP_FEATURES in self._unet.outputs else ""
        return self.adapted(deep if whole else SHALLOW, factors.scope)

    def _network(self, job: DenoisingJob, whole: bool) -> Engine:
        """Return the UNet of a job, or its last layers."""
        factors = job.loras.unet
        if job.controls and factors is not None:
            assert self.adapted is not None
            return self.adapted(CONTROLLED, factors.scope)
        if job.controls:
            assert self._controlnets is not None
            return self._controlnets.unet()
        if factors is not None:
            return self.load_adapted(factors, whole)
        if whole:
            return self._unet
        assert self._load_shallow is not None
        return self._load_shallow()


class _Evaluation:
    """The next evaluation of one job: its rows of a UNet call."""

    __slots__ = (
        "acting",
        "guidance",
        "guided",
        "hints",
        "index",
        "job",
        "prediction",
        "rows",
        "timestep",
        "trajectory",
    )

    def __init__(self, denoising: HostDenoising) -> None:
        self.index, self.timestep = denoising.index, denoising.timestep
        self.guidance, self.guided = denoising.guidance, denoising.guided
        self.job, self.trajectory = denoising.job, denoising.trajectory
        self.rows = self.job.images * (2 if self.guided else 1)
        self.acting, self.hints = self.job.controls_at(self.index), denoising.hints
        self.prediction = self.trajectory.prediction(self.index)

    @property
    def kind(self) -> tuple[Any, ...]:
        """A key that is equal for evaluations that one call can run; first, of the whole UNet."""
        trajectory, known = self.trajectory, self.trajectory.deep_features
        whole = known is None or len(known) < self.rows or self.index % self.job.cache_interval == 0
        told = None if trajectory.timestep_per_row else self.timestep
        # A job without ControlNets never takes the UNet of those with: it would round otherwise.
        added = None
        if self.job.controls:
            added = tuple(self.job.controls[place].name for place in self.acting)
        factors = self.job.loras.unet
        adapted = None if factors is None else factors.key
        return whole, told, trajectory.shapes, added, adapted

    def deep_features(self) -> Array:
        assert self.trajectory.deep_features is not None
        return self.trajectory.deep_features[-self.rows :]

    def guide(self, output: NDArray[np.float32]) -> None:
        """Make the noise prediction from the rows of the UNet's output."""
        guidance, prediction = self.guidance, self.prediction
        # NaN and infinity of either half are in their difference, which is half as much to see.
        with np.errstate(invalid="ignore"):
            if guidance is not None and self.guided:
                guide(output, guidance.scale, prediction)
                if guidance.rescale:
                    rescale_deviation(prediction, output[self.job.images :], guidance.rescale)
            else:
                prediction[:] = output
        require_finite(prediction, f"noise prediction of step {self.index + 1}")


def _feeds(group: Sequence[_Evaluation], network: Engine, both: Sequence[bool]) -> dict[str, Array]:
    """Return what a network takes of latents, timesteps and text, row after row.

    Parameters
    ----------
    group : sequence of _Evaluation
        Which one call runs.
    network : Engine
        The UNet, or a ControlNet.
    both : sequence of bool
        Of which evaluations both halves run; of the others the last rows, the conditional ones.
    """
    shared = SAMPLE_OF_ROW in network.inputs
    rows = [each.job.images * (2 if twice else 1) for each, twice in zip(group, both, strict=True)]
    timesteps, samples = [], []
    for each, twice, count in zip(group, both, rows, strict=True):
        known = each.job.images if shared else count
        timesteps.append(each.trajectory.timestep(each.timestep, known))
        samples.append(each.trajectory.sample(each.index, twice and not shared))
    first = group[0].trajectory
    feeds = {
        "sample": _joined(samples),
        "timestep": _joined(timesteps) if first.timestep_per_row else timesteps[0],
    }
    if shared:
        images = (each.job.images for each in group)
        feeds[SAMPLE_OF_ROW] = _sample_of_row(tuple(zip(images, both, strict=True)))
    for name in first.conditioning:
        parts = (each.trajectory.conditioning[name] for each in group)
        feeds[name] = _joined([part[-n:] for part, n in zip(parts, rows, strict=True)])
    return feeds


@lru_cache(maxsize=64)
def _sample_of_row(group: tuple[tuple[int, bool], ...]) -> NDArray[np.int64]:
    """Return which of the group's images each row is of: with guidance each is of two."""
    parts, first = [], 0
    for images, guided in group:
        parts.append(np.tile(np.arange(first, first + images), 2 if guided else 1))
        first += images
    samples = np.concatenate(parts)
    # Threads share it.
    samples.flags.writeable = False
    return samples


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
