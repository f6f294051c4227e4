"""Graphs prepared for an engine, stored so that later starts only open a file.

Each lies in a folder that is named after all it depends on: the content of graph and weights, what
it was rewritten for, and where it is optimised too, the engine's version and the processor. So
nothing stale is ever found, and nothing is replaced that another process may be reading. A weight
that did not change is not stored again; it is read from the bundle.

Files of weights are named from a root: the bundle, where all of them lie in it, so that it can be
moved or copied; otherwise the root of the file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from bksdm.storage.digest import files_digest, graph_files, read_sealed
from bksdm.storage.files import in_use, read_regular
from bksdm.storage.processor import vector_extensions

GRAPH, DATA, INPUTS, RECORD = "model.onnx", "model.onnx.data", "inputs.json", "engine.json"
# In a folder of engines, the folders of graphs are called so.
FOLDERS = "graphs-"
FILESYSTEM = Path(os.path.abspath(os.sep))

Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Prepared:
    """A graph as an engine opens it.

    Attributes
    ----------
    content : bytes
        The ONNX graph.
    root : Path
        The folder from which it names the files of its weights.
    optimised : bool
        Whether the engine's own optimiser has done its work.
    inputs : mapping
        For an engine that takes weights as inputs: where each lies, as dtype, shape, file and
        offset.
    """

    content: bytes
    root: Path
    optimised: bool = False
    inputs: Mapping[str, tuple[str, tuple[int, ...], str, int]] | None = None


@dataclass(frozen=True, kw_only=True)
class StoredGraph:
    """A prepared graph's place on disk.

    Attributes
    ----------
    model : Path
        The graph that it is made from, in the folder of its network.
    variant : str
        Of :mod:`bksdm.engines.variants`.
    cache : Path
        A folder of engines.
    backend : str
        Name of the engine, fit for a folder.
    version : str
        Of the engine, if the graph depends on it and on the processor; otherwise empty.
    fields : mapping
        What else it depends on, as JSON.
    digests : Path
        The folder of engines in which digests of the bundle's files are remembered.
    """

    model: Path
    variant: str
    cache: Path
    backend: str
    version: str
    fields: Mapping[str, Any]
    digests: Path

    @property
    def name(self) -> str:
        """Of the network."""
        network = self.model.parent.name
        return f"{network}-{self.variant}" if self.variant else network

    @cached_property
    def files(self) -> list[Path]:
        """The graph's file and those of its weights."""
        return graph_files(self.model)

    @cached_property
    def root(self) -> Path:
        """The folder from which files of weights are named."""
        bundle = Path(os.path.realpath(self.cache.parent))
        places = (*self.files, self.cache)
        inside = all(Path(os.path.realpath(place)).is_relative_to(bundle) for place in places)
        return bundle if inside else FILESYSTEM

    def named(self, file: Path) -> str:
        """Return a file's name from the root, all links resolved but for a missing file's own."""
        return Path(os.path.realpath(file)).relative_to(self.root).as_posix()

    @cached_property
    def record(self) -> dict[str, Any]:
        """All that the graph depends on.

        Raises
        ------
        BundleError
            The graph that it is made from is damaged, or a file of its weights is missing.
        """
        return {
            "backend": self.backend,
            "version": self.version,
            "network": self.name,
            **self.fields,
            "source": files_digest(self.files, self.digests),
            "weights": [self.named(file) for file in self.files[1:]],
        }

    @property
    def folder(self) -> Path:
        """The folder of the graph."""
        key = hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()[:16]
        machine = f"{FOLDERS}{self.backend}"
        if self.version:
            # What determines the layout of optimised weights.
            digest = hashlib.sha256(vector_extensions().encode()).hexdigest()[:8]
            machine += f"-{self.version}-{digest}"
        return self.cache / machine / f"{self.name}-{key}"

    def open(self, open_graph: Callable[[Prepared], Opened]) -> Opened | None:
        """Return what opening the stored graph gives; None if it is missing or damaged.

        Parameters
        ----------
        open_graph : callable
            Opens a graph.

        Raises
        ------
        BundleError
            As of :attr:`record`.
        """
        folder = self.folder
        try:
            with in_use(folder):
                with contextlib.suppress(OSError):
                    os.utime(folder)
                return open_graph(read_prepared(folder, self.root, bool(self.version)))
        except Exception:  # whatever is wrong with it, it is made anew, and then every error counts
            return None


def read_prepared(folder: Path, root: Path, optimised: bool) -> Prepared:
    """Return the graph in a folder.

    Raises
    ------
    OSError, ValueError
        It is missing or damaged.
    """
    inputs = None
    if (folder / INPUTS).exists():
        sealed = read_sealed(folder / INPUTS)
        if sealed is None:
            raise ValueError(f"{folder / INPUTS}: damaged")
        inputs = {
            name: (dtype, tuple(shape), file, offset)
            for name, (dtype, shape, file, offset) in sealed["inputs"].items()
        }
    return Prepared(read_regular(folder / GRAPH), root, optimised, inputs)
