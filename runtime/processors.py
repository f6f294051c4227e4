"""How many processors there are for this process."""

from __future__ import annotations

import os

from bksdm.runtime.memory import CONTROL_GROUP


def usable_processors() -> int:
    """Return how many processors this process may use, its container's quota included."""
    known = hasattr(os, "sched_getaffinity")
    found = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    try:
        quota, period = (CONTROL_GROUP / "cpu.max").read_text().split()
        return found if quota == "max" else max(1, min(found, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or an older kind of control group
        return found
