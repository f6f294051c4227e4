"""What is left to do once a request is checked: the same for every way of running the networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.checks import is_false
from bksdm.runtime.guidance import Guidance
from bksdm.runtime.prompt_encoder import PLAIN, Wording
from bksdm.runtime.samplers import StepTable
from bksdm.runtime.sampling import Known, Step

StepCallback = Callable[[Step], "bool | None"]


class Cancelled(Exception):
    """The step callback returned False; ``step`` is the last one that ran."""

    def __init__(self, step: Step) -> None:
        super().__init__(f"cancelled after step {step.index + 1} of {step.total}")
        self.step = step


@dataclass(frozen=True)
class Work:
    """Pictures to make.

    Attributes
    ----------
    texts : sequence of str
        One per row of the UNet's batch; with guidance the negative prompts, then the prompts.
    guidance : Guidance or None
        None runs the UNet without an unconditional half.
    table : StepTable
        The compiled sampler.
    start : ndarray, float32, shape [images, channels, height / 8, width / 8]
        x_T, already multiplied by ``table.init_noise_sigma``.
    noises : ndarray, float32, shape [table.draws, *start.shape]
        Unit noise that a stochastic sampler adds.
    known : Known, optional
        What of a picture stays as it was.
    wording : Wording
        How texts are read.
    reuse : int
        The whole UNet runs in every n-th evaluation.
    callback : callable, optional
        Called after every step; returning False stops.
    """

    texts: Sequence[str]
    guidance: Guidance | None
    table: StepTable
    start: NDArray[np.float32]
    noises: NDArray[np.float32]
    known: Known | None = None
    wording: Wording = PLAIN
    reuse: int = 1
    callback: StepCallback | None = None

    def report(self, step: Step) -> None:
        """Call the callback, if there is one.

        Raises
        ------
        Cancelled
            It returned False.
        """
        if self.callback is not None and is_false(self.callback(step)):
            raise Cancelled(step)


class Executor(Protocol):
    """Runs a bundle's networks."""

    def check(self, height: int, width: int, images: int) -> None:
        """Refuse a size in pixels or a number of images that cannot be run.

        Raises
        ------
        RequestError
            Says what can be.
        """
        ...

    def __call__(self, work: Work, seconds: dict[str, float]) -> NDArray[np.uint8]:
        """Return pixels [images, height, width, 3] and add the wall time of each stage.

        Raises
        ------
        NonFiniteError
            A network produced NaN or infinity.
        Cancelled
            The callback returned False.
        """
        ...

    def decode(self, latents: NDArray[np.float32], seconds: dict[str, float]) -> NDArray[np.uint8]:
        """Return pixels [images, height, width, 3] of latents, which may be any step's.

        Raises
        ------
        NonFiniteError
            The VAE decoder produced NaN or infinity.
        """
        ...
