"""Graphs that ONNX Runtime has optimised, stored so that later starts skip the optimisation.

Each lies in a folder that is named after all it depends on: the content of graph and weights, what
it was rewritten for, ONNX Runtime's version and the processor. So nothing stale is ever found, and
nothing is replaced that another process may be reading. A weight that the optimiser left as it was
is not stored again; it is read from the bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from bksdm.engines.errors import BksdmError, EngineError
from bksdm.engines.onnxruntime_session import Graph, find_graph
from bksdm.engines.protocol import Array
from bksdm.storage.digest import model_digest, sha256_of, write_sealed
from bksdm.storage.files import alone, clear_abandoned, in_use, remove_unused, staged
from bksdm.storage.graph import load_graph
from bksdm.storage.places import written_in
from bksdm.storage.processor import vector_extensions
from bksdm.storage.stored_graphs import prune
from bksdm.storage.weights import find_files, read_weights

GRAPH, DATA, RECORD = "model.onnx", "model.onnx.data", "engine.json"
# What the location of a weight begins with that lies in the bundle.
BUNDLE = "bundle:"
# Where a weight begins: what the widest vector registers load at once.
ALIGNMENT = 64
LOG = logging.getLogger("bksdm")
UNUSED_SECONDS = 14 * 24 * 3600


class NotSaved(Exception):
    """An optimised graph cannot be stored; the network runs without, but starts slowly."""


@dataclass(frozen=True)
class SavedGraph:
    """An optimised graph's place on disk.

    Attributes
    ----------
    model : Path
        The graph that it is made from.
    cache : Path
        A folder of engines.
    name : str
        Of the network.
    fields : mapping
        What else it depends on, as JSON.
    compose : callable
        Returns the graph to optimise.
    optimise : callable
        Optimises a graph and writes it to a file, all its weights to :data:`DATA` beside it.
    """

    model: Path
    cache: Path
    name: str
    fields: Mapping[str, Any]
    compose: Callable[[], Graph]
    optimise: Callable[[Graph, Path], None]

    def open(self, open_session: Callable[[Graph], ort.InferenceSession]) -> ort.InferenceSession:
        """Return a session of the graph, which is optimised first if it is not stored.

        A damaged one is made anew. Of several that start at the same time one optimises.

        Raises
        ------
        NotSaved
            It cannot be stored, or read.
        BksdmError
            The graph that it is made from is damaged.
        """
        record = self._record()
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
        name = f"{_machine()}/{self.name}-{key}"
        folder = self._written / name
        try:
            session = self._open(folder, open_session)
            if session is None and self._written != self.cache:
                # It may have come with the bundle, in which nothing can be written.
                session = self._open(self.cache / name, open_session)
            if session is None:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with alone(folder.parent):
                    clear_abandoned(folder.parent)
                    # Another may have made it while this one waited.
                    session = self._open(folder, open_session)
                    if session is None:
                        LOG.info(
                            "optimising the graphs once, so that later starts are fast; they are "
                            "stored in %s", self._written,
                        )  # fmt: skip
                        remove_unused(folder)
                        self._save(folder, record)
                        self._prune(folder)
                session = session or self._open(folder, open_session)
        except BksdmError:
            raise
        except Exception as error:  # a full disk is any of a dozen types of ONNX Runtime's
            raise NotSaved(str(error).strip() or type(error).__name__) from error
        if session is None:
            raise NotSaved(f"{folder} cannot be replaced")
        return session

    def _record(self) -> dict[str, Any]:
        return {
            "backend": "onnxruntime",
            "version": ort.__version__,
            "provider": "cpu",
            "network": self.name,
            **self.fields,
            "source": model_digest(self.model, self._written),
        }

    @property
    def _written(self) -> Path:
        return written_in(self.cache, self.model.parents[1])

    def _open(
        self, folder: Path, open_session: Callable[[Graph], ort.InferenceSession]
    ) -> ort.InferenceSession | None:
        """Return a session of the graph in a folder; None if it is missing or damaged."""
        try:
            with in_use(folder):
                with contextlib.suppress(OSError):
                    os.utime(folder)
                proto = load_graph(folder / GRAPH)
                places = {BUNDLE: self.model.parent, "": folder}
                return open_session(find_graph(proto, places, self.name))
        except Exception:  # whatever is wrong with it, it is made anew, and then every error counts
            return None

    def _save(self, folder: Path, record: Mapping[str, Any]) -> None:
        graph = self.compose()
        with contextlib.suppress(FileExistsError), staged(folder) as staging:
            whole = staging / "whole"
            whole.mkdir()
            self.optimise(graph, whole / GRAPH)
            proto = load_graph(whole / GRAPH)
            files = find_files(proto, {"": whole}, self.name)
            _store_once(read_weights(proto, files, self.name), proto, graph, staging / DATA)
            onnx.save(proto, str(staging / GRAPH))
            for file in whole.iterdir():
                file.unlink()
            whole.rmdir()
            sums = {name: sha256_of(staging / name) for name in (GRAPH, DATA)}
            (staging / RECORD).write_bytes(write_sealed({**record, "files": sums}))
            if self._record() != record:
                raise EngineError(f"{self.model} has changed while it was optimised; start again")

    def _prune(self, kept: Path) -> None:
        """Remove graphs that have not been used for weeks: of old versions and old weights."""
        folder = self._written
        # In the user's cache lie those of other bundles too, some of which may be gone.
        prune(folder if folder == self.cache else folder.parent, UNUSED_SECONDS, kept)


def _machine() -> str:
    """Name a folder of optimised graphs after what determines the layout of their weights."""
    digest = hashlib.sha256(vector_extensions().encode()).hexdigest()[:8]
    return f"onnxruntime-{ort.__version__}-cpu-{digest}"


def _store_once(
    found: Mapping[str, Array], proto: onnx.ModelProto, source: Graph, data: Path
) -> None:
    """Write the weights that the optimiser has changed, and point to the bundle for the others."""
    known = read_weights(source.proto, source.files, source.name)
    places = {tensor.name: tensor for tensor in source.proto.graph.initializer}
    with data.open("wb") as stream:
        for tensor in proto.graph.initializer:
            if tensor.name not in found:
                continue
            array = found[tensor.name]
            same = tensor.name in known and _same(array, known[tensor.name])
            if same:
                place = {e.key: e.value for e in places[tensor.name].external_data}
                place["location"] = BUNDLE + source.origins[place["location"]]
            else:
                stream.write(bytes(-stream.tell() % ALIGNMENT))
                place = {"location": DATA, "offset": str(stream.tell())}
                stream.write(array.reshape(-1).view(np.uint8).data)
            place["length"] = str(array.nbytes)
            del tensor.external_data[:]
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)


def _same(one: Array, other: Array) -> bool:
    """Return whether two arrays have the same type, shape and bytes, NaN or not."""
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and np.array_equal(
        one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)
    )
