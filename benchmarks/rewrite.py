"""What the rewriting of graphs gains on this machine, and where the rest of the time goes."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bksdm.benchmarks.feeds import network_feeds
from bksdm.benchmarks.machine import describe_machine
from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.engines.rewrite.compose import PLAIN, MadeFor
from bksdm.runtime.bundle import Bundle

NETWORKS = ("unet", "vae_decoder")


def measure_rewrite(
    bundle_path: Path, height: int, width: int, rounds: int, threads: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Run plain and rewritten networks in turns, A B A B, after one run each that does not count.

    Parameters
    ----------
    bundle_path : Path
        The model.
    height, width : int
        In pixels; the UNet's batch is 2, as guidance has it.
    rounds : int
        Runs that count.
    threads : int
        CPU threads.
    progress : callable
        Called after every run.

    Returns
    -------
    dict
        By network: ``plain`` and ``rewritten`` seconds, the relative L2 distance of their outputs,
        and ``operators``, seconds of the rewritten one by kind of operator.
    """
    bundle = Bundle.open(bundle_path)
    sizes = (height // bundle.vae_scale, width // bundle.vae_scale)
    networks = {}
    for name in NETWORKS:
        model, cache = bundle.model(name), bundle.path / "engines"
        made_for = MadeFor(bundle.sample_size)
        engines = {
            "plain": OnnxRuntimeEngine(model, "cpu", threads, None, PLAIN),
            "rewritten": OnnxRuntimeEngine(model, "cpu", threads, cache, made_for),
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
            "operators": _operators(model, cache, made_for, threads, feeds),
        }
        progress()
    return {
        "kind": "rewrite",
        "machine": describe_machine(),
        "model": {"name": bundle.path.resolve().name, "digest": bundle.digest()},
        "settings": {"height": height, "width": width, "threads": threads},
        "networks": networks,
    }


def _operators(
    model: Path, cache: Path, made_for: MadeFor, threads: int, feeds: dict[str, Any]
) -> dict[str, float]:
    """Return seconds by kind of operator in the second of two runs, most first."""
    with tempfile.TemporaryDirectory() as folder:
        engine = OnnxRuntimeEngine(
            model, "cpu", threads, cache, made_for, profile=Path(folder) / "run"
        )
        engine(feeds)
        engine(feeds)
        events = json.loads(engine.end_profiling().read_text(encoding="utf-8"))
    runs = [e for e in events if e["name"].endswith("_kernel_time") and e["cat"] == "Node"]
    total: Counter[str] = Counter()
    for event in runs[len(runs) // 2 :]:
        # What an If ran has events of its own.
        if event["args"]["op_name"] == "If":
            continue
        total[event["args"]["op_name"]] += event["dur"] * 1e-6
    return dict(total.most_common())
