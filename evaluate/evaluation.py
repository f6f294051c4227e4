"""Measure every prompt of a run that is not measured yet, and tell what that will cost."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bksdm.engines.errors import RequestError
from bksdm.evaluate.measures import Measures
from bksdm.evaluate.run_folder import RunFolder
from bksdm.runtime.generation_config import GenerationConfig

TIMED = 3
"""Pictures that an estimate of the cost is made from."""
Measure = Callable[[GenerationConfig], Measures]
"""Draws a picture and measures it."""


@dataclass(frozen=True)
class Done:
    """A picture that was measured.

    Attributes
    ----------
    index : int
        Of its prompt.
    seconds : float
        Wall time.
    size : int
        Bytes on disk.
    """

    index: int
    seconds: float
    size: int


@dataclass(frozen=True)
class Cost:
    """What the rest of a run will take, by the pictures that were timed.

    Attributes
    ----------
    pictures : int
        That are left.
    seconds : float
        Wall time, by the median: the first picture also loads what is used for the first time.
    size : int
        Bytes on disk.
    """

    pictures: int
    seconds: float
    size: int

    @classmethod
    def of(cls, done: Sequence[Done], pictures: int) -> Cost:
        """Extrapolate."""
        return cls(
            pictures,
            statistics.median(each.seconds for each in done) * pictures,
            max(each.size for each in done) * pictures,
        )

    def shown(self) -> str:
        """Return it in a line."""
        hours, minutes = divmod(round(self.seconds / 60), 60)
        span = f"{hours} h {minutes} min" if hours else f"{minutes} min"
        return (
            f"{self.pictures} more pictures will take about {span if minutes or hours else '1 min'}"
            f" and {self.size / 1e6:.1f} MB"
        )

    def require_disk(self, run: RunFolder) -> None:
        """Check that the disk has room for it.

        Raises
        ------
        RequestError
            States both.
        """
        free = shutil.disk_usage(run.path).free
        if free < self.size:
            raise RequestError(
                f"{run.path}: {self.pictures} more pictures take {self.size / 1e6:.0f} MB, and "
                f"{free / 1e6:.0f} MB are free"
            )


def part_of(count: int, part: int = 1, parts: int = 1) -> range:
    """Return the pictures of the ``part``-th of ``parts`` parts, counted from 1."""
    return range(part - 1, count, parts)


def measure_missing(
    run: RunFolder, prompts: Sequence[GenerationConfig], part: Sequence[int], measure: Measure
) -> Iterator[Done]:
    """Measure what is missing of a part, one picture at a time, and write each at once.

    Parameters
    ----------
    run : RunFolder
        Where the measures go.
    prompts : sequence of GenerationConfig
        All of the run; each has its own seed.
    part : sequence of int
        Which of them, see :func:`part_of`.
    measure : callable
        Draws and measures one.

    Yields
    ------
    Done
        After every picture.
    """
    there = set(run.there())
    for index in part:
        if index in there:
            continue
        start = time.perf_counter()
        size = run.write(index, measure(prompts[index]))
        yield Done(index, time.perf_counter() - start, size)


def require_one_picture(config: GenerationConfig) -> None:
    """Check that a prompt asks for one picture, by one seed.

    Raises
    ------
    RequestError
        It does not.
    """
    if config.images != 1:
        raise RequestError(f"asks for {config.images} pictures; each line is scored by one")
