"""Two latency records against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm.benchmarks.statistics import Ratio, ratio_of_medians
from bksdm.engines.errors import BksdmError


def read_record(path: Path) -> dict[str, Any]:
    """Read what ``bksdm bench latency --json`` wrote.

    Raises
    ------
    BksdmError
        The file is missing or something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record["stages"].values():
            [float(value) for value in entry["samples"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BksdmError(f"{path}: not a record of `bksdm bench latency --json`") from error
    return dict(record)


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Ratio]:
    """Return new by old for every stage that both measured.

    Raises
    ------
    BksdmError
        The work differs; names what.
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
    """Return what else differs and may explain a ratio: machine, versions, model, engine."""
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
