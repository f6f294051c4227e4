"""Draw with the workers of a Ray cluster, as an operator of Ray Data."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator, Sequence
from dataclasses import asdict, fields
from typing import Any

import ray
import ray.data
import ray.exceptions

from bksdm.batch.drawer import Drawer, Outcome, Setup
from bksdm.batch.job import Job
from bksdm.engines.errors import BksdmError
from bksdm.engines.registry import capabilities
from bksdm.runtime.generation_config import GenerationConfig

MOST_BLOCKS = 2000
"""That the lines are divided into: when a worker is lost, its block is looked through again."""


class Draw:
    """A row becomes pictures in a place: for ``Dataset.map``, a worker each.

    A row that is mapped again, because its worker was lost, finds the pictures that are there.

    Parameters
    ----------
    setup : Setup
        What is drawn with, and where to.
    """

    def __init__(self, setup: Setup) -> None:
        self._drawer = Drawer(setup, f"{socket.gethostname()}:{os.getpid()}")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the row with the fields of an :class:`~bksdm.batch.drawer.Outcome`.

        Parameters
        ----------
        row : dict
            ``line``, a number, and ``options``, a JSON object of a picture's options with a seed.
        """
        config = GenerationConfig.from_dict(json.loads(row["options"]))
        return {**row, **asdict(self._drawer.draw(int(row["line"]), config))}


def draw_with_ray(
    setup: Setup, jobs: Sequence[Job], count: int, threads: int
) -> Generator[Outcome]:
    """Draw lines, and return what became of each; of a block's when all are done.

    Parameters
    ----------
    setup : Setup
        What they are drawn with, and where to.
    jobs : sequence of Job
        The lines.
    count : int
        Workers at a time.
    threads : int
        CPUs that Ray reserves for each; one on a GPU gets one of these too.

    Raises
    ------
    BksdmError, OSError
        A line cannot be drawn or written.
    """
    rows = [{"line": job.line, "options": json.dumps(job.config.to_dict())} for job in jobs]
    lines = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    lines.context.enable_progress_bars = False
    lines.context.raise_original_map_exception = True
    drawn = lines.map(
        Draw,
        fn_constructor_args=(setup,),
        compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
        num_cpus=threads,
        num_gpus=1 if capabilities(setup.engine).on_device else 0,
    )
    try:
        for row in drawn.iter_rows():
            told = {field.name: row[field.name] for field in fields(Outcome)}
            yield Outcome(**{**told, "files": list(row["files"]), "sha256": list(row["sha256"])})
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, (BksdmError, OSError)):
            raise error.cause from error
        raise
