"""Open the graph that was prepared for an engine; where there is none, have it prepared.

Here alone an engine asks :mod:`bksdm.optimize` to do something. Without the package ``onnx``, which
only preparing needs, networks run as they were exported.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from bksdm.engines.errors import EngineError
from bksdm.engines.variants import DEEP
from bksdm.optimize.rules import REWRITE, MadeFor, Rules
from bksdm.storage.digest import graph_files
from bksdm.storage.files import read_regular
from bksdm.storage.places import written_in
from bksdm.storage.stored_graph import Prepared, StoredGraph

Opened = TypeVar("Opened")
Optimise = Callable[[Prepared, Path], None]
"""Optimises a graph and writes it to a file, all its larger weights to one beside it."""
INSTALL = "pip install 'bksdm-runtime[optimize]'"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What an engine wants of a network's graph.

    Attributes
    ----------
    backend : str
        Name of the engine, fit for a folder.
    model : Path
        ``model.onnx``, in the folder of its network.
    variant : str
        Of :mod:`bksdm.engines.variants`.
    rules : Rules
        Of the engine.
    made_for : MadeFor
        Input that it is made fastest for.
    optimise : callable, optional
        The engine's own optimiser, where its result can be stored.
    version : str
        Of the engine, on which that result depends.
    as_inputs : bool
        Whether weights outside of the graph become inputs, for engines that read no such files.
    """

    backend: str
    model: Path
    variant: str
    rules: Rules
    made_for: MadeFor
    optimise: Optimise | None = None
    version: str = ""
    as_inputs: bool = False

    def stored(self, cache: Path) -> list[StoredGraph]:
        """Return its places: the one to write first, and a bundle's own if that is another."""
        written = written_in(cache, self.model.parents[1])
        first = StoredGraph(
            model=self.model,
            variant=self.variant,
            cache=written,
            backend=self.backend,
            version=self.version,
            fields={"rewrite": REWRITE, "made_for": self.made_for.fields()},
            digests=written,
        )
        return [first] if written == cache else [first, replace(first, cache=cache)]


def open_prepared(
    preparation: Preparation, cache: Path | None, open_graph: Callable[[Prepared], Opened]
) -> Opened:
    """Return what opening a prepared graph gives.

    Parameters
    ----------
    preparation : Preparation
        What is wanted.
    cache : Path, optional
        A folder of engines, in which prepared graphs are stored.
    open_graph : callable
        Opens a graph.

    Raises
    ------
    BksdmError
        The graph is damaged, or the engine cannot open it; or it has to be prepared first, and
        ``onnx`` is not installed.
    """
    places = [] if cache is None else preparation.stored(cache)
    for stored in places:
        opened = stored.open(open_graph)
        if opened is not None:
            return opened
    try:
        from bksdm.optimize.preparing import prepare
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        return open_graph(_as_exported(preparation))
    return prepare(preparation, places[0] if places else None, open_graph)


def _as_exported(preparation: Preparation) -> Prepared:
    """Return a graph that nothing was done to.

    Raises
    ------
    EngineError
        It could not be run so.
    """
    model = preparation.model
    network = model.parent.name
    folder = Path(os.path.realpath(model.parent))
    linked = any(
        not Path(os.path.realpath(file)).is_relative_to(folder) for file in graph_files(model)[1:]
    )
    if preparation.variant not in ("", DEEP) or preparation.as_inputs or linked:
        raise EngineError(
            f"{network}: has to be rewritten first, which takes the package onnx; run: {INSTALL}"
        )
    warnings.warn(
        f"networks run as they were exported, which is slower; to have them rewritten: {INSTALL}",
        stacklevel=2,
    )
    return Prepared(read_regular(model), folder)
