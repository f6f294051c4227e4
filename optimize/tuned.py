"""Stored results of ``bksdm build --tune`` on a machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bksdm.engines.errors import EngineError
from bksdm.optimize.rules import REWRITE, MadeFor
from bksdm.storage.digest import model_digest, read_sealed, write_sealed
from bksdm.storage.files import write_file
from bksdm.storage.plans import RECORD, TUNED
from bksdm.storage.processor import processor_name, vector_extensions


@dataclass(frozen=True)
class Tuned:
    """A network on an engine.

    Attributes
    ----------
    seconds
        Of one run.
    made_for
        Input that its graph is optimised for.
    """

    seconds: float
    made_for: MadeFor


def tuned_folder(engines: Path) -> Path:
    """Return the folder of this machine's measurements in a bundle's ``engines``."""
    digest = hashlib.sha256(json.dumps(_machine()).encode()).hexdigest()[:8]
    return engines / f"{TUNED}{digest}"


VersionOf = Callable[[str], "str | None"]
"""From an engine's name to its version; None where it is not installed."""


def read_tuned(engines: Path, model: Path, version_of: VersionOf) -> dict[str, Tuned]:
    """Return the measurements of a network, by engine.

    Measurements of another machine, another version of an engine, other rules or an older graph
    are left out.
    """
    try:
        entry = _components(tuned_folder(engines)).get(model.parent.name)
        if entry is None or entry["source"] != model_digest(model, engines):
            return {}
        return {
            name: Tuned(float(found["seconds"]), MadeFor.read(found["made_for"]))
            for name, found in entry["engines"].items()
            if found["version"] == version_of(name)
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        # As if it had not been measured: it only costs time.
        return {}


def write_tuned(
    engines: Path,
    models: Mapping[str, Path],
    measured: Mapping[str, Mapping[str, Tuned]],
    settings: Mapping[str, Any],
    version_of: VersionOf,
) -> Path:
    """Add measurements to those of this machine that still hold, and return their folder.

    Parameters
    ----------
    engines : Path
        A bundle's ``engines``.
    models : mapping
        Graphs by component.
    measured : mapping
        By component and engine.
    settings : mapping
        Conditions of the measurement: sizes, threads, rounds.
    version_of : callable
        Returns an engine's version.

    Raises
    ------
    EngineError
        The folder cannot be written.
    """
    folder = tuned_folder(engines)
    components = {}
    for name, model in models.items():
        found = {**read_tuned(engines, model, version_of), **measured.get(name, {})}
        components[name] = {
            "source": model_digest(model, engines),
            "engines": {
                engine: {
                    "version": version_of(engine),
                    "seconds": tuned.seconds,
                    "made_for": tuned.made_for.fields(),
                }
                for engine, tuned in found.items()
            },
        }
    record = {
        "machine": _machine(),
        "rewrite": REWRITE,
        "settings": dict(settings),
        "components": components,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / RECORD, write_sealed(record))
    except OSError as error:
        raise EngineError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder


def _components(folder: Path) -> dict[str, Any]:
    """Return a record's fields of every component; empty if it is missing or stale."""
    record = read_sealed(folder / RECORD)
    if record is None or record["machine"] != _machine() or record["rewrite"] != REWRITE:
        return {}
    return dict(record["components"])


def _machine() -> dict[str, Any]:
    return {
        "processor": processor_name(),
        "extensions": hashlib.sha256(vector_extensions().encode()).hexdigest()[:8],
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
