"""Built plans on disk: their location, their recipe and their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bksdm.engines.errors import EngineError
from bksdm.engines.profile import Profile
from bksdm.storage import files
from bksdm.storage.digest import model_digest, write_sealed
from bksdm.storage.graph_cache import stored_graphs

RECORD = "engine.json"
# Names of folders that hold measurements, not plans, begin so.
TUNED = "tuned-"
SAVED = "openvino"
"""Name of the folder that holds rewritten networks in OpenVINO's own format."""


@dataclass(frozen=True)
class Recipe:
    """Everything besides the graphs that a plan depends on.

    Attributes
    ----------
    backend
        ``tensorrt`` or ``tensorrt-rtx``.
    version
        Of the TensorRT that builds or runs.
    targets
        Compute capabilities such as ``sm89``.
    precision
        Type of weights and activations.
    profile
        Batches and sizes.
    flags
        Names of TensorRT's builder flags.
    """

    backend: str
    version: str
    targets: tuple[str, ...]
    precision: str
    profile: Profile
    flags: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name: readable, and different for every recipe."""
        parts = [self.backend, self.version, *self.targets, self.precision, str(self.profile)]
        return "-".join(parts)

    def fields(self) -> dict[str, Any]:
        """Return the recipe's fields for ``engine.json``."""
        return {
            "backend": self.backend,
            "version": self.version,
            "targets": list(self.targets),
            "precision": self.precision,
            "profile": str(self.profile),
            "flags": list(self.flags),
        }


def read_record(folder: Path) -> dict[str, Any]:
    """Return ``engine.json``.

    Raises
    ------
    EngineError
        It is missing or damaged.
    """
    try:
        record = json.loads(files.read_regular(folder / RECORD))
        plans = {name: dict(entry) for name, entry in record["plans"].items()}
        whole = all(
            isinstance(entry[field], str) for entry in plans.values() for field in ("model", "file")
        )
        if not (whole and isinstance(record["profile"], str)):
            raise TypeError("a field has the wrong type")
    except FileNotFoundError as error:
        raise EngineError(f"{folder.name}: not built; run `bksdm build`") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{folder / RECORD}: damaged; run `bksdm build` again") from error
    return {**record, "plans": plans}


def validate_plans(folder: Path, recipe: Recipe, models: Mapping[str, Path]) -> dict[str, Any]:
    """Return the record of built plans that fit a recipe and a bundle's graphs.

    Raises
    ------
    EngineError
        There are none, or they differ; names the field.
    """
    record = read_record(folder)
    for field, wanted in recipe.fields().items():
        if record.get(field) != wanted:
            raise EngineError(
                f"{folder.name}: {field} is {record.get(field)!r}, wanted {wanted!r}; "
                "run `bksdm build` again"
            )
    plans: dict[str, Any] = record["plans"]
    for component, model in models.items():
        if plans.get(component, {}).get("model") != model_digest(model, folder.parent):
            raise EngineError(
                f"{folder.name}: {component} has changed since it was built; "
                "run `bksdm build` again"
            )
    return plans


def read_plan(folder: Path, component: str, plans: Mapping[str, Any]) -> bytes:
    """Return a plan, or compiled kernels, whose checksum is right.

    Raises
    ------
    EngineError
        The file is missing or damaged.
    """
    path = folder / str(plans[component]["file"])
    try:
        content = files.read_regular(path)
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}; run `bksdm build` again") from error
    if hashlib.sha256(content).hexdigest() != plans[component].get("sha256"):
        raise EngineError(f"{path}: damaged; run `bksdm build` again")
    return content


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a folder that takes ``folder``'s place when the block ends without an error.

    One at a time: a second build in the same bundle waits for the first.

    Raises
    ------
    EngineError
        Something cannot be written.
    """
    try:
        folder.parent.mkdir(exist_ok=True)
        with files.alone(folder.parent):
            files.clear_abandoned(folder.parent)
            with files.staged(folder, replace=True) as beside:
                yield beside
    except OSError as error:
        raise EngineError(f"cannot write {folder}: {error.strerror or error}") from error


def write_plan(
    folder: Path, component: str, content: bytes, suffix: str = ".plan"
) -> dict[str, Any]:
    """Write a plan, or compiled kernels, and return the file's fields for the record."""
    file = component + suffix
    (folder / file).write_bytes(content)
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def write_record(folder: Path, recipe: Recipe, plans: Mapping[str, Any]) -> None:
    """Write ``engine.json``."""
    (folder / RECORD).write_bytes(write_sealed({**recipe.fields(), "plans": plans}))


def list_plans(engines: Path) -> list[str]:
    """Return the names of the plans in a bundle."""
    return [n for n in _recorded(engines) if n != SAVED and not n.startswith(TUNED)]


def list_built(engines: Path) -> list[str]:
    """Return the names of plans, measurements, saved networks and prepared graphs."""
    graphs = (graph.path.relative_to(engines).as_posix() for graph in stored_graphs(engines))
    return [*_recorded(engines), *graphs]


def _recorded(engines: Path) -> list[str]:
    return sorted(path.parent.name for path in engines.glob(f"*/{RECORD}"))


def remove_built(engines: Path, names: Iterable[str]) -> None:
    """Remove plans, measurements or prepared graphs.

    Raises
    ------
    EngineError
        A name is not in :func:`list_built`.
    """
    known = list_built(engines)
    for name in names:
        if name not in known:
            raise EngineError(f"{name!r} is not built; built: {', '.join(known) or 'nothing'}")
        if not files.remove_unused(engines / name):
            raise EngineError(f"{name} is being read by another process; try again")
