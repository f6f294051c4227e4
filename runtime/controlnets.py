"""Run ControlNets, and put together what they add to a UNet (Zhang et al., arXiv 2302.05543)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.once import once
from bksdm.engines.protocol import Array, Engine
from bksdm.engines.variants import CONTROL_IMAGE, HINT_FEATURES, SAMPLE_OF_ROW, is_residual
from bksdm.runtime.job import DenoisingJob

Feed = Callable[[Engine, Sequence[bool]], dict[str, Array]]
"""Returns what a network takes of latents, timesteps and text, of the evaluations of a group.

It is told of which of them both halves run.
"""


class ControlNetwork(NamedTuple):
    """A ControlNet, loaded when it is first asked for.

    Attributes
    ----------
    load_hint, load : callable
        Return the engines of its layers that see only the picture, and of the others.
    pools : bool
        Whether each channel has one value, ``global_pool_conditions``.
    """

    load_hint: Callable[[], Engine]
    load: Callable[[], Engine]
    pools: bool


class Controlled(Protocol):
    """An evaluation of one job in which ControlNets act."""

    @property
    def job(self) -> DenoisingJob:
        """What it is of."""
        ...

    @property
    def hints(self) -> tuple[Array, ...]:
        """What :meth:`ControlNets.hints` made of the job."""
        ...

    @property
    def acting(self) -> tuple[int, ...]:
        """Which of the job's controls act, by their place."""
        ...

    @property
    def guided(self) -> bool:
        """Whether the UNet runs both halves."""
        ...

    @property
    def rows(self) -> int:
        """Its rows of the UNet call."""
        ...


class ControlNets:
    """The ControlNets of a bundle, and its UNet that takes what they make. Threads may share it.

    Parameters
    ----------
    load_unet : callable
        Returns the engine of the UNet that is :data:`~bksdm.engines.variants.CONTROLLED`.
    nets : mapping
        By name.
    """

    def __init__(self, load_unet: Callable[[], Engine], nets: Mapping[str, ControlNetwork]) -> None:
        self.unet = once(load_unet)
        self._nets = {
            name: ControlNetwork(once(net.load_hint), once(net.load), net.pools)
            for name, net in nets.items()
        }

    def hints(self, job: DenoisingJob) -> tuple[Array, ...]:
        """Return what each of a job's ControlNets sees in its pictures.

        Arrays [images, channels, height / 8, width / 8], the same in every evaluation.
        """
        return tuple(self._hint(each.name, each.pixels) for each in job.controls)

    def _hint(self, name: str, pixels: NDArray[np.float32]) -> Array:
        network = self._nets[name].load_hint()
        cast = pixels.astype(network.inputs[CONTROL_IMAGE].dtype, copy=False)
        # One by one, for these are the largest features; images of one prompt are often alike.
        seen: list[Array] = []
        for index in range(len(cast)):
            if index and np.array_equal(cast[index], cast[index - 1]):
                seen.append(seen[-1])
            else:
                seen.append(network({CONTROL_IMAGE: cast[index : index + 1]})[HINT_FEATURES])
        return np.concatenate(seen)

    def residuals(
        self, group: Sequence[Controlled], feed: Feed, seconds: dict[str, float]
    ) -> dict[str, Array]:
        """Return what is added to the UNet's features in one call, by the names of its inputs.

        Zeros where none of them acts.

        Parameters
        ----------
        group : sequence of Controlled
            Evaluations in which the same ControlNets act.
        feed : callable
            Makes their other inputs.
        seconds : dict
            Where the wall time of ``controlnet`` is added.
        """
        if not group[0].acting:
            return self._nothing(sum(each.rows for each in group))
        start = time.perf_counter()
        total: dict[str, Array] = {}
        for place in range(len(group[0].acting)):
            made = self._scaled(group, place, feed)
            total = {name: total[name] + made[name] for name in total} if total else made
        seconds["controlnet"] = seconds.get("controlnet", 0.0) + time.perf_counter() - start
        return total

    def _nothing(self, rows: int) -> dict[str, Array]:
        """Return zeros, one per row and channel.

        So that a job takes one UNet in all of its steps, for each is gigabytes to an engine.
        """
        return {
            name: np.zeros((rows, int(spec.shape[1]), 1, 1), spec.dtype)
            for name, spec in self.unet().inputs.items()
            if is_residual(name)
        }

    def _scaled(self, group: Sequence[Controlled], place: int, feed: Feed) -> dict[str, Array]:
        """Return what one ControlNet makes, times its scale, [rows of the UNet, …]."""
        controls = [each.job.controls[each.acting[place]] for each in group]
        net = self._nets[controls[0].name]
        network = net.load()
        both = [each.guided and not each.job.guess_mode for each in group]
        feeds = feed(network, both)
        hints = [each.hints[each.acting[place]] for each in group]
        if SAMPLE_OF_ROW not in network.inputs:
            hints = [
                np.tile(hint, (2, 1, 1, 1)) if twice else hint
                for hint, twice in zip(hints, both, strict=True)
            ]
        feeds[HINT_FEATURES] = np.concatenate(hints)
        made = network({name: feeds[name] for name in network.inputs})
        counts = [
            each.job.images * (2 if twice else 1) for each, twice in zip(group, both, strict=True)
        ]
        rows = _rows_of(group, counts)
        # In guess mode what is added to fine features counts least.
        levels = np.logspace(-1, 0, len(made), dtype=np.float32)
        result = {}
        for (name, array), level in zip(made.items(), levels, strict=True):
            factors = [
                np.full(count, (level if _guesses(each, net) else 1) * np.float32(control.scale))
                for each, control, count in zip(group, controls, counts, strict=True)
            ]
            result[name] = _placed(_times(array, np.concatenate(factors)), rows, net.pools)
        return result


def _guesses(evaluation: Controlled, net: ControlNetwork) -> bool:
    return evaluation.job.guess_mode and not net.pools


def _rows_of(group: Sequence[Controlled], counts: Sequence[int]) -> NDArray[np.bool_]:
    """Return which rows of the UNet a ControlNet runs for: the last ones of each evaluation."""
    parts = [
        np.arange(each.rows) >= each.rows - count for each, count in zip(group, counts, strict=True)
    ]
    return np.concatenate(parts)


def _times(array: Array, factors: NDArray[np.float32]) -> Array:
    if (factors == 1).all():
        return array
    scaled: Array = array * factors.astype(array.dtype)[:, None, None, None]
    return scaled


def _placed(array: Array, rows: NDArray[np.bool_], pools: bool) -> Array:
    """Return an array with a row for each of the UNet's: zeros where it does not run."""
    if pools:
        mean = array.mean((2, 3), keepdims=True, dtype=np.float32).astype(array.dtype)
        array = np.broadcast_to(mean, array.shape)
    if rows.all():
        return array
    placed = np.zeros((len(rows), *array.shape[1:]), array.dtype)
    placed[rows] = array
    return placed
