"""``bksdm bench``: measure latency, compare records, set a bound."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from bksdm.engines.errors import BksdmError, RequestError
from bksdm.models import EMOJI

EXAMPLES = """examples:
  bksdm bench latency
  bksdm bench latency bundle/ --steps 4 --size 512x512 --json new.json --plot new.png
  bksdm bench throughput bundle/ --load 0.5,0.8 --plot load.png
  bksdm bench compare old.json new.json --threshold 0.05
  bksdm bench roofline bundle/ --gpu h100
  bksdm bench rewrite bundle/ --size 512x512
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    latency = kinds.add_parser("latency", help="time pictures, stage by stage")
    latency.add_argument("bundle", type=Path, nargs="?", default=EMOJI, metavar="BUNDLE",
                         help="the built-in model by default")  # fmt: skip
    latency.add_argument("--engine", default="onnxruntime")
    latency.add_argument("--steps", type=int, default=25, help="inference steps (default 25)")
    latency.add_argument("--size", metavar="WxH", help="pixels; the model's by default")
    latency.add_argument("--batch", type=int, default=1, help="images at once (default 1)")
    latency.add_argument("--repeat", type=int, default=5, help="pictures that count (default 5)")
    latency.add_argument("--warmup", type=int, default=1, help="pictures before (default 1)")
    latency.add_argument("--threads", type=int, help="CPU threads (default: physical cores)")
    latency.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    latency.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of the stages")
    latency.set_defaults(measure=_latency)
    compare = kinds.add_parser("compare", help="new by old, with confidence intervals")
    compare.add_argument("old", type=Path, metavar="OLD.json")
    compare.add_argument("new", type=Path, metavar="NEW.json")
    compare.add_argument("--threshold", type=float, default=0.05,
                         help="exit 1 where a stage is surely slower by more (default 0.05)"
                         )  # fmt: skip
    compare.set_defaults(measure=_compare)
    roofline = kinds.add_parser("roofline", help="operations, and the least time they could take")
    roofline.add_argument("bundle", type=Path, nargs="?", default=EMOJI, metavar="BUNDLE")
    roofline.add_argument("--size", metavar="WxH", help="pixels; the model's by default")
    roofline.add_argument("--gpu", help="a bound from datasheet figures: a100, h100, rtx4090")
    roofline.set_defaults(measure=_roofline)
    rewrite = kinds.add_parser("rewrite", help="what faster convolutions gain, and their error")
    rewrite.add_argument("bundle", type=Path, nargs="?", default=EMOJI, metavar="BUNDLE")
    rewrite.add_argument("--size", metavar="WxH", help="pixels; the model's by default")
    rewrite.add_argument("--rounds", type=int, default=5, help="runs that count (default 5)")
    rewrite.add_argument("--threads", type=int, help="CPU threads (default: physical cores)")
    rewrite.set_defaults(measure=_rewrite)
    overhead = kinds.add_parser("overhead", help="what the loop costs beside diffusers' loop")
    overhead.add_argument("--rounds", type=int, default=100, help="(default 100)")
    overhead.set_defaults(measure=_overhead)
    throughput = kinds.add_parser("throughput", help="batches, and requests that arrive at random")
    throughput.add_argument("bundle", type=Path, nargs="?", default=EMOJI, metavar="BUNDLE")
    throughput.add_argument("--engine", default="onnxruntime")
    throughput.add_argument("--steps", type=int, default=25, help="inference steps (default 25)")
    throughput.add_argument("--batches", default="1,2,4", help="batch sizes (default 1,2,4)")
    throughput.add_argument("--load", default="0.3,0.6,0.9",
                            help="arrival rates as parts of what one after another can serve "
                            "(default 0.3,0.6,0.9)")  # fmt: skip
    throughput.add_argument("--requests", type=int, default=30, help="per rate (default 30)")
    throughput.add_argument("--threads", type=int, help="CPU threads (default: physical cores)")
    throughput.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    throughput.add_argument("--plot", type=Path, metavar="FILE", help="write latency by rate")
    throughput.set_defaults(measure=_throughput)


