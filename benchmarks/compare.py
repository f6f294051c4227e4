"""Compare two latency records."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm.benchmarks.statistics import Ratio, ratio_of_medians
from bksdm.engines.errors import BksdmError
from bksdm.runtime.user_files import read_input


def read_record(path: Path) -> dict[str, Any]:
    """Read what ``bksdm bench latency --json`` wrote.

    Raises
    ------
    BksdmError
        The file is missing, cannot be read or is something else.
    """
    content = read_input(path)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not _is_record(record):
        raise BksdmError(f"{path}: not a record of `bksdm bench latency --json`")
    return dict(record)


def _is_record(value: Any) -> bool:
    """Return whether a value has the fields that the comparison reads."""
    if not isinstance(value, dict):
        return False
    parts = [value.get("settings"), value.get("stages"), value.get("machine", {})]
    if not all(isinstance(part, dict) for part in parts):
        return False
    measured = [e.get("samples") if isinstance(e, dict) else None for e in value["stages"].values()]
    return all(
        isinstance(samples, list) and samples and all(_is_time(sample) for sample in samples)
        for samples in measured
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Ratio]:
    """Return the ratio new / old of every stage that both measured.

    Raises
    ------
    BksdmError
        The records measured different work; names the difference.
    """
    for field in ("steps", "height", "width", "batch", "guidance_scale"):
        before, after = (record["settings"].get(field) for record in (old, new))
        if before != after:
            raise BksdmError(f"{field} differs: {before} and {after}; compare the same work")
    shared = [stage for stage in old["stages"] if stage in new["stages"]]
    return {
        stage: ratio_of_medians(old["stages"][stage]["samples"], new["stages"][stage]["samples"])
        for stage in shared
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return other differences that may explain a ratio: machine, versions, model, engine."""
    found = []
    for field in ("processor", "logical_cores", "versions"):
        before, after = (record.get("machine", {}).get(field) for record in (old, new))
        if before != after:
            found.append(f"{field}: {before} → {after}")
    if old.get("model") != new.get("model"):
        found.append(f"model: {old.get('model')} → {new.get('model')}")
    for field in ("engine", "threads", "sampler", "fast"):
        before, after = (record["settings"].get(field) for record in (old, new))
        if before != after:
            found.append(f"{field}: {before} → {after}")
    return found
