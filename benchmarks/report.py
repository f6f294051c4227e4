"""Run the documented set of measurements, and write ``RESULTS.md`` from their records."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bksdm.benchmarks.latency import Settings, measure_latency
from bksdm.benchmarks.plot import plot_latency, plot_peers, plot_throughput
from bksdm.benchmarks.quality import ENGINES, measure_quality
from bksdm.benchmarks.rewrite import measure_rewrite
from bksdm.benchmarks.roofline import measure_roofline
from bksdm.benchmarks.shortcuts import CHOICES, PROMPTS, measure_shortcuts
from bksdm.benchmarks.side_by_side import EXACT, PEERS, STAGES, Task, measure_peers, write_record
from bksdm.benchmarks.tables import conditions, tables
from bksdm.benchmarks.throughput import measure_throughput
from bksdm.engines.errors import BksdmError
from bksdm.models import EMOJI
from bksdm.runtime.bundle import read_json
from bksdm.runtime.user_files import write_text
from bksdm.storage.precision import FLOAT16, INT8

INTRODUCTION = """# Results

Written by `bksdm bench report` from the records in `results/`. Times are medians in seconds of n
runs on the machine named above each table; a ratio is by the best of the other programs in the same
run, below 1 is faster, with a 95 % bootstrap interval. `small` and `tiny` are full-size replicas of
BK-SDM-Small and BK-SDM-Tiny with random weights, `emoji` is the built-in model.
"""
SIDE = 512


@dataclass(frozen=True)
class Entry:
    """One measurement of the set: its subject, and the function that makes it."""

    title: str
    measure: Callable[[Path, int, Callable[[str], None]], dict[str, Any]]


def _checkpoint(model: str, work: Path) -> Path:
    """Return a checkpoint of the set, made on first use."""
    if model == "emoji":
        return EMOJI
    folder = work / "checkpoints" / model
    if not folder.exists():
        from bksdm.export.dummy import create_dummy

        folder.parent.mkdir(parents=True, exist_ok=True)
        create_dummy(model, folder)
    return folder


def _bundle(model: str, work: Path) -> Path:
    """Return a bundle of the set, made on first use."""
    if model == "emoji":
        return EMOJI
    folder = work / "bundles" / model
    if not folder.exists():
        from bksdm.export.exporter import export

        folder.parent.mkdir(parents=True, exist_ok=True)
        export(_checkpoint(model, work), folder)
    return folder


def _peers(
    model: str,
    side: int,
    steps: int,
    rounds: int,
    repeat: int,
    names: tuple[str, ...] = EXACT,
    stages: tuple[str, ...] = STAGES,
) -> Entry:
    def measure(work: Path, threads: int, report: Callable[[str], None]) -> dict[str, Any]:
        checkpoint = str(_checkpoint(model, work))
        task = Task(
            checkpoint=checkpoint,
            height=side,
            width=side,
            steps=steps,
            rounds=rounds,
            repeat=repeat,
            threads=threads,
            stages=stages,
        )
        return measure_peers(task, work, names, report)

    what = "with less work beside other programs"
    if names == EXACT:
        what = "beside other programs"
    elif names == ROUNDED:
        what = "in less than float32, beside other programs"
    return Entry(f"{model} {what}", measure)


def _latency(model: str, steps: int, repeat: int) -> Entry:
    def measure(work: Path, threads: int, report: Callable[[str], None]) -> dict[str, Any]:
        settings = Settings(steps=steps, repeat=repeat, threads=threads)
        return measure_latency(_bundle(model, work), settings)

    return Entry(f"{model}, stage by stage", measure)


def _roofline(model: str, side: int) -> Entry:
    def measure(work: Path, threads: int, report: Callable[[str], None]) -> dict[str, Any]:
        return measure_roofline(_bundle(model, work), side, side, threads)

    return Entry(f"{model} against the machine's peak", measure)


def _rewrite(model: str, side: int) -> Entry:
    def measure(work: Path, threads: int, report: Callable[[str], None]) -> dict[str, Any]:
        return measure_rewrite(_bundle(model, work), side, side, 5, threads)

    return Entry(f"{model}, what rewriting its graphs gains", measure)


def _shortcuts(model: str, steps: int, sampler: str, prompts: int) -> Entry:
    def measure(work: Path, threads: int, report: Callable[[str], None]) -> dict[str, Any]:
        return measure_shortcuts(
            _bundle(model, work),
            steps,
            threads,
            sampler=sampler,
            choices=CHOICES,
            prompts=PROMPTS[:prompts],
        )

    return Entry(f"{model}, less work for nearly the same picture", measure)


def _quality() -> Entry:
    def measure(work: Path, threads: int, report: Callable[[str], None]) -> dict[str, Any]:
        bundles = {precision: _emoji_in(precision, work) for precision in ENGINES}
        return measure_quality(bundles, threads, progress=report)

    return Entry("emoji, what is left of its pictures", measure)


def _emoji_in(precision: str, work: Path) -> Path:
    """Return the built-in model as a precision needs it, made on first use."""
    folder = work / "bundles" / f"emoji-{precision}"
    if precision not in (FLOAT16.name, INT8):
        return EMOJI
    if not folder.exists():
        from bksdm.export.exporter import export
        from bksdm.optimize.quantizing import quantize_bundle

        folder.parent.mkdir(parents=True, exist_ok=True)
        if precision == INT8:
            quantize_bundle(EMOJI, folder)
        else:
            export(EMOJI, folder, precision)
    return folder


def _throughput(model: str, steps: int) -> Entry:
    def measure(work: Path, threads: int, report: Callable[[str], None]) -> dict[str, Any]:
        bundle = _bundle(model, work)
        return measure_throughput(
            bundle,
            "onnxruntime",
            steps,
            batches=(1, 2, 4),
            loads=(0.3, 0.6, 0.9),
            rates=(),
            requests=40,
            threads=threads,
        )

    return Entry(f"{model} under load", measure)


FAST = tuple(name for name, peer in PEERS.items() if "fast" in peer.options)
ROUNDED = (
    *("bksdm", "openvino"),
    *(name for name, peer in PEERS.items() if peer.rounded),
)
"""In less than float32, and the exact ones beside them."""
SET = {
    "small-peers": _peers("small", SIDE, 2, rounds=3, repeat=2),
    "small-fast": _peers(
        "small",
        SIDE,
        25,
        rounds=1,
        repeat=1,
        stages=("picture",),
        names=("diffusers-compiled", "bksdm", *FAST, "openvino"),
    ),
    "small-rounded": _peers("small", SIDE, 8, rounds=1, repeat=3, names=ROUNDED),
    "small-shortcuts": _shortcuts("small", 25, "ddim", 1),
    "small-rewrite": _rewrite("small", SIDE),
    "small-latency": _latency("small", 4, 3),
    "small-roofline": _roofline("small", SIDE),
    "emoji-peers": _peers("emoji", 128, 25, rounds=3, repeat=5),
    "emoji-latency": _latency("emoji", 25, 20),
    "emoji-throughput": _throughput("emoji", 25),
    "emoji-shortcuts": _shortcuts("emoji", 25, "ddim", 4),
    "emoji-quality": _quality(),
    "tiny-peers": _peers("tiny", SIDE, 2, rounds=1, repeat=2),
    "tiny-latency": _latency("tiny", 4, 3),
    "tiny-roofline": _roofline("tiny", SIDE),
}
"""The measurements of the report, by the name of their records."""

PLOTS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "peers": plot_peers,
    "latency": lambda record, path: plot_latency([record], path),
    "throughput": plot_throughput,
}


def measure_set(
    names: Sequence[str],
    again: bool,
    output: Path,
    measure: Callable[[str, Path], None],
    report: Callable[[str], None],
) -> None:
    """Make the records that are missing, one file each, so that an interrupted run goes on.

    Parameters
    ----------
    names : sequence of str
        Keys of :data:`SET`.
    again : bool
        Measure again those that exist.
    output : Path
        Where ``results/NAME.json`` goes.
    measure : callable
        ``measure(name, file)`` writes a record; :func:`in_own_process` does.
    report : callable
        Called with one line before everything that takes long.
    """
    folder = output / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        record = folder / f"{name}.json"
        if again or not record.exists():
            report(SET[name].title)
            measure(name, record)


def in_own_process(work: Path, threads: int) -> Callable[[str, Path], None]:
    """Return a function that measures an entry in a new process, so peak memory is its own.

    Parameters
    ----------
    work : Path
        Folder for checkpoints, bundles and the peers' environments.
    threads : int
        CPU threads.
    """

    def measure(name: str, record: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "bksdm.benchmarks.report",
            name,
            str(record),
            str(work),
            str(threads),
        ]
        if subprocess.run(command, check=False).returncode:
            raise BksdmError(f"{name} could not be measured; its output is above")

    return measure


def write_report(output: Path) -> Path:
    """Write ``RESULTS.md`` and its plots from the existing records; return its path."""
    parts = [INTRODUCTION]
    for name, entry in SET.items():
        file = output / "results" / f"{name}.json"
        if not file.exists():
            continue
        record = read_json(file)
        parts.append(f"## {entry.title[0].upper()}{entry.title[1:]}\n\n{conditions(record)}.\n")
        parts += [table.markdown() for table in tables(record)]
        if record["kind"] in PLOTS:
            PLOTS[record["kind"]](record, output / "results" / f"{name}.png")
            parts.append(f"![{entry.title}](results/{name}.png)\n")
    target = output / "RESULTS.md"
    write_text(target, "\n".join(parts))
    return target


if __name__ == "__main__":
    _name, _record, _work, _threads = sys.argv[1:]
    write_record(
        SET[_name].measure(Path(_work), int(_threads), lambda line: print(line, file=sys.stderr)),
        Path(_record),
    )
