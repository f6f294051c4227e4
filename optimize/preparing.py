"""Rewrite a graph for an engine, let the engine optimise it, and store the result.

The step before the runtime: it runs with ``bksdm build``, or once when a network is first loaded.
From then on :mod:`bksdm.storage.stored_graph` only opens a file.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import helper

from bksdm.engines.errors import BksdmError, EngineError
from bksdm.engines.preparing import Preparation
from bksdm.engines.protocol import Array
from bksdm.optimize.compose import compose
from bksdm.optimize.graph import load_graph
from bksdm.optimize.weights import external_place, find_files, move_locations, read_weights
from bksdm.storage.digest import sha256_of, write_sealed
from bksdm.storage.files import alone, clear_abandoned, remove_unused, staged
from bksdm.storage.graph_cache import prune
from bksdm.storage.places import ENGINES, user_cache
from bksdm.storage.stored_graph import (
    DATA,
    FILESYSTEM,
    GRAPH,
    INPUTS,
    RECORD,
    Prepared,
    StoredGraph,
)

LOG = logging.getLogger("bksdm")
# Smaller networks are rewritten before anybody wonders what takes so long.
SLOW_FROM_BYTES = 64 * 2**20
UNUSED_SECONDS = 14 * 24 * 3600
# Where a weight begins: what the widest vector registers load at once.
ALIGNMENT = 64

Opened = TypeVar("Opened")


class NotStored(Exception):
    """A prepared graph cannot be stored; the network runs without, but starts slowly."""


@dataclass(frozen=True)
class Composed:
    """A rewritten graph.

    Attributes
    ----------
    network : str
        Its name, for errors.
    proto : ModelProto
        The graph; files of weights are named as in the bundle.
    files : mapping
        These files, links resolved, by the graph's locations.
    """

    network: str
    proto: onnx.ModelProto
    files: Mapping[str, Path]

    @classmethod
    def of(cls, proto: onnx.ModelProto, model: Path) -> Composed:
        """Return the graph of a network, whose weights lie beside ``model``.

        Raises
        ------
        EngineError
            A file of its weights is missing or lies elsewhere.
        """
        network = model.parent.name
        return cls(network, proto, find_files(proto, model.parent, network))

    def prepared(self, root: Path = FILESYSTEM, as_inputs: bool = False) -> Prepared:
        """Return it as an engine opens it, its weights named from a root.

        Parameters
        ----------
        root : Path
            A folder that all its files lie in.
        as_inputs : bool
            Whether these weights become inputs.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        named = {name: file.relative_to(root).as_posix() for name, file in self.files.items()}
        move_locations(proto, named)
        inputs = _take_weights(proto) if as_inputs else None
        return Prepared(proto.SerializeToString(), root, inputs=inputs)


def _compose(preparation: Preparation) -> Composed:
    """Return the rewritten graph.

    Raises
    ------
    BundleError, EngineError
        The graph is damaged, or a file of its weights is missing or lies elsewhere.
    """
    model = preparation.model
    proto = compose(model, preparation.rules, preparation.made_for, preparation.variant)
    return Composed.of(proto, model)


def prepare(
    preparation: Preparation, stored: StoredGraph | None, open_graph: Callable[[Prepared], Opened]
) -> Opened:
    """Prepare a graph, store it if a place is given, and open it.

    A damaged one is made anew. Of several that start at the same time one prepares. What cannot be
    stored, as on a full disk, is prepared at every start, with a warning.

    Raises
    ------
    BksdmError
        The graph is damaged, or the engine cannot open it.
    """
    failed = None
    if stored is not None:
        try:
            return _store(preparation, stored, open_graph)
        except NotStored as error:
            failed = error
    opened = open_graph(_compose(preparation).prepared(as_inputs=preparation.as_inputs))
    if stored is not None:
        # A graph that cannot be opened either is the engine's error, not the disk's.
        warnings.warn(
            f"{preparation.model.parent.name}: every start takes as long, for the optimised graph "
            f"cannot be stored in {stored.cache} ({failed})",
            stacklevel=2,
        )
    return opened


