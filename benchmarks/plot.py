"""Draw charts of records: bars by stage, latency by rate, peers side by side."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bksdm.runtime.user_files import write_output

STAGES = (
    "tokenize",
    "text_encoder",
    "unet",
    "loop",
    "vae_decoder",
    "to_uint8",
    "enqueue",
    "wait",
    "png",
)


def plot_latency(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a bar per record, stacked by stage, as PNG.

    Parameters
    ----------
    records : sequence of dict
        Records of :func:`~bksdm.benchmarks.latency.measure_latency`.
    path : Path
        The picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.4 + 0.6 * len(records)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{r['model']['name']}, {r['settings']['engine']}" for r in records]
    start = [0.0] * len(records)
    for stage in STAGES:
        widths = [r["stages"].get(stage, {}).get("median", 0.0) for r in records]
        if any(widths):
            axes.barh(labels, widths, left=start, label=stage)
            start = [a + b for a, b in zip(start, widths, strict=True)]
    axes.set_xlabel("seconds (sum of medians)")
    axes.set_title(str(records[0]["machine"]["processor"]), fontsize="small")
    axes.legend(fontsize="small", ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    _write(figure, path)


def plot_throughput(record: dict[str, Any], path: Path) -> None:
    """Write latency against arrival rate as PNG.

    Parameters
    ----------
    record : dict
        Record of :func:`~bksdm.benchmarks.throughput.measure_throughput`.
    path : Path
        The picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rates = [entry["rate"] for entry in record["rates"]]
    for name in ("median", "p95", "p99"):
        axes.plot(rates, [e["latency"][name] for e in record["rates"]], marker="o", label=name)
    axes.set_xlabel("requests per second")
    axes.set_ylabel("seconds from arrival to picture")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{record['model']['name']}, {record['machine']['processor']}", fontsize="small")
    axes.legend()
    _write(figure, path)


def plot_peers(record: dict[str, Any], path: Path) -> None:
    """Write a panel of bars per stage, a bar per peer, as PNG.

    Parameters
    ----------
    record : dict
        Record of :func:`~bksdm.benchmarks.side_by_side.measure_peers`.
    path : Path
        The picture.
    """
    from matplotlib.figure import Figure

    stages = ("unet", "vae_decoder", "picture")
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages)), stages, strict=True):
        found = {name: peer["stages"].get(stage, {}) for name, peer in record["peers"].items()}
        medians = {
            name: statistics.median(e["samples"]) for name, e in found.items() if "samples" in e
        }
        names = sorted(medians, key=medians.__getitem__, reverse=True)
        colours = ["tab:orange" if name == "bksdm" else "tab:gray" for name in names]
        axes.barh(names, [medians[name] for name in names], color=colours)
        axes.set_title(stage, fontsize="small")
        axes.set_xlabel("seconds")
    task = record["task"]
    figure.suptitle(
        f"{task['checkpoint']}, {task['width']}×{task['height']}, "
        f"{record['machine']['processor']}, {task['threads']} threads",
        fontsize="small",
    )
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    write_output(path, picture.getvalue())
