"""Format records as tables, with the same rows for a terminal and for ``RESULTS.md``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bksdm.benchmarks.side_by_side import PEERS, REFERENCE, STAGES, peers_on
from bksdm.benchmarks.statistics import Summary, ratio_of_medians
from bksdm.cli.text import printable

# Below this many dB a peer's sampler or noise was not that of the others.
SAME_PICTURE = 40
# Operators that take less of a network's time are left out.
LEAST_SHARE = 0.01
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A title with the conditions, and rows of text; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown of GitHub."""
        lines = [self.header, tuple("---" if i == 0 else "---:" for i in range(len(self.header)))]
        body = "\n".join("| " + " | ".join(row) + " |" for row in (*lines, *self.rows))
        return f"{self.title}\n\n{body}\n"

    def print(self) -> None:
        """Write the table to the terminal."""
        from rich.console import Console
        from rich.table import Table as RichTable

        console = Console(markup=False)
        table = RichTable(*self.header)
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify = "right"
        for row in self.rows:
            table.add_row(*map(printable, row))
        console.print(self.title, highlight=False, markup=False, soft_wrap=True)
        console.print(table)


def conditions(record: Record) -> str:
    """Return machine, threads and versions in one line."""
    machine = record["machine"]
    settings = record.get("settings", record.get("task", {}))
    parts = [
        machine["processor"],
        *machine["gpus"],
        *([f"driver {machine['driver']}"] if "driver" in machine else []),
        f"{machine['physical_cores']} cores",
        f"{machine['memory_gb']} GB",
        f"{settings['threads']} threads",
        machine["system"],
        f"Python {machine['python']}",
        *(f"{name} {version}" for name, version in machine["versions"].items()),
    ]
    return ", ".join(parts)


def tables(record: Record) -> list[Table]:
    """Return the tables of a record of any kind."""
    return KINDS[record["kind"]](record)


def _latency(record: Record) -> list[Table]:
    settings = record["settings"]
    stages = tuple(
        (
            stage,
            *(f"{entry[name] * 1e3:.2f}" for name in ("median", "p95", "p99", "min")),
            str(entry["n"]),
        )
        for stage, entry in record["stages"].items()
    )
    loads = {f"load, {kind}": taken for kind, taken in record["loads"].items()}
    once = [
        *((name, f"{Summary.of(taken).median:.2f} s") for name, taken in loads.items()),
        ("load and first picture", f"{record['first_picture_seconds']:.2f} s"),
        ("throughput", f"{record['images_per_second']:.3g} images/s"),
        ("peak resident memory", f"{record['peak_memory_bytes'] / 1e9:.2f} GB"),
    ]
    if record["device_memory_bytes"] is not None:
        once.append(("GPU memory", f"{record['device_memory_bytes'] / 1e9:.2f} GB"))
    size = "" if settings["width"] is None else f", {settings['width']}×{settings['height']}"
    work = (
        f"{record['model']['name']} on {settings['engine']}, {settings['steps']} steps, batch "
        f"{settings['batch']}{size}"
    )
    return [
        Table(f"{work}; milliseconds", ("stage", "median", "p95", "p99", "min", "n"), stages),
        Table(work, ("", "value"), tuple(once)),
    ]


def _throughput(record: Record) -> list[Table]:
    work = (
        f"{record['model']['name']} on {record['settings']['engine']}, "
        f"{record['settings']['steps']} steps"
    )
    batches = tuple(
        (str(entry["batch"]), f"{entry['images_per_second']:.3f}") for entry in record["batches"]
    )
    rates = tuple(
        (
            f"{e['rate']:.3f}",
            f"{e['load']:.2f}",
            f"{e['queueing']['median']:.3f}",
            *(f"{e['latency'][name]:.3f}" for name in ("median", "p95", "p99")),
            str(e["latency"]["n"]),
        )
        for e in record["rates"]
    )
    return [
        Table(f"{work}, by batch", ("batch", "images/s"), batches),
        Table(
            f"{work}, requests of one image that arrive at random (Poisson); seconds",
            ("requests/s", "load", "queueing", "latency median", "p95", "p99", "n"),
            rates,
        ),
    ]


def _roofline(record: Record) -> list[Table]:
    settings, peak = record["settings"], record["peak"]
    measured = peak["source"] == "measured"
    kinds = {
        "convolution": "conv",
        "matrix product": "matmul",
        "attention": "attention",
        "other": "other",
    }
    rows = []
    for name, network in record["networks"].items():
        moved = network["weight_bytes"] + network["activation_bytes"]
        row = [
            name,
            *(f"{network['flops'][kind] / 1e9:.1f}" for kind in kinds),
            f"{moved / 1e9:.2f}",
            f"{network['bound_seconds'] * 1e3:.1f}",
        ]
        if measured:
            taken = network["seconds"]
            row += [f"{taken * 1e3:.1f}", f"{network['bound_seconds'] / taken:.0%}"]
        rows.append(tuple(row))
    header = ("network", *kinds.values(), "GB", "bound ms")
    if measured:
        header += ("taken ms", "bound / taken")
    bound = "the bound is measured" if measured else "the bound is a calculation from datasheets"
    title = (
        f"{record['model']['name']}, one guided UNet call and one picture of "
        f"{settings['width']}×{settings['height']}, GFLOP by kind; {bound}. {peak['name']}: "
        f"{_speeds(peak)} ({peak['source']})"
    )
    return [Table(title, header, tuple(rows))]