def _store(
    preparation: Preparation, stored: StoredGraph, open_graph: Callable[[Prepared], Opened]
) -> Opened:
    folder = stored.folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder.parent):
            clear_abandoned(folder.parent)
            # Another may have made it while this one waited.
            opened = stored.open(open_graph)
            if opened is None:
                remove_unused(folder)
                _save(preparation, stored)
                # In the user's cache lie those of other bundles too, some of which may be gone.
                shared = stored.cache.parent == user_cache() / ENGINES
                prune(stored.cache.parent if shared else stored.cache, UNUSED_SECONDS, folder)
                opened = stored.open(open_graph)
    except BksdmError:
        raise
    except Exception as error:  # a full disk is any of a dozen types of ONNX Runtime's
        raise NotStored(" ".join(str(error).split()) or type(error).__name__) from error
    if opened is None:
        raise NotStored(f"{folder} cannot be replaced")
    return opened


def _save(preparation: Preparation, stored: StoredGraph) -> None:
    folder = stored.folder
    composed = _compose(preparation)
    if sum(file.stat().st_size for file in composed.files.values()) >= SLOW_FROM_BYTES:
        LOG.info(
            "rewriting the graphs once, so that later starts are fast; they are stored in %s",
            stored.cache,
        )
    with contextlib.suppress(FileExistsError), staged(folder) as staging:
        if preparation.optimise is None:
            prepared = composed.prepared(stored.root, preparation.as_inputs)
            (staging / GRAPH).write_bytes(prepared.content)
            if prepared.inputs is not None:
                (staging / INPUTS).write_bytes(write_sealed({"inputs": prepared.inputs}))
        else:
            whole = staging / "whole"
            whole.mkdir()
            preparation.optimise(composed.prepared(), whole / GRAPH)
            proto = load_graph(whole / GRAPH)
            files = find_files(proto, whole, composed.network)
            found = read_weights(proto, files, composed.network)
            _store_once(found, proto, composed, stored=stored, folder=folder, data=staging / DATA)
            onnx.save(proto, str(staging / GRAPH))
            for file in whole.iterdir():
                file.unlink()
            whole.rmdir()
        sums = {file.name: sha256_of(file) for file in sorted(staging.iterdir())}
        (staging / RECORD).write_bytes(write_sealed({**stored.record, "files": sums}))
        # A copy has not read the files yet.
        if replace(stored).record != stored.record:
            raise EngineError(
                f"{preparation.model} has changed while it was optimised; start again"
            )


def _store_once(
    found: Mapping[str, Array],
    proto: onnx.ModelProto,
    source: Composed,
    stored: StoredGraph,
    folder: Path,
    data: Path,
) -> None:
    """Write the weights that the optimiser has changed, and point to the bundle for the others."""
    known = read_weights(source.proto, source.files, source.network)
    places = {tensor.name: tensor for tensor in source.proto.graph.initializer}
    with data.open("wb") as stream:
        for tensor in proto.graph.initializer:
            if tensor.name not in found:
                continue
            array = found[tensor.name]
            if tensor.name in known and _same(array, known[tensor.name]):
                place = external_place(places[tensor.name])
                place["location"] = stored.named(source.files[place["location"]])
            else:
                stream.write(bytes(-stream.tell() % ALIGNMENT))
                place = {"location": stored.named(folder / DATA), "offset": str(stream.tell())}
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


def _take_weights(proto: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...], str, int]]:
    """Replace the weights outside a graph by inputs, in place, and return where they lie."""
    graph = proto.graph
    outside = [w for w in graph.initializer if w.data_location == onnx.TensorProto.EXTERNAL]
    places = {}
    for weight in outside:
        place = external_place(weight)
        dtype = helper.tensor_dtype_to_np_dtype(weight.data_type).name
        places[weight.name] = (
            dtype,
            tuple(weight.dims),
            place["location"],
            int(place.get("offset", 0)),
        )
        graph.input.append(
            helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
    inside = [weight for weight in graph.initializer if weight.name not in places]
    del graph.initializer[:]
    graph.initializer.extend(inside)
    return places
