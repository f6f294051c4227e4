"""A job in slots of a session, from when it joins until it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.runtime.cuda.device import Part
from bksdm.runtime.cuda.evaluation import StepForm, step_forms
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob

if TYPE_CHECKING:
    from bksdm.runtime.cuda.session import Session


class DeviceTrajectory:
    """Latents on the GPU; implements :class:`~bksdm.runtime.sampling.Trajectory`.

    :meth:`~bksdm.runtime.cuda.session.Session.join` makes it.

    Parameters
    ----------
    session : Session
        Where its slots are.
    job : DenoisingJob
        The pictures to make.
    slots : range
        One for each.
    watched : bool
        Whether somebody may ask for the latents of steps.

    Attributes
    ----------
    launched : int
        Evaluations that were enqueued.
    decoded : bool
        Whether the VAE decoder was, too.
    """

    def __init__(self, session: Session, job: DenoisingJob, slots: range, watched: bool) -> None:
        self.session, self.job, self.slots, self.watched = session, job, slots, watched
        self.forms = step_forms(job)
        self.launched, self.decoded = 0, False
        self._waits, self._joins = session.waits, session.joins_of(slots)

    def next_forms(self, most: int) -> list[StepForm]:
        """Return how its next steps are done, of so many at most."""
        return self.forms[self.launched : self.launched + most]

    @property
    def done(self) -> bool:
        """Whether its last evaluation was enqueued."""
        return self.launched == len(self.forms)

    @property
    def evaluated(self) -> int:
        """How many evaluations the GPU has made of a counted job; asks nothing of it."""
        return self.session.evaluated(self.slots[0])

    @property
    def in_place(self) -> bool:
        """Whether no other job has taken its slots."""
        return self.session.joins_of(self.slots) == self._joins

    @property
    def under_way(self) -> bool:
        """Whether nobody has waited since it joined, or since its last step was enqueued."""
        return self.session.waits == self._waits

    def count(self, steps: int) -> None:
        """Note that so many steps were enqueued."""
        self.launched += steps
        self._waits = self.session.waits

    def advance(self, index: int, told: None) -> DeviceMoved:
        """Return the latents around a step, which a launch of the session has made."""
        assert self.launched > index
        return DeviceMoved(self, index)

    def latents(self) -> Latents:
        """Wait, and return the latents where the last step left them."""
        return self.session.fetch([self.session.latents_of(self.slots)])

    def end(self) -> NDArray[np.uint8]:
        """Enqueue the VAE decoder, wait once, and return pixels [images, height, width, 3].

        Raises
        ------
        NonFiniteError
            A network produced NaN or infinity; names the first.
        """
        return self.session.decode_slots(self.slots, self.decoded)

    def leave(self) -> None:
        """Free the slots, of which nothing is under way any more; stops what is not done."""
        self.session.leave(self)


class DeviceMoved:
    """Latents around a step on the GPU; implements :class:`~bksdm.runtime.sampling.Moved`.

    Each waits for the GPU, and raises :class:`~bksdm.engines.errors.RequestError` once the next
    step of the job, or another job in its place, was enqueued. Any thread may ask.
    """

    def __init__(self, trajectory: DeviceTrajectory, index: int) -> None:
        self._trajectory, self._index = trajectory, index

    @property
    def previous(self) -> Latents:
        """x_k, float32."""
        trajectory = self._trajectory
        return self._fetched([trajectory.session.previous_of(trajectory.slots)])

    @property
    def noise_prediction(self) -> Latents:
        """ε_k, guided, float32."""
        session = self._trajectory.session
        return self._fetched([session.output(slot, self._index) for slot in self._trajectory.slots])

    @property
    def latents(self) -> Latents:
        """x_{k+1}, float32."""
        trajectory = self._trajectory
        return self._fetched([trajectory.session.latents_of(trajectory.slots)])

    def _fetched(self, parts: list[Part]) -> Latents:
        trajectory = self._trajectory
        with trajectory.session.alone():
            if not trajectory.in_place or trajectory.launched != self._index + 1:
                raise RequestError(
                    f"the latents of step {self._index + 1} have been overwritten on the GPU; ask "
                    "for them in the callback of that step"
                )
            return trajectory.session.fetch(parts)
