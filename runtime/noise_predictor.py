"""The UNet with guidance, for one job or for many in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError, SamplerError
from bksdm.engines.once import once
from bksdm.engines.protocol import Array, Engine
from bksdm.engines.variants import DEEP, DEEP_FEATURES, SAMPLE_OF_ROW, SHALLOW
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
    """A job whose latents are in numpy, and which is told its noise predictions there."""

    trajectory: HostTrajectory


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
    adapted : AdaptedNetworks, optional
        The UNets of jobs with LoRAs.
    """

    def __init__(
        self,
        unet: Engine,
        load_shallow: Callable[[], Engine] | None = None,
        adapted: AdaptedNetworks | None = None,
    ) -> None:
        self._unet = unet
        self.adapted = adapted
        self._load_shallow = None
        if load_shallow is not None and DEEP_FEATURES in unet.outputs:
            self._load_shallow = once(load_shallow)

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
        inputs = self._unet.inputs
        if np.issubdtype(inputs["timestep"].dtype, np.integer):
            for timestep in job.table.timesteps:
                if timestep != round(timestep):
                    raise SamplerError(
                        f"timestep {timestep:g} is fractional, but this bundle's UNet takes whole "
                        "ones; use another timestep_spacing or export the bundle with "
                        "`bksdm export`"
                    )
        if job.cache_interval > 1 and self._load_shallow is None:
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
        return HostDenoising(job, trajectory, watch)

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
        first = group[0].trajectory
        shared = SAMPLE_OF_ROW in self._unet.inputs
        timesteps = [
            each.trajectory.timestep(each.timestep, each.job.images if shared else each.rows)
            for each in group
        ]
        samples = [each.trajectory.sample(each.index, each.guided and not shared) for each in group]
        feeds = {
            "sample": _joined(samples),
            "timestep": _joined(timesteps) if first.timestep_per_row else timesteps[0],
        }
        if shared:
            feeds[SAMPLE_OF_ROW] = _sample_of_row(
                tuple((each.job.images, each.guided) for each in group)
            )
        # Without guidance only the last rows are run, which are the conditional ones.
        for name in first.conditioning:
            feeds[name] = _joined(
                [each.trajectory.conditioning[name][-each.rows :] for each in group]
            )
        network = self._network(group[0].job, whole)
        if group[0].job.loras.unet is not None:
            feeds |= group[0].job.loras.unet.feeds(network.inputs)
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
        if factors is not None:
            return self.load_adapted(factors, whole)
        if whole:
            return self._unet
        assert self._load_shallow is not None
        return self._load_shallow()


class _Evaluation:
    """The next evaluation of one job: its rows of a UNet call."""

    __slots__ = (
        "guidance",
        "guided",
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
        self.prediction = self.trajectory.prediction(self.index)

    @property
    def kind(self) -> tuple[Any, ...]:
        """A key that is equal for evaluations that one call can run; first, of the whole UNet."""
        trajectory, known = self.trajectory, self.trajectory.deep_features
        whole = known is None or len(known) < self.rows or self.index % self.job.cache_interval == 0
        told = None if trajectory.timestep_per_row else self.timestep
        factors = self.job.loras.unet
        return whole, told, trajectory.shapes, None if factors is None else factors.key

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
