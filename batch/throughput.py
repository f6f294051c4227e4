"""How fast workers drew, told at the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from bksdm.batch.drawer import Outcome


def throughput(outcomes: Iterable[Outcome], seconds: float) -> list[str]:
    """Return a line for all workers together, and one for each that drew.

    Parameters
    ----------
    outcomes : iterable of Outcome
        Of a run.
    seconds : float
        That it took, with the loading of the model; those of a worker are without.
    """
    pictures: Counter[str] = Counter()
    drawing: defaultdict[str, float] = defaultdict(float)
    for outcome in outcomes:
        if outcome.drawn:
            pictures[outcome.worker] += outcome.drawn
            drawing[outcome.worker] += outcome.seconds
    total = pictures.total()
    if not total:
        return []
    return [
        f"{total} pictures in {seconds:.1f} s, {total / seconds:.3g}/s",
        *(
            f"{worker}: {pictures[worker]} in {drawing[worker]:.1f} s, "
            f"{pictures[worker] / drawing[worker]:.3g}/s"
            for worker in sorted(pictures)
        ),
    ]
