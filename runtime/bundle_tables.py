"""The samplers of a bundle as files, for programs that read tables in place of schedulers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bksdm.engines.errors import SamplerError
from bksdm.runtime.a1111_options import a1111_sampler
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.loaded_configuration import Start, scheduler_fields
from bksdm.runtime.samplers import sampler_name, step_table
from bksdm.runtime.samplers.config import MAX_TRAIN_TIMESTEPS
from bksdm.runtime.samplers.table_file import (
    IMAGE,
    MASKED_IMAGE,
    NOISE,
    SUFFIX,
    StoredTable,
    table_file,
)
from bksdm.storage.files import write_file

FOLDER = "tables"
"""The folder of a bundle."""
OWN = "default"
"""Stands for the sampler of the model's own configuration."""
MOST_IMAGE_STEPS = 200
"""Of a file for every strength, which grows with the cube of the steps: 43 MB."""
_STARTS: dict[Start, int] = {"noise": NOISE, "image": IMAGE, "masked image": MASKED_IMAGE}


@dataclass(frozen=True)
class WantedTable:
    """What a file is asked to hold.

    Attributes
    ----------
    sampler : str or None
        A name from :func:`~bksdm.runtime.samplers.sampler_name`; None is the model's own.
    steps : int
        Number of inference steps.
    images : bool
        Whether pictures may be started from, at any strength.
    """

    sampler: str | None
    steps: int
    images: bool = False

    @classmethod
    def read(cls, text: str) -> WantedTable:
        """Read ``SAMPLER:STEPS`` or ``SAMPLER:STEPS:image``; :data:`OWN` is the model's own.

        Raises
        ------
        SamplerError
            It looks otherwise, there is no such sampler, or there are too many steps.
        """
        name, *others = text.split(":")
        if not others or not others[0].isdecimal() or others[1:] not in ([], ["image"]):
            raise SamplerError(
                f"a table is asked for as SAMPLER:STEPS or SAMPLER:STEPS:image, not {text!r}"
            )
        sampler = None if name == OWN else sampler_name(name)
        images = bool(others[1:])
        most = MOST_IMAGE_STEPS if images else MAX_TRAIN_TIMESTEPS
        if len(others[0]) > 6 or not 1 <= int(others[0]) <= most:
            raise SamplerError(f"steps of the table {text!r} must be from 1 to {most}")
        return cls(sampler, int(others[0]), images)

    @property
    def file(self) -> str:
        """Its name in a bundle's folder, by which programs find it."""
        return f"{self.sampler or OWN}-{self.steps}{SUFFIX}"


def tables_of(bundle: Bundle, wanted: WantedTable) -> bytes:
    """Return a file with the tables of one sampler and number of steps.

    Raises
    ------
    SamplerError
        The bundle's configuration or the number of steps is refused.
    """
    stored: list[StoredTable] = []
    kept: dict[tuple[int, str], int] = {}
    for first in range(wanted.steps + 1 if wanted.images else 1):
        for start, bit in _STARTS.items():
            if (start == "noise" and first) or (start != "noise" and not wanted.images):
                continue
            fields = scheduler_fields(bundle.scheduler, start, wanted.sampler)
            # A table that several starts have in common is stored once.
            key = first, repr(sorted(fields.items()))
            if key in kept:
                same = stored[kept[key]]
                stored[kept[key]] = StoredTable(same.starts | bit, first, same.table)
                continue
            try:
                table = step_table(fields, wanted.steps, wanted.sampler, first)
            except SamplerError:
                if start == "noise":
                    raise
                # Some methods cannot begin in the middle, or with a mask: they have no such table.
                continue
            kept[key] = len(stored)
            stored.append(StoredTable(bit, first, table))
    name, spacing = a1111_sampler(wanted.sampler, bundle.scheduler)
    description = {
        "sampler": wanted.sampler,
        "steps": wanted.steps,
        "scheduler": bundle.scheduler.get("_class_name"),
        "model": bundle.path.resolve().name,
        "model_digest": bundle.digest(),
        "version": version("bksdm-runtime"),
        "a1111": {"Sampler": name, "Schedule type": spacing},
    }
    return table_file(description, stored)


def write_tables(bundle: Bundle, wanted: WantedTable) -> Path:
    """Write a file into a bundle, and return its path.

    Raises
    ------
    SamplerError
        As of :func:`tables_of`.
    """
    content = tables_of(bundle, wanted)
    path = bundle.path / FOLDER / wanted.file
    path.parent.mkdir(exist_ok=True)
    write_file(path, content)
    return path