def run(options: argparse.Namespace) -> int:
    """Run one kind of measurement."""
    from bksdm.cli.extras import require

    for module in ("psutil", "rich", "matplotlib"):
        require(module, "bench")
    return int(options.measure(options))


def _latency(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bksdm.benchmarks.latency import Settings, measure_latency
    from bksdm.benchmarks.plot import plot_latency
    from bksdm.cli.generate import parse_size

    if options.repeat < 1 or options.warmup < 0:
        raise RequestError("--repeat must be at least 1 and --warmup at least 0")
    for file in (options.json, options.plot):
        if file is not None and not os.access(file.resolve().parent, os.W_OK):
            raise RequestError(f"cannot write {file}")
    width, height = (None, None) if options.size is None else parse_size(options.size)
    settings = Settings(
        options.engine, options.steps, height, width, options.batch, options.repeat,
        options.warmup, options.threads,
    )  # fmt: skip
    with tqdm(total=options.warmup + options.repeat, unit="picture", leave=False, delay=0.5) as bar:
        record = measure_latency(options.bundle, settings, bar.update)
    _print_latency(record)
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot_latency([record], options.plot)
    return 0


def _print_latency(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    machine, settings = record["machine"], record["settings"]
    console = Console()
    console.print(
        f"{record['model']['name']} on {settings['engine']}, {settings['steps']} steps, batch "
        f"{settings['batch']}; {machine['processor']}, {machine['physical_cores']} cores",
        highlight=False,
    )
    table = Table("milliseconds", *(
        f"{name}" for name in ("median", "p95", "p99", "min", "n")
    ))  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, entry in record["stages"].items():
        times = (f"{entry[name] * 1e3:.2f}" for name in ("median", "p95", "p99", "min"))
        table.add_row(stage, *times, str(entry["n"]))
    console.print(table)
    console.print(
        f"load {record['load_seconds']:.2f} s, first picture after "
        f"{record['first_picture_seconds']:.2f} s, {record['images_per_second']:.3g} images/s, "
        f"at most {record['peak_memory_bytes'] / 1e9:.2f} GB",
        highlight=False,
    )


def _compare(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.compare import compare, differences, read_record

    old, new = (read_record(path) for path in (options.old, options.new))
    for difference in differences(old, new):
        print(f"note: {difference}")
    slower = []
    print(f"{'new / old':<14}{'ratio':>8}   95 % interval")
    for stage, ratio in compare(old, new).items():
        print(f"{stage:<14}{ratio.value:8.3f}   {ratio.low:.3f} to {ratio.high:.3f}")
        if ratio.low > 1 + options.threshold:
            slower.append(stage)
    if slower:
        print(f"slower by more than {options.threshold:.0%}: {', '.join(slower)}")
    return 1 if slower else 0


def _roofline(options: argparse.Namespace) -> int:
    import psutil

    from bksdm.benchmarks.roofline import GPUS, lower_bound, measure_peak
    from bksdm.benchmarks.work import count_work
    from bksdm.cli.generate import parse_size
    from bksdm.runtime.bundle import Bundle

    if options.gpu is not None and options.gpu not in GPUS:
        raise BksdmError(f"unknown GPU {options.gpu!r}; known: {', '.join(GPUS)}")
    bundle = Bundle.open(options.bundle)
    side = bundle.sample_size * bundle.vae_scale
    width, height = (side, side) if options.size is None else parse_size(options.size)
    if options.gpu is None:
        peak = measure_peak(psutil.cpu_count(logical=False) or 1)
    else:
        peak = GPUS[options.gpu]
    kind = "measured" if options.gpu is None else "a calculation"
    print(f"{peak.name}: {peak.flops_per_second / 1e9:.4g} GFLOP/s, "
          f"{peak.bytes_per_second / 1e9:.4g} GB/s ({peak.source})")  # fmt: skip
    print(f"one guided UNet call and one picture of {width}x{height}; the bound is {kind}")
    print(f"{'':<14}{'conv':>10}{'products':>10}{'attention':>10}{'GFLOP':>10}{'GB':>8}"
          f"{'bound ms':>11}")  # fmt: skip
    for name in bundle.components:
        sizes = {
            "batch": 2 if name in ("unet", "text_encoder") else 1,
            "height": height // bundle.vae_scale, "width": width // bundle.vae_scale,
        }  # fmt: skip
        work = count_work(bundle.model(name), sizes)
        shown = [work.flops[kind] / 1e9 for kind in ("convolution", "matrix product", "attention")]
        moved = (work.weight_bytes + work.activation_bytes) / 1e9
        print(f"{name:<14}" + "".join(f"{value:10.2f}" for value in (*shown, sum(shown)))
              + f"{moved:8.2f}{lower_bound(work, peak) * 1e3:11.2f}")  # fmt: skip
    return 0


def _rewrite(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bksdm.benchmarks.rewrite import measure_gain
    from bksdm.cli.generate import parse_size
    from bksdm.runtime.bundle import Bundle

    if options.rounds < 1:
        raise RequestError(f"--rounds must be at least 1, not {options.rounds}")
    bundle = Bundle.open(options.bundle)
    side = bundle.sample_size * bundle.vae_scale
    width, height = (side, side) if options.size is None else parse_size(options.size)
    print(f"{'':<14}{'direct s':>10}{'rewritten s':>13}{'ratio':>8}   95 % interval   relative L2")
    for name in ("unet", "vae_decoder"):
        with tqdm(total=2 * options.rounds + 2, unit="run", leave=False, delay=0.5) as bar:
            gain = measure_gain(
                options.bundle, name, height, width, options.rounds, options.threads, bar.update
            )
        ratio = gain.ratio
        print(f"{name:<14}{gain.direct:10.3f}{gain.rewritten:13.3f}{ratio.value:8.3f}   "
              f"{ratio.low:.3f} to {ratio.high:.3f}   {gain.error:.1e}")  # fmt: skip
    return 0


def _overhead(options: argparse.Namespace) -> int:
    from bksdm.cli.extras import require

    require("diffusers", "export")
    from bksdm.benchmarks.overhead import report

    print(report(options.rounds))
    return 0


def _throughput(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bksdm.benchmarks.plot import plot_throughput
    from bksdm.benchmarks.throughput import measure_throughput

    batches = [int(n) for n in _numbers(options.batches, "--batches") if n.is_integer()]
    if len(batches) != len(options.batches.split(",")):
        raise RequestError(f"--batches must be whole numbers, not {options.batches!r}")
    loads = _numbers(options.load, "--load")
    with tqdm(total=len(loads) * options.requests, unit="request", leave=False, delay=0.5) as bar:
        record = measure_throughput(
            options.bundle, options.engine, options.steps, batches, loads, options.requests,
            options.threads, bar.update,
        )  # fmt: skip
    print(f"{'batch':>6}{'images/s':>11}")
    for entry in record["batches"]:
        print(f"{entry['batch']:>6}{entry['images_per_second']:11.3f}")
    print(
        f"{'rate /s':>8}{'load':>7}{'queue s':>10}{'median s':>10}{'p95 s':>9}{'p99 s':>9}{'n':>5}"
    )
    for entry in record["rates"]:
        latency = entry["latency"]
        print(f"{entry['rate']:8.3f}{entry['load']:7.2f}{entry['queueing']['median']:10.3f}"
              f"{latency['median']:10.3f}{latency['p95']:9.3f}{latency['p99']:9.3f}"
              f"{latency['n']:5}")  # fmt: skip
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot_throughput(record, options.plot)
    return 0


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"{option} must be numbers with commas, not {text!r}") from error
    if not all(0 < number < 1e6 for number in numbers):
        raise RequestError(f"{option} must be positive, not {text!r}")
    return numbers
