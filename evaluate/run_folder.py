"""A run on disk: its settings, and a file of measures for every picture that was drawn."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.evaluate.measures import AllMeasures, Measures
from bksdm.runtime.validation import no_folder, shown
from bksdm.storage.digest import read_sealed, write_sealed
from bksdm.storage.files import clear_abandoned, read_regular, staged, write_file

SETTINGS = "run.json"
MEASURES = "measures"
COUNT = "prompts"
"""The setting that says how many there are."""
FIELDS = ("features", "logits", "similarity")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """Where a run, or a part of it, puts what it has measured.

    Whatever is written is written at once, so that a run may be killed at any moment; processes may
    fill the same folder.

    Attributes
    ----------
    path : Path
        The folder.
    settings : mapping
        All that the measures depend on, by name.
    """

    path: Path
    settings: Settings

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open a folder that a run has begun.

        Raises
        ------
        RequestError
            It is none.
        """
        if not path.is_dir():
            raise RequestError(f"{path}: {no_folder(path)}; `bksdm evaluate -o` makes one")
        settings = read_sealed(path / SETTINGS)
        if settings is None:
            raise RequestError(f"{path}: no run of `bksdm evaluate`, or its {SETTINGS} is damaged")
        return cls(path, settings)

    @classmethod
    def begin(cls, path: Path, settings: Settings) -> RunFolder:
        """Make a folder for a run, or go on with one.

        Raises
        ------
        RequestError
            The folder holds a run of other settings; names the first that differs. Or it holds
            something else.
        """
        path.mkdir(parents=True, exist_ok=True)
        clear_abandoned(path)
        if any(path.iterdir()):
            found = cls.open(path)
            found.require(settings)
        else:
            write_file(path / SETTINGS, write_sealed(settings))
        # Last: without settings, nothing else may be there.
        (path / MEASURES).mkdir(exist_ok=True)
        clear_abandoned(path / MEASURES)
        return cls(path, settings)

    def require(self, settings: Settings) -> None:
        """Check that the run is one of these settings.

        Raises
        ------
        RequestError
            It is another; names the first setting that differs.
        """
        for name in dict.fromkeys((*settings, *self.settings)):
            ours, asked = self.settings.get(name), settings.get(name)
            # As JSON, which knows no tuples.
            if ours != json.loads(json.dumps(asked)):
                raise RequestError(
                    f"{self.path} is a run with {name} {shown(ours)}, not {shown(asked)}; "
                    "take another folder, or the same options"
                )

    @property
    def count(self) -> int:
        """The number of pictures of the whole run."""
        return int(self.settings[COUNT])

    def there(self) -> list[int]:
        """Return which pictures are measured, ascending."""
        files = (self.path / MEASURES).glob("*.npz")
        return sorted(int(file.stem) for file in files if file.stem.isdigit())

    def file(self, index: int) -> Path:
        """Return the file of a picture's measures."""
        return self.path / MEASURES / f"{index:05d}.npz"

    def write(self, index: int, measures: Measures) -> int:
        """Write the measures of a picture; return how many bytes they take."""
        stream = io.BytesIO()
        np.savez(stream, **{name: getattr(measures, name) for name in FIELDS})
        write_file(self.file(index), stream.getvalue())
        return stream.tell()

    def read(self, indices: Sequence[int]) -> AllMeasures:
        """Return the measures of pictures, in the order that is asked for.

        Raises
        ------
        RequestError
            A file is damaged.
        """
        rows = [self._arrays(index) for index in indices]
        return AllMeasures(*(np.stack([row[name] for row in rows]) for name in FIELDS))

    def _arrays(self, index: int) -> dict[str, NDArray[Any]]:
        file = self.file(index)
        try:
            with np.load(io.BytesIO(read_regular(file)), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in FIELDS}
        except (BadZipFile, ValueError, KeyError, EOFError) as error:
            raise RequestError(f"{file}: damaged; remove it, and run the same again") from error


def merge(parts: Sequence[RunFolder], target: Path) -> RunFolder:
    """Put the parts of a run into one folder; return it.

    Raises
    ------
    RequestError
        They are of different runs, measured a picture differently, or leave some out.
    FileExistsError
        There is a target already.
    """
    first, *others = parts
    for other in others:
        other.require(first.settings)
    files: dict[int, Path] = {}
    for part in parts:
        for index in part.there():
            file = files.setdefault(index, part.file(index))
            if file.read_bytes() != part.file(index).read_bytes():
                raise RequestError(
                    f"{file} and {part.file(index)} differ, of the same picture; "
                    "measure all parts on machines of one kind"
                )
    require_all(first, files)
    target.parent.mkdir(parents=True, exist_ok=True)
    with staged(target) as folder:
        (folder / MEASURES).mkdir()
        for file in files.values():
            shutil.copyfile(file, folder / MEASURES / file.name)
        write_file(folder / SETTINGS, write_sealed(first.settings))
    return RunFolder.open(target)


def require_all(run: RunFolder, found: Iterable[int]) -> None:
    """Check that no picture of a run is missing.

    Raises
    ------
    RequestError
        Some are; says how many.
    """
    missing = sorted(set(range(run.count)) - set(found))
    if missing:
        raise RequestError(
            f"{len(missing)} of {run.count} pictures are missing, the first that of line "
            f"{missing[0] + 1}; run `bksdm evaluate` for them again"
        )
