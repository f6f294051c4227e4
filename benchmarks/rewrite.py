"""Measure the gain of rewriting graphs on this machine, and where the rest of the time goes."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.roofline import Peak, measure_peak
from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.optimize.feeds import network_feeds
from bksdm.optimize.rules import PLAIN, MadeFor
from bksdm.runtime.bundle import Bundle

NETWORKS = ("unet", "vae_decoder")


def measure_rewrite(
    bundle_path: Path,
    height: int,
    width: int,
    rounds: int,
    threads: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Run plain and rewritten networks in turns, A B A B, after one untimed run each.

    Parameters
    ----------
    bundle_path : Path
        The model.
    height, width : int
        In pixels; the UNet's batch is 2, as guidance has it.
    rounds : int
        Timed runs.
    threads : int
        CPU threads.
    progress : callable
        Called after every run.

    Returns
    -------
    dict
        By network: ``plain`` and ``rewritten`` seconds, the relative L2 distance of their outputs,
        and ``operators``, by kind of operator the rewritten one's ``seconds``, its ``flops``, the
        ``bytes`` of the tensors that it read and wrote, and ``bound_seconds``, the least time for
        both.
    """
    peak = measure_peak(threads)
    bundle = Bundle.open(bundle_path)
    sizes = (height // bundle.vae_scale, width // bundle.vae_scale)
    networks = {}
    for name in NETWORKS:
        model, cache = bundle.model(name), bundle.path / "engines"
        made_for = MadeFor(bundle.sample_size)
        engines = {
            "plain": OnnxRuntimeEngine(model, threads, None, PLAIN),
            "rewritten": OnnxRuntimeEngine(model, threads, cache, made_for),
        }
        feeds = network_feeds(engines["plain"].inputs, sizes)
        seconds: dict[str, list[float]] = {kind: [] for kind in engines}
        outputs = {}
        for number in range(rounds + 1):
            for kind, engine in engines.items():
                start = time.perf_counter()
                (output,) = engine(feeds).values()
                if number > 0:
                    seconds[kind].append(time.perf_counter() - start)
                outputs[kind] = output.astype(np.float64)
                progress()
        error = np.linalg.norm(outputs["rewritten"] - outputs["plain"])
        del engines, engine
        networks[name] = {
            **seconds,
            "relative_l2": float(error / np.linalg.norm(outputs["plain"])),
            "operators": _operators(
                model, cache, made_for, threads=threads, feeds=feeds, peak=peak
            ),
        }
        progress()
    return {
        "kind": "rewrite",
        "machine": describe_machine(),
        "model": {"name": bundle.path.resolve().name, "digest": bundle.digest()},
        "settings": {"height": height, "width": width, "threads": threads},
        "peak": asdict(peak),
        "networks": networks,
    }


def _operators(
    model: Path, cache: Path, made_for: MadeFor, threads: int, feeds: dict[str, Any], peak: Peak
) -> dict[str, dict[str, float]]:
    """Return the entries of :func:`measure_rewrite` for operators, from the second of two runs."""
    with tempfile.TemporaryDirectory() as folder:
        engine = OnnxRuntimeEngine(model, threads, cache, made_for, profile=Path(folder) / "run")
        engine(feeds)
        engine(feeds)
        events = json.loads(engine.end_profiling().read_text(encoding="utf-8"))
    runs = [e for e in events if e["name"].endswith("_kernel_time") and e["cat"] == "Node"]
    found: dict[str, dict[str, float]] = {}
    for event in runs[len(runs) // 2 :]:
        kind = event["args"]["op_name"]
        # What an If ran has events of its own.
        if kind == "If":
            continue
        read, written = (_shapes(event["args"][f"{way}_type_shape"]) for way in ("input", "output"))
        kind, flops = _work(kind, read, written[0] if written else ())
        moved = 4 * sum(math.prod(shape) for shape in (*read, *written))
        bound = max(flops / peak.flops_per_second, moved / peak.bytes_per_second)
        entry = found.setdefault(
            kind, dict.fromkeys(("seconds", "flops", "bytes", "bound_seconds"), 0.0)
        )
        entry["seconds"] += event["dur"] * 1e-6
        entry["flops"] += flops
        entry["bytes"] += moved
        entry["bound_seconds"] += bound
    return dict(sorted(found.items(), key=lambda item: -item[1]["seconds"]))


def _shapes(described: Sequence[dict[str, list[int]]]) -> list[list[int]]:
    """Return the shapes of float32 tensors, without those in a kernel's private layout."""
    return [entry["float"] for entry in described if "float" in entry]


def _work(kind: str, read: Sequence[list[int]], out: Sequence[int]) -> tuple[str, int]:
    """Return the kind as which a node counts, and its operations; 0 if only bytes count."""
    if kind.endswith("Conv"):
        x, weight = read[:2]
        groups = x[1] // weight[1]
        label = f"{kind} {'×'.join(map(str, weight[2:]))}"
        if weight[1] == 1:
            label = f"{kind} of single channels"
        elif groups > 1:
            label += " in groups"
        return label, 2 * math.prod(out) * math.prod(weight[1:])
    if kind.endswith(("MatMul", "Gemm")):
        # [rows, inner], or transposed.
        *_, rows, inner = read[0]
        return kind, 2 * math.prod(out) * (inner if rows == out[-2] else rows)
    if kind == "MultiHeadAttention":
        # Q Kᵀ and its product with V, of all heads.
        return kind, 4 * math.prod(read[0]) * read[1][-2]
    return kind, 0
