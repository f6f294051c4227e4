"""The work of a request, in rows of UNet calls, known before it is begun."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.request import Request

CONTROL = 0.35
"""Part of the UNet that a ControlNet is: measured 0.34 of its time."""


@dataclass(frozen=True)
class Plan:
    """Rows of the UNet that are left from each evaluation on.

    Attributes
    ----------
    area : int
        Latent pixels of one image.
    images : int
        Pictures, each decoded for itself.
    whole, shallow : ndarray of int, shape [evaluations + 1]
        Rows of the whole UNet from evaluation i on, ControlNets counted as such, and of its layers
        after the reused features; both end with 0.
    """

    area: int
    images: int
    whole: NDArray[np.int64]
    shallow: NDArray[np.int64]

    @classmethod
    def of(cls, request: Request) -> Plan:
        """Return the plan of a request."""
        total, (images, _, height, width) = len(request.table), request.shape
        guidance, interval = request.guidance, request.cache_interval
        whole, shallow = np.zeros((2, total), np.int64)
        known = 0
        for index in range(total):
            guided = guidance is not None and guidance.at(index, total)
            rows = images * (2 if guided else 1)
            acting = sum(control.at(index, total) for control in request.controls)
            shown = images if request.config.guess_mode else rows
            added = math.ceil(CONTROL * acting * shown)
            # As of NoisePredictor: features of fewer rows cannot be reused.
            if index % interval == 0 or known < rows:
                known = rows
                whole[index] = rows + added
            else:
                shallow[index] = rows
        return cls(height * width, images, _left(whole), _left(shallow))

    @property
    def evaluations(self) -> int:
        """Number of UNet evaluations."""
        return len(self.whole) - 1

    def rows(self, index: int) -> tuple[bool, int]:
        """Return whether evaluation ``index`` runs the whole UNet, and its rows."""
        whole = int(self.whole[index] - self.whole[index + 1])
        return (
            (True, whole) if whole else (False, int(self.shallow[index] - self.shallow[index + 1]))
        )


def _left(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums from each entry on, and 0."""
    return np.append(np.cumsum(rows[::-1])[::-1], 0)
