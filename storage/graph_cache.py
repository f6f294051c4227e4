"""The prepared graphs that lie in folders of engines, and which of them can go."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bksdm.storage.digest import DIGESTS, read_sealed, sha256_of
from bksdm.storage.files import PARTIAL, clear_abandoned, remove_unused
from bksdm.storage.places import ENGINES
from bksdm.storage.stored_graph import FOLDERS, RECORD

MACHINES = f"{FOLDERS}*"
"""Folders of graphs that were prepared for one engine and kind of processor."""
# What tells bundles of one name apart in the user's cache.
_NUMBER = re.compile(r"-[0-9a-f]{12}$")


@dataclass(frozen=True)
class CachedGraph:
    """One prepared graph.

    Attributes
    ----------
    path : Path
        Its folder.
    model : str
        Name of the bundle, or of the folder that it shares with others.
    network : str
        Such as ``unet``.
    size : int
        Bytes.
    used : float
        When it was last opened, in seconds since 1970.
    """

    path: Path
    model: str
    network: str
    size: int
    used: float


def stored_graphs(root: Path) -> Iterator[CachedGraph]:
    """Yield the graphs in a folder of engines, or in the folders of a bundle or a cache."""
    for path in sorted((*root.glob(f"{MACHINES}/*"), *root.glob(f"*/{MACHINES}/*"))):
        if path.name.startswith(PARTIAL) or not path.is_dir():
            continue
        # One that is removed meanwhile is no longer stored.
        with contextlib.suppress(FileNotFoundError):
            size = sum(file.lstat().st_size for file in path.iterdir())
            place = path.parents[1]
            model = place.parent.name if place.name == ENGINES else _NUMBER.sub("", place.name)
            network = path.name.rpartition("-")[0]
            yield CachedGraph(path, model, network, size, path.stat().st_mtime)


def is_whole(folder: Path) -> bool:
    """Return whether every file of a stored graph is what its record says."""
    record = read_sealed(folder / RECORD)
    try:
        return record is not None and all(
            sha256_of(folder / name) == digest for name, digest in record["files"].items()
        )
    except (OSError, KeyError):
        return False


def prune(root: Path, unused: float, kept: Path | None = None) -> list[CachedGraph]:
    """Remove graphs that no process is reading, and return those that are gone.

    Parameters
    ----------
    root : Path
        As of :func:`stored_graphs`.
    unused : float
        Seconds for which a graph has not been opened.
    kept : Path, optional
        The folder of one that stays.
    """
    oldest = time.time() - unused
    return [
        graph
        for graph in stored_graphs(root)
        if graph.path != kept and graph.used <= oldest and remove_unused(graph.path)
    ]


def clear_empty(root: Path) -> None:
    """Remove what killed processes left beside graphs, and folders in which there are none."""
    for machine in (*root.glob(MACHINES), *root.glob(f"*/{MACHINES}")):
        clear_abandoned(machine)
        # They are not empty, or somebody is about to write there.
        with contextlib.suppress(OSError):
            # A process that prepares a graph holds the folder, empty or not.
            if not any(machine.iterdir()):
                remove_unused(machine)
    for place in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(OSError):
            if [file.name for file in place.iterdir()] == [DIGESTS]:
                (place / DIGESTS).unlink()
            place.rmdir()
