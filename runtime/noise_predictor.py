"""The UNet with guidance, for one job or for many in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError, SamplerError
from bksdm.engines.once import once
from bksdm.engines.protocol import Array, Engine
from bksdm.optimize.feature_reuse import DEEP_FEATURES
from bksdm.runtime.finite import require_finite
from bksdm.runtime.guidance import guide, rescale_deviation
from bksdm.runtime.host_trajectory import HostTrajectory
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.sampling import Denoising, StepCallback

FIXED = ("sample", "timestep")
"""The UNet's inputs that change from step to step; the others are conditionings."""


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
    """

    def __init__(self, unet: Engine, load_shallow: Callable[[], Engine] | None = None) -> None:
        self._unet = unet
        reusable = load_shallow is not None and DEEP_FEATURES in unet.outputs
        self._load_shallow = once(load_shallow) if reusable and load_shallow else None
        timestep, sample = unet.inputs["timestep"], unet.inputs["sample"]
        # One timestep per image where its axis is the batch's, else one for all: a scalar, or an
        # axis of its own as Optimum has it.
        self._timestep_per_row = timestep.shape[:1] == sample.shape[:1]

    def start(
        self,
        job: DenoisingJob,
        conditioning: Mapping[str, NDArray[Any]],
        callback: StepCallback | None = None,
    ) -> HostDenoising:
        """Return a job at its first evaluation.

        Parameters
        ----------
        job : DenoisingJob
            The pictures to make.
        conditioning : mapping
            Arrays [rows, …] by the UNet's names; with guidance the rows of the unconditional half
            come first.
        callback : callable, optional
            Called with every step.

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
                "fast is for the engines onnxruntime and openvino, and for UNets that join features"
            )
        names = [name for name in inputs if name not in FIXED]
        if missing := [name for name in names if name not in conditioning]:
            raise RequestError(f"this bundle's UNet takes {missing[0]} too, which is not given")
        cast = {name: conditioning[name].astype(inputs[name].dtype, copy=False) for name in names}
        tokens, taken = cast["encoder_hidden_states"], inputs["encoder_hidden_states"].shape[1]
        if isinstance(taken, int) and taken != tokens.shape[1]:
            raise RequestError(
                f"this bundle's UNet takes {taken} tokens, not the {tokens.shape[1]} of a long "
                "prompt; export it anew with `bksdm export`"
            )
        return HostDenoising(job, HostTrajectory(job, cast), callback)

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
        groups: dict[Any, list[int]] = {}
        for position, denoising in enumerate(denoisings):
            groups.setdefault(self._kind(denoising), []).append(position)
        found: dict[int, Latents] = {}
        for (whole, *_), positions in groups.items():
            group = [denoisings[position] for position in positions]
            outputs = self._run(group, whole, seconds)
            predictions = map(_guided, group, outputs)
            found.update(zip(positions, predictions, strict=True))
        return [found[position] for position in range(len(denoisings))]

    def _kind(self, denoising: HostDenoising) -> tuple[Any, ...]:
        """Return a key that is equal for evaluations that one call can run."""
        trajectory, job = denoising.trajectory, denoising.job
        known = trajectory.deep_features
        whole = (
            known is None
            or len(known) < _rows(denoising)
            or denoising.index % job.cache_interval == 0
        )
        return (
            whole,
            trajectory.latents.shape[1:],
            *(array.shape[1:] for array in trajectory.conditioning.values()),
            None if self._timestep_per_row else denoising.timestep,
        )

    def _run(
        self, group: Sequence[HostDenoising], whole: bool, seconds: dict[str, float]
    ) -> list[NDArray[np.float32]]:
        """Return the outputs of one call, [rows, channels, height, width] of each job."""
        inputs = self._unet.inputs
        counts = [_rows(denoising) for denoising in group]
        trajectories = [denoising.trajectory for denoising in group]
        samples = []
        for denoising, trajectory in zip(group, trajectories, strict=True):
            shown = trajectory.model_input(denoising.index)
            samples += [shown] * (2 if denoising.guided else 1)
        told = inputs["timestep"]
        timesteps = [denoising.timestep for denoising in group]
        feeds = {
            "sample": _joined(samples).astype(inputs["sample"].dtype, copy=False),
            "timestep": (
                np.repeat(np.array(timesteps, told.dtype), counts)
                if self._timestep_per_row
                else np.full((1,) * len(told.shape), timesteps[0], told.dtype)
            ),
        }
        for name in trajectories[0].conditioning:
            # Without guidance only the last rows are run, which are the conditional ones.
            parts = [trajectory.conditioning[name][-count:]
                     for trajectory, count in zip(trajectories, counts, strict=True)]  # fmt: skip
            feeds[name] = _joined(parts)
        ends = np.cumsum(counts)[:-1]
        network = self._unet
        if not whole:
            assert self._load_shallow is not None
            network = self._load_shallow()
            known = [trajectory.deep_features for trajectory in trajectories]
            features = [array[-count:] for array, count in zip(known, counts, strict=True)
                        if array is not None]  # fmt: skip
            feeds[DEEP_FEATURES] = _joined(features)
            # The last layer need not attend to the text.
            feeds = {name: feeds[name] for name in network.inputs}
        start = time.perf_counter()
        outputs = network(feeds)
        seconds["unet"] = seconds.get("unet", 0.0) + time.perf_counter() - start
        if whole and any(denoising.job.cache_interval > 1 for denoising in group):
            parts = np.split(outputs[DEEP_FEATURES], ends)
            for denoising, part in zip(group, parts, strict=True):
                if denoising.job.cache_interval > 1:
                    denoising.trajectory.deep_features = part
        return np.split(outputs["out_sample"].astype(np.float32, copy=False), ends)


def _rows(denoising: HostDenoising) -> int:
    """Return the rows of a job's next evaluation."""
    return denoising.job.images * (2 if denoising.guided else 1)


def _guided(denoising: HostDenoising, output: NDArray[np.float32]) -> Latents:
    """Return the noise prediction of a job from its rows of the UNet's output."""
    guidance, images = denoising.job.guidance, denoising.job.images
    # NaN and infinity of either half are in their difference, which is half as much to see.
    with np.errstate(invalid="ignore"):
        if denoising.guided and guidance is not None:
            prediction = np.empty_like(output[images:])
            guide(output, guidance.scale, prediction)
            if guidance.rescale:
                rescale_deviation(prediction, output[images:], guidance.rescale)
        else:
            prediction = output
    require_finite(prediction, f"noise prediction of step {denoising.index + 1}")
    return prediction


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
