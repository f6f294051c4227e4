"""The list of a folder's pictures: a JSON object per line with file, SHA-256 and options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bksdm.engines.errors import RequestError
from bksdm.runtime.user_files import read_input, write_text
from bksdm.storage.files import alone

NAME = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """A picture.

    Attributes
    ----------
    file : str
        Name in the folder.
    sha256 : str
        Of the file, hexadecimal.
    line, index : int
        Of the prompt file, from 1, and of the image in the line's batch, from 0.
    options : dict
        As :meth:`~bksdm.runtime.generation_config.GenerationConfig.to_dict` has them.
    model, model_digest : str
        The bundle's name and digest.
    """

    file: str
    sha256: str
    line: int
    index: int
    options: dict[str, Any]
    model: str
    model_digest: str


def listing(entries: Iterable[Entry]) -> str:
    """Return the list as it is written, in the order of lines."""
    ordered = sorted(entries, key=lambda e: (e.line, e.index, e.file))
    rows = (json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in ordered)
    return "".join(rows)


class Manifest:
    """A folder's list, which several processes may add to at the same time."""

    def __init__(self, folder: Path) -> None:
        # A link to it has no lock.
        self._folder = Path(os.path.realpath(folder))
        self.path = folder / NAME

    def entries(self) -> dict[str, Entry]:
        """Return what is listed, by file.

        Raises
        ------
        RequestError
            The file cannot be read, or is no such list.
        """
        if not self.path.exists():
            return {}
        rows = read_input(self.path).decode(errors="replace").splitlines()
        try:
            found = [Entry(**json.loads(row)) for row in rows]
        except (ValueError, TypeError, RecursionError) as error:
            raise RequestError(
                f"{self.path}: not a list of pictures that `bksdm generate --prompts` writes; "
                "remove it or name another folder"
            ) from error
        return {entry.file: entry for entry in found}

    def add(self, entries: Iterable[Entry]) -> None:
        """Put pictures on the list, in the order of lines whoever was first.

        Raises
        ------
        RequestError
            The list cannot be read or written.
        """
        with alone(self._folder):
            listed = self.entries()
            found = {**listed, **{entry.file: entry for entry in entries}}
            if found == listed:
                return
            write_text(self.path, listing(found.values()))