def _speeds(peak: Record) -> str:
    flops, moved = (peak[key] / 1e9 for key in ("flops_per_second", "bytes_per_second"))
    return f"{flops:.4g} GFLOP/s and {moved:.4g} GB/s"


def _rewrite(record: Record) -> list[Table]:
    settings = record["settings"]
    work = f"{record['model']['name']}, {settings['width']}×{settings['height']}"
    gains, shares = [], []
    for name, network in record["networks"].items():
        ratio = ratio_of_medians(network["plain"], network["rewritten"])
        plain, rewritten = (Summary.of(network[kind]) for kind in ("plain", "rewritten"))
        gains.append(
            (
                name,
                f"{plain.median:.2f}",
                f"{rewritten.median:.2f}",
                f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
                str(plain.n),
                f"{network['relative_l2']:.1e}",
            )
        )
        operators = network["operators"]
        whole = {
            key: sum(entry[key] for entry in operators.values())
            for key in ("seconds", "flops", "bytes", "bound_seconds")
        }
        shares += [
            (
                f"{name}: {kind}",
                f"{entry['seconds']:.2f}",
                f"{entry['seconds'] / whole['seconds']:.0%}",
                f"{entry['flops'] / 1e9:.1f}",
                f"{entry['bytes'] / 1e9:.2f}",
                f"{entry['bound_seconds']:.2f}",
                f"{entry['bound_seconds'] / entry['seconds']:.0%}",
            )
            for kind, entry in {"all": whole, **operators}.items()
            if entry["seconds"] >= LEAST_SHARE * whole["seconds"]
        ]
    return [
        Table(
            f"Graphs as exported and as rewritten, {work}; seconds",
            ("network", "plain", "rewritten", "ratio", "n", "relative L2"),
            tuple(gains),
        ),
        Table(
            f"Where the time of the rewritten ones goes, {work}; one run under ONNX Runtime's "
            "profiler. The bound is the least time for the operations or for the bytes at "
            f"{_speeds(record['peak'])}; less is taken where tensors stay in a cache. Winograd's "
            "products are convolutions in groups, its transforms of single channels",
            ("operator", "seconds", "share", "GFLOP", "GB", "bound s", "bound / taken"),
            tuple(shares),
        ),
    ]


def _shortcuts(record: Record) -> list[Table]:
    choices = record["choices"]
    exact = next(iter(choices.values()))["seconds"]
    rows = []
    for name, entry in choices.items():
        ratio = ratio_of_medians(exact, entry["seconds"])
        differing = [psnr for psnr in entry["psnr"] if psnr is not None]
        rows.append(
            (
                name,
                f"{Summary.of(entry['seconds']).median:.2f}",
                f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
                str(len(entry["seconds"])),
                f"{Summary.of(differing).median:.1f}" if differing else "the same",
                f"{min(differing):.1f}" if differing else "the same",
            )
        )
    settings = record["settings"]
    title = (
        f"Less work, {record['model']['name']}, {settings['steps']} steps of "
        f"{settings['sampler']}; PSNR in dB against the exact picture"
    )
    header = ("way", "median s", "ratio", "n", "median PSNR", "least PSNR")
    return [Table(title, header, tuple(rows))]


def _lora(record: Record) -> list[Table]:
    plain, settings = record["plain"], record["settings"]
    rows = []
    for scope, entry in record["scopes"].items():
        # Each call beside the plain one of its round: the machine may have been slow for both.
        ratios = [mine / other for mine, other in zip(entry["calls"], plain["calls"], strict=True)]
        switches = Summary.of(entry["switches"])
        rows.append(
            (
                scope.removeprefix("lora-"),
                str(entry["layers"]),
                f"{entry['file_bytes'] / 1e6:.1f}",
                f"{entry['read']:.2f}",
                f"{entry['load']:.1f}",
                f"{1e3 * switches.median:.0f}",
                f"{1e3 * max(entry['switches']):.0f}",
                f"{entry['memory_bytes'] / 1e6:.0f}",
                f"{Summary.of(ratios).median:.2f}",
            )
        )
    title = (
        f"LoRAs of rank {settings['rank']}, {record['model']['name']}, {settings['engine']} in "
        f"{settings['precision']}, {settings['width']}×{settings['height']}; a guided UNet call "
        f"without takes {Summary.of(plain['calls']).median:.2f} s, opening the UNet anew "
        f"{plain['open']:.1f} s; {conditions(record)}"
    )
    header = (
        *("layers of", "layers", "file MB", "read s", "load s", "switch ms", "slowest"),
        *("more MB", "call / plain"),
    )
    return [Table(title, header, tuple(rows))]


