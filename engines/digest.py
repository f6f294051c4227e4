"""What tells whether files have changed: states, and SHA-256 computed once per state."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

# Smaller bundles are hashed in no time, and the built-in one lies among installed files.
RECORD_FROM_BYTES = 128 * 2**20


def digest_files(root: Path, files: Iterable[Path], record: Path) -> str:
    """Return the SHA-256 over the names and contents of ``files``, hexadecimal.

    Parameters
    ----------
    root : Path
        Names are taken relative to it.
    files : iterable of Path
        What is hashed, in this order.
    record : Path
        JSON file that remembers each file's digest beside its size and time of change; a file that
        cannot be written only costs the time to hash again.
    """
    known = _read(record)
    current: dict[str, list[object]] = {}
    size = 0
    total = hashlib.sha256()
    for file in files:
        name, state = file.relative_to(root).as_posix(), file.stat()
        entry = [state.st_size, state.st_mtime_ns]
        remembered = known.get(name)
        if not isinstance(remembered, list) or remembered[:2] != entry or len(remembered) != 3:
            remembered = [*entry, sha256_of(file)]
        current[name] = remembered
        size += state.st_size
        total.update(f"{name} {remembered[2]}\n".encode())
    if current != known and size >= RECORD_FROM_BYTES:
        with contextlib.suppress(OSError):
            _write(record, current)
    return total.hexdigest()


def file_states(model: Path) -> dict[str, list[int]]:
    """Return size and time of change of a graph's file and those of its weights, by name."""
    files = sorted(path for path in model.parent.glob(f"{model.name}*") if path.is_file())
    states = {path.name: path.stat() for path in files}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of one file, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(record: Path) -> dict[str, object]:
    try:
        value = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(record: Path, value: dict[str, list[object]]) -> None:
    record.parent.mkdir(exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=f".{record.name}-", dir=record.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1)
    os.replace(beside, record)
