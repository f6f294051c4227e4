"""Tell whether a bundle is, byte for byte, what was exported.

``SHA256SUMS`` lies in the bundle, in the form of ``sha256sum``, which can check it too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bksdm.engines.errors import BundleError
from bksdm.runtime.bundle import COMPONENTS, CONTROLNET, OPTIONAL_COMPONENTS
from bksdm.runtime.validation import no_folder
from bksdm.storage.digest import DIGESTS, read_sealed, sha256_of
from bksdm.storage.files import PARTIAL, read_regular, write_file
from bksdm.storage.graph_cache import stored_graphs
from bksdm.storage.places import ENGINES, engines_folder
from bksdm.storage.plans import RECORD

SUMS = "SHA256SUMS"
FOLDERS = (*COMPONENTS, *OPTIONAL_COMPONENTS, "safety_checker", "scheduler", "tokenizer")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

Progress = Callable[[str], None]


def write_sums(bundle: Path) -> None:
    """Write ``SHA256SUMS`` of a bundle's files.

    Raises
    ------
    OSError
        A file cannot be read, or that one not be written.
    """
    lines = [f"{sha256_of(bundle / name)}  {name}\n" for name in _names(bundle)]
    write_file(bundle / SUMS, "".join(lines).encode())


def find_damage(bundle: Path, progress: Progress = lambda name: None) -> list[str]:
    """Return what differs from the export, and what is damaged of what was made of it since.

    Parameters
    ----------
    bundle : Path
        Its folder; it need not be possible to open it.
    progress : callable
        Told the name of each file before it is read.

    Raises
    ------
    BundleError
        It has no ``SHA256SUMS``, so that nothing can be said.
    """
    if not bundle.is_dir():
        raise BundleError(f"{bundle}: {no_folder(bundle)}")
    sums = bundle / SUMS
    if not sums.is_file():
        raise BundleError(f"{sums}: missing, so nothing can be compared; `bksdm export` writes it")
    problems: list[str] = []
    listed: dict[str, str] = {}
    *lines, rest = read_regular(sums).decode(errors="replace").split("\n")
    if rest:
        problems.append(f"{SUMS}: is cut off")
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        path = PurePosixPath(found[2] if found else "")
        if found is None or path.is_absolute() or ".." in path.parts or found[2] in listed:
            problems.append(f"{SUMS}: line {number} is damaged")
        else:
            listed[found[2]] = found[1]
    present = set(_names(bundle))
    problems += [f"{name}: missing" for name in listed if name not in present]
    problems += [f"{name}: is no part of the export" for name in sorted(present - set(listed))]
    for name in sorted(present & set(listed)):
        progress(name)
        problems += _compare(bundle / name, name, listed[name])
    for engines in dict.fromkeys((bundle / ENGINES, engines_folder(bundle))):
        problems += _damage_of_engines(engines, progress)
    return problems


def folders_of(bundle: Path) -> list[str]:
    """Return the names of the folders that a bundle may consist of: not its engines."""
    return [*FOLDERS, *sorted(path.name for path in bundle.glob(f"{CONTROLNET}*"))]


def _names(bundle: Path) -> list[str]:
    """Return the files that a bundle consists of, relative to it: not its engines."""
    files = [path for path in bundle.glob("*.json") if path.is_file()]
    for folder in folders_of(bundle):
        files += [path for path in (bundle / folder).rglob("*") if not path.is_dir()]
    return sorted(path.relative_to(bundle).as_posix() for path in files)


def _compare(file: Path, name: str, digest: object) -> list[str]:
    if not file.is_file():
        return [f"{name}: no regular file"]
    try:
        return [] if sha256_of(file) == digest else [f"{name}: differs from what was written"]
    except OSError as error:
        return [f"{name}: cannot be read ({error.strerror or error})"]


def _damage_of_engines(engines: Path, progress: Progress) -> Iterator[str]:
    """Yield what is wrong with optimised graphs, plans, measurements and remembered digests."""
    for record in _records(engines):
        folder = record.parent
        name = record.relative_to(engines.parent).as_posix()
        fields = read_sealed(record)
        if fields is None:
            yield f"{name}: damaged"
            continue
        for file, digest in _written(fields) if record.name == RECORD else ():
            progress(f"{folder.name}/{file}")
            yield from _compare(folder / file, f"{name.removesuffix(RECORD)}{file}", digest)


def _records(engines: Path) -> list[Path]:
    """Return the records in a folder of engines, those included that should be there."""
    found = {graph.path / RECORD for graph in stored_graphs(engines)}
    for folder, folders, files in os.walk(engines):
        found |= {Path(folder) / name for name in (*folders, *files) if name in (RECORD, DIGESTS)}
    return sorted(record for record in found if not record.parent.name.startswith(PARTIAL))


def _written(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the files beside a record and their digests: of optimised graphs, or of plans."""
    yield from fields.get("files", {}).items()
    for plan in fields.get("plans", {}).values():
        yield plan["file"], plan["sha256"]
