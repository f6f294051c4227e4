"""Seconds of work, estimated before it is done, from what was measured of the work before."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

from bksdm.serve.plan import Plan

SHALLOW = 0.4
"""Part of the whole UNet that the layers after the reused features take, until measured."""
WEIGHT = 0.2
"""Of the newest measurement in the moving average."""


class Costs:
    """Seconds of one engine thread: per row of a UNet call, and per decoded picture.

    Threads may share it.

    Parameters
    ----------
    area : int
        Latent pixels of the picture that was measured first.
    row, decode : float
        Seconds of one row of the whole UNet, and of one decoded picture, for that area.
    """

    def __init__(self, area: int, row: float, decode: float) -> None:
        self._rows = {(area, True): row}
        self._decodes = {area: decode}
        self._lock = threading.Lock()

    def row(self, area: int, whole: bool = True) -> float:
        """Return the seconds of a row; of an area not seen yet in proportion to the nearest."""
        with self._lock:
            return self._row(area, whole)

    def _row(self, area: int, whole: bool) -> float:
        if (area, whole) in self._rows:
            return self._rows[area, whole]
        if not whole:
            return SHALLOW * self._row(area, True)
        return _scaled({known: cost for (known, kind), cost in self._rows.items() if kind}, area)

    def decode(self, area: int) -> float:
        """Return the seconds of decoding one picture."""
        with self._lock:
            return _scaled(self._decodes, area)

    def work(self, plan: Plan, index: int = 0, decoded: int = 0) -> float:
        """Return the seconds that are left of a plan after evaluations and decoded pictures."""
        rows = plan.whole[index] * self.row(plan.area)
        if plan.shallow[index]:
            rows += plan.shallow[index] * self.row(plan.area, whole=False)
        return float(rows) + (plan.images - decoded) * self.decode(plan.area)

    def ran(self, rows: Mapping[tuple[int, bool], int], seconds: float) -> None:
        """Learn how long UNet calls took together.

        Parameters
        ----------
        rows : mapping
            Of each area, and the whole UNet or not, the rows that ran.
        seconds : float
            Wall time of all.
        """
        with self._lock:
            expected = sum(count * self._row(*kind) for kind, count in rows.items())
            change = 1 + WEIGHT * (seconds / expected - 1)
            for kind in rows:
                self._rows[kind] = change * self._row(*kind)

    def decoded(self, area: int, seconds: float) -> None:
        """Learn how long one picture took to decode."""
        with self._lock:
            known = _scaled(self._decodes, area)
            self._decodes[area] = known + WEIGHT * (seconds - known)


def _scaled(known: Mapping[int, float], area: int) -> float:
    nearest = min(known, key=lambda other: abs(math.log(other / area)))
    return known[nearest] * area / nearest
