"""Identify files by the SHA-256 of their content, remembered while they do not change.

Size and time of modification prove nothing: tools that copy files set both. What no tool can set is
the time at which the system noted the last change of a file, and its number in the file system. A
digest is remembered beside all of these, and any difference means that the file is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm.storage.files import open_regular, read_regular, write_file
from bksdm.storage.graph_file import GraphFile

DIGESTS = "digests.json"
"""In a folder of engines: what is remembered."""
SEAL = "seal"
"""In a record: the SHA-256 of the rest of it."""
# Smaller bundles are hashed in no time, and the built-in one lies among installed files.
RECORD_FROM_BYTES = 128 * 2**20
# A file that has changed so shortly before may change again within the same tick of the clock.
SETTLED_NS = 2 * 10**9
# Of files that were replaced, the older digests are of no use.
MOST_REMEMBERED = 256


def file_digests(files: Iterable[Path], record: Path) -> dict[Path, str]:
    """Return the SHA-256 of files, hexadecimal.

    Parameters
    ----------
    files : iterable of Path
        Files to hash.
    record : Path
        JSON file that remembers digests; one that cannot be read or written only costs the time
        to hash again.
    """
    known = (read_sealed(record) or {}).get("files", {})
    found: dict[Path, str] = {}
    new: dict[str, Any] = {}
    size = 0
    for file in files:
        state = file.stat()
        size += state.st_size
        key, entry = f"{state.st_dev}-{state.st_ino}", _state(state)
        remembered = known.get(key)
        digest = remembered.get("sha256") if isinstance(remembered, dict) else None
        if not isinstance(digest, str) or remembered != {**entry, "sha256": digest}:
            digest = sha256_of(file)
            if time.time_ns() - state.st_ctime_ns > SETTLED_NS and _state(file.stat()) == entry:
                new[key] = {**entry, "sha256": digest}
        found[file] = digest
    if new and size >= RECORD_FROM_BYTES:
        kept = dict(list({**known, **new}.items())[-MOST_REMEMBERED:])
        with contextlib.suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            write_file(record, write_sealed({"files": kept}))
    return found


def model_digest(model: Path, engines: Path) -> str:
    """Return the SHA-256 of a graph and the files of its weights, hexadecimal.

    Parameters
    ----------
    model : Path
        ``model.onnx``.
    engines : Path
        The folder whose :data:`DIGESTS` remembers those of the files.

    Raises
    ------
    BundleError
        A file is missing, or the graph is damaged.
    """
    return files_digest(graph_files(model), engines)


def files_digest(files: Sequence[Path], engines: Path) -> str:
    """Return what :func:`model_digest` does, of the files that :func:`graph_files` found."""
    digests = file_digests(files, engines / DIGESTS)
    folder = files[0].parent
    return joined_digest({file.relative_to(folder): digests[file] for file in files})


def graph_files(model: Path) -> list[Path]:
    """Return a graph's file and those of its weights.

    Raises
    ------
    BundleError
        A file is missing, or the graph is damaged.
    """
    return [model, *(model.parent / name for name in GraphFile.read(model).locations)]


def joined_digest(digests: Mapping[Path, str]) -> str:
    """Return one SHA-256 over names and digests, in their order."""
    lines = (f"{name.as_posix()} {digest}\n" for name, digest in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of one regular file, hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_sealed(fields: Mapping[str, Any]) -> bytes:
    """Return a record as JSON, with a digest of itself that reveals damage."""
    seal = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**fields, SEAL: seal}, indent=2) + "\n").encode()


def read_sealed(record: Path) -> dict[str, Any] | None:
    """Return the fields of a record; None if any byte differs from what was written."""
    try:
        content = read_regular(record)
        fields = json.loads(content)
        fields.pop(SEAL)
        return fields if write_sealed(fields) == content else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _state(state: os.stat_result) -> dict[str, int]:
    return {
        "bytes": state.st_size,
        "modified": state.st_mtime_ns,
        "changed": state.st_ctime_ns,
    }