def _quality(record: Record) -> list[Table]:
    rows = [
        (
            precision,
            str(row["steps"]),
            f"{row['guidance_scale']:g}",
            str(row["fast"]),
            f"{row['recognised']} of {row['pictures']}",
            f"{row['backgrounds']} of {row['pictures']}",
            f"{row['margin']:.2f}",
            f"{row['diversity']:.1%}",
            f"{row['fid']:.4f}",
        )
        for precision, found in record["precisions"].items()
        for row in found
    ]
    engines = ", ".join(f"{name} by {by}" for name, by in record["settings"]["engines"].items())
    title = (
        f"{record['model']['name']}, fifty prompts with two seeds each, judged by its classifier; "
        f"{engines}. The distance is a Fréchet distance of the classifier's features from those of "
        "float32 in 50 steps"
    )
    header = (
        *("precision", "steps", "guidance", "--fast", "objects", "backgrounds", "lead"),
        *("seeds apart, of objects apart", "distance"),
    )
    return [Table(title, header, tuple(rows))]


def _peers(record: Record) -> list[Table]:
    task = record["task"]
    on_gpu = task.get("device", "cpu") == "cuda"
    known = peers_on(task.get("device", "cpu"))
    exact = {name for name in record["peers"] if name not in known or not known[name].rounded}
    rounded = {*record["peers"]} - exact
    groups = {f"on a GPU, float16 but for {REFERENCE}" if on_gpu else "float32": exact}
    if rounded:
        groups["as it comes, or told to round"] = rounded
    tables = []
    for precision, names in groups.items():
        work = f"{task['checkpoint']}, {task['width']}×{task['height']}, {precision}"
        titles = {
            "unet": f"UNet, batch of 2, {work}",
            "vae_decoder": f"VAE decoder, {work}",
            "picture": f"Picture, {task['steps']} steps of Euler with guidance, {work}",
        }
        tables += [
            _peer_stage(record, stage, titles[stage], names)
            for stage in STAGES
            if any(stage in record["peers"][name]["stages"] for name in names)
        ]
    return [*tables, _peer_conversions(record, f"Conversion of {task['checkpoint']}")]


def _peer_stage(record: Record, stage: str, title: str, names: Collection[str]) -> Table:
    entries = {
        name: peer["stages"].get(stage, {"reason": peer.get("reason", "not one of its stages")})
        for name, peer in record["peers"].items()
        if name in names
    }
    ran = {name: entry for name, entry in entries.items() if "samples" in entry}
    others = {
        name: Summary.of(e["samples"]).median
        for name, e in ran.items()
        if not name.startswith("bksdm")
    }
    best = min(others, key=others.__getitem__)
    rows = []
    for name, entry in sorted(entries.items(), key=lambda item: _median(item[1])):
        if name not in ran:
            rows.append((name, "–", "–", "–", "–", "–", "–", entry["reason"]))
            continue
        summary = Summary.of(entry["samples"])
        ratio = ratio_of_medians(ran[best]["samples"], entry["samples"])
        first, *later = entry["load_seconds"]
        loads = f"{first:.1f} / {Summary.of(later).median:.1f}" if later else f"{first:.1f}"
        rows.append(
            (
                name,
                f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
                f"{summary.median:.2f}",
                str(summary.n),
                f"{entry['first_seconds'][0]:.1f}",
                loads,
                f"{entry['peak_bytes'] / 1e9:.2f}",
                _distance(name, entry["distance"], stage),
            )
        )
    header = (
        title.partition(",")[0],
        f"ratio to {best}",
        "median s",
        "n",
        "first run s",
        "load s, first / later",
        "peak GB",
        f"from {REFERENCE}",
    )
    return Table(title, header, tuple(rows))


def _median(entry: Mapping[str, Any]) -> float:
    return Summary.of(entry["samples"]).median if "samples" in entry else float("inf")


def _distance(name: str, found: Mapping[str, float], stage: str) -> str:
    if name == REFERENCE:
        return "the reference"
    if stage == "picture":
        mark = "" if found["psnr"] >= SAME_PICTURE else "; not the same work"
        return f"{found['psnr']:.0f} dB, at most {found['largest']:.0f} levels{mark}"
    return f"relative L2 {found['relative_l2']:.1e}, at most {found['largest']:.1e}"


def _peer_conversions(record: Record, title: str) -> Table:
    rows = []
    for name, peer in record["peers"].items():
        if name in PEERS and PEERS[name].model is not None:
            # It runs what another converted.
            continue
        if "converted" not in peer:
            rows.append((name, "–", "–", "–", peer["reason"]))
            continue
        done = peer["converted"]
        reads = "the checkpoint itself" if not done["bytes"] else ""
        rows.append(
            (
                name,
                f"{done['seconds']:.0f}",
                f"{done['bytes'] / 1e9:.2f}",
                f"{done['peak_bytes'] / 1e9:.2f}",
                reads,
            )
        )
    return Table(title, ("peer", "seconds", "GB on disk", "peak GB", ""), tuple(rows))


KINDS: dict[str, Callable[[Record], list[Table]]] = {
    "latency": _latency,
    "throughput": _throughput,
    "roofline": _roofline,
    "rewrite": _rewrite,
    "shortcuts": _shortcuts,
    "lora": _lora,
    "quality": _quality,
    "peers": _peers,
}
