"""``bksdm bench``: measure speed, compare measurements and other programs."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from bksdm.cli.arguments import (
    SIZE,
    add_engine_cache_option,
    add_threads_option,
    bundle_path,
    integer,
    named_path,
    nearest,
    options_named,
    output_file,
    real,
    refuse_beside,
)
from bksdm.cli.outputs import check_folder, check_outputs, print_path, results
from bksdm.cli.progress import progress
from bksdm.cli.text import printable
from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI
from bksdm.runtime.validation import no_folder, shown, side
from bksdm.storage.files import clear_abandoned

EXAMPLES = """examples:
  bksdm bench latency
  bksdm bench latency bundle/ --steps 4 --size 512x512 --json new.json --plot new.png
  bksdm bench throughput bundle/ --load 0.5,0.8 --plot load.png
  bksdm bench compare old.json new.json --threshold 0.05
  bksdm bench roofline bundle/ --gpu h100
  bksdm bench rewrite bundle/ --size 512x512
  bksdm bench lora bundle/ --rank 16
  bksdm bench peers checkpoint/ --peers optimum,openvino --rounds 3
  bksdm bench peers checkpoint/ --device cuda --steps 25
  bksdm bench report -o benchmarks/
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    latency = kinds.add_parser("latency", help="time a picture, stage by stage")
    _add_bundle(latency)
    _add_work(latency)
    latency.add_argument(
        "--fast", type=integer, default=0, metavar="LEVEL", help="as for `generate` (default: 0)"
    )
    _add_size(latency)
    latency.add_argument(
        "--batch", type=integer, default=1, metavar="N", help="images per batch (default: 1)"
    )
    latency.add_argument(
        "--repeat", type=integer, default=5, metavar="N", help="pictures to time (default: 5)"
    )
    latency.add_argument(
        "--warmup",
        type=integer,
        default=1,
        metavar="N",
        help="pictures to make first, untimed (default: 1)",
    )
    _add_threads(latency)
    add_engine_cache_option(latency)
    _add_files(latency, "the stages")
    latency.set_defaults(measure=_latency)
    compare = kinds.add_parser(
        "compare", help="compare two records of latency: new / old, with confidence intervals"
    )
    compare.add_argument(
        "old", type=named_path, metavar="OLD.json", help="record that --json wrote"
    )
    compare.add_argument(
        "new", type=named_path, metavar="NEW.json", help="record to compare with it"
    )
    compare.add_argument(
        "--threshold",
        type=real,
        default=0.05,
        metavar="PART",
        help="exit with 1 if the interval of a stage is above 1 + PART (default: 0.05)",
    )
    compare.set_defaults(measure=_compare)
    roofline = kinds.add_parser(
        "roofline", help="count operations, and compute the least time for them"
    )
    _add_bundle(roofline)
    _add_size(roofline)
    _add_threads(roofline)
    roofline.add_argument(
        "--gpu",
        metavar="NAME",
        help="compute it for a GPU by its datasheet: a100, h100, h200 or rtx4090 "
        "(default: for this CPU, measured)",
    )
    roofline.set_defaults(measure=_roofline)
    rewrite = kinds.add_parser(
        "rewrite", help="measure what rewriting the graphs for the CPU gains"
    )
    _add_bundle(rewrite)
    _add_size(rewrite)
    rewrite.add_argument(
        "--rounds", type=integer, default=5, metavar="N", help="timed runs (default: 5)"
    )
    _add_threads(rewrite)
    rewrite.set_defaults(measure=_rewrite)
    lora = kinds.add_parser(
        "lora", help="measure what LoRAs cost that are loaded while the program runs"
    )
    _add_bundle(lora)
    lora.add_argument(
        "--rank", type=integer, default=16, metavar="N", help="of all layers (default: 16)"
    )
    lora.add_argument(
        "--rounds", type=integer, default=5, metavar="N", help="timed calls of each (default: 5)"
    )
    _add_threads(lora)
    lora.add_argument(
        "--engine", default="onnxruntime", help="onnxruntime or openvino (default: onnxruntime)"
    )
    lora.add_argument("--json", type=output_file, metavar="FILE", help="write the record")
    lora.set_defaults(measure=_lora)
    overhead = kinds.add_parser(
        "overhead", help="time the loop around the networks, beside diffusers' loop"
    )
    overhead.add_argument(
        "--rounds", type=integer, default=100, metavar="N", help="timed runs of each (default: 100)"
    )
    overhead.set_defaults(measure=_overhead)
    throughput = kinds.add_parser(
        "throughput", help="measure batches, and requests that arrive at random"
    )
    _add_bundle(throughput)
    _add_work(throughput)
    throughput.add_argument(
        "--batches", default="1,2,4", metavar="N,…", help="batch sizes (default: 1,2,4)"
    )
    throughput.add_argument(
        "--load",
        default="0.3,0.6,0.9",
        metavar="X,…",
        help="arrival rates, as parts of the rate at which requests can be "
        "served one by one (default: 0.3,0.6,0.9)",
    )
    throughput.add_argument(
        "--rate", metavar="X,…", help="further arrival rates, in requests per second"
    )
    throughput.add_argument(
        "--requests", type=integer, default=30, metavar="N", help="requests per rate (default: 30)"
    )
    _add_threads(throughput)
    add_engine_cache_option(throughput)
    _add_files(throughput, "latency by rate")
    throughput.set_defaults(measure=_throughput)

    peers = kinds.add_parser("peers", help="run other programs on the same work, in turns")
    peers.add_argument("checkpoint", type=named_path, metavar="CHECKPOINT", help="diffusers folder")
    peers.add_argument("--peers", metavar="NAME,…", help="programs (default: all exact ones)")
    peers.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="run on the CPU, or pictures in float16 on a GPU (default: cpu)",
    )
    peers.add_argument("--size", metavar="WxH", default="512x512", help="pixels (default: 512x512)")
    peers.add_argument(
        "--steps",
        type=integer,
        default=2,
        metavar="N",
        help="denoising steps of a picture (default: 2)",
    )
    peers.add_argument(
        "--rounds", type=integer, default=3, metavar="N", help="turns of every program (default: 3)"
    )
    peers.add_argument(
        "--repeat", type=integer, default=2, metavar="N", help="runs per turn (default: 2)"
    )
    _add_threads(peers)
    peers.add_argument(
        "--work",
        type=named_path,
        default=Path("build/peers"),
        metavar="DIR",
        help="folder for environments and converted models (default: build/peers)",
    )
    _add_files(peers, "the times")
    peers.set_defaults(measure=_peers)
    report = kinds.add_parser("report", help="run the documented measurements and write RESULTS.md")
    report.add_argument("--only", metavar="NAME,…", help="measure only these again")
    report.add_argument(
        "--render", action="store_true", help="only write RESULTS.md anew, from the stored records"
    )
    _add_threads(report)
    report.add_argument(
        "--work",
        type=named_path,
        default=Path("build/peers"),
        metavar="DIR",
        help="folder for environments and models (default: build/peers)",
    )
    report.add_argument(
        "-o",
        "--output",
        type=named_path,
        default=Path("benchmarks"),
        metavar="DIR",
        help="folder of RESULTS.md and results/ (default: benchmarks)",
    )
    report.set_defaults(measure=_report)


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle",
        type=bundle_path,
        nargs="?",
        default=EMOJI,
        metavar="BUNDLE",
        help="folder of a bundle (default: emoji, built in)",
    )


def _add_work(parser: argparse.ArgumentParser) -> None:
    """Add what decides how a picture is made."""
    parser.add_argument(
        "--engine", default="onnxruntime", help="as for `generate` (default: onnxruntime)"
    )
    parser.add_argument(
        "--steps", type=integer, default=25, metavar="N", help="denoising steps (default: 25)"
    )
    parser.add_argument("--sampler", metavar="NAME", help="default: the model's own")


def _add_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", metavar="WxH", help="pixels (default: the model's size)")


def _add_threads(parser: argparse.ArgumentParser) -> None:
    add_threads_option(parser)


def _add_files(parser: argparse.ArgumentParser, plotted: str) -> None:
    parser.add_argument(
        "--json",
        type=output_file,
        metavar="FILE",
        help="write the measurements as JSON, - for standard output",
    )
    parser.add_argument(
        "--plot",
        type=output_file,
        metavar="FILE",
        help=f"write a chart of {plotted}, - for standard output",
    )


def run(options: argparse.Namespace) -> int:
    """Run one kind of measurement."""
    from bksdm.cli.extras import require

    for module in ("psutil", "rich", "matplotlib"):
        require(module, "bench")
    return int(options.measure(options))


def _latency(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.latency import Settings, measure_latency
    from bksdm.benchmarks.plot import plot_latency
    from bksdm.cli.picture_options import parse_size

    _require_at_least(options, batch=1, repeat=1, warmup=0)
    _check_files(options)
    width, height = (None, None) if options.size is None else parse_size(options.size)
    _check_request(
        options,
        "--batch",
        height=height,
        width=width,
        num_images_per_prompt=options.batch,
        fast=options.fast,
    )
    settings = Settings(
        engine=options.engine,
        steps=options.steps,
        height=height,
        width=width,
        batch=options.batch,
        repeat=options.repeat,
        warmup=options.warmup,
        threads=options.threads,
        sampler=options.sampler,
        fast=options.fast,
    )
    with progress("", "picture", options.warmup + options.repeat) as bar:
        record = measure_latency(options.bundle, settings, bar.update, options.engine_cache)
    _show(options, record, lambda path: plot_latency([record], path))
    return 0


def _require_at_least(options: argparse.Namespace, **lowest: int) -> None:
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise RequestError(f"--{name} must be at least {least}, not {shown(value)}")


def _check_request(options: argparse.Namespace, batch: str, **arguments: Any) -> None:
    """Validate a request before a process is started for it; ``batch`` names an option."""
    from bksdm.engines.registry import DEFAULT, capabilities
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.generation_config import GenerationConfig
    from bksdm.runtime.request import Request

    with options_named(**SIZE, num_images_per_prompt=batch):
        config = GenerationConfig(
            "", num_inference_steps=options.steps, sampler=options.sampler, **arguments
        )
        Request.resolve(Bundle.open(options.bundle), capabilities(DEFAULT), config)


def _check_files(options: argparse.Namespace) -> None:
    """Check that the files can be written, before measuring for minutes."""
    check_outputs([options.plot])
    check_outputs([options.json, options.plot], text=True)


def _show(
    options: argparse.Namespace, record: dict[str, Any], plot: Callable[[Path], None]
) -> None:
    from bksdm.benchmarks.side_by_side import write_record
    from bksdm.benchmarks.tables import conditions, tables

    with redirect_stdout(results([options.json, options.plot])):
        print(printable(conditions(record)))
        for table in tables(record):
            table.print()
    if options.json is not None:
        write_record(record, options.json)
    if options.plot is not None:
        plot(options.plot)


def _compare(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.compare import compare, differences, read_record

    if not 0 <= options.threshold < math.inf:
        raise RequestError(f"--threshold must be a number of 0 or more, not {options.threshold}")
    old, new = (read_record(path) for path in (options.old, options.new))
    for difference in differences(old, new):
        print(f"note: {printable(difference)}")
    slower = []
    print(f"{'new / old':<14}{'ratio':>8}   95 % interval")
    for stage, ratio in compare(old, new).items():
        print(f"{printable(stage):<14}{ratio.value:8.3f}   {ratio.low:.3f} to {ratio.high:.3f}")
        if ratio.low > 1 + options.threshold:
            slower.append(stage)
    if slower:
        print(f"slower by more than {options.threshold:.0%}: {printable(', '.join(slower))}")
    return 1 if slower else 0


def _roofline(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.roofline import GPUS, measure_roofline
    from bksdm.benchmarks.tables import tables

    if options.gpu is not None and options.gpu not in GPUS:
        raise RequestError(f"--gpu: unknown {shown(options.gpu)}; known: {', '.join(GPUS)}")
    if options.gpu is not None:
        refuse_beside(options, "--gpu", ("threads",))
    width, height = _size(options)
    record = measure_roofline(options.bundle, height, width, _threads(options.threads), options.gpu)
    for table in tables(record):
        table.print()
    return 0


def _peers(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.plot import plot_peers
    from bksdm.benchmarks.side_by_side import EXACT, Task, measure_peers, peers_on
    from bksdm.cli.extras import require
    from bksdm.cli.picture_options import parse_size

    require("diffusers", "export")
    _check_files(options)
    known = peers_on(options.device)
    usual = EXACT if options.device == "cpu" else tuple(known)
    names = usual if options.peers is None else tuple(options.peers.split(","))
    _check_names("--peers", names, known)
    _require_at_least(options, rounds=1, repeat=1, steps=1)
    check_folder(options.work)
    width, height = _multiples(*parse_size(options.size), 8)
    source = options.checkpoint
    if not source.is_dir():
        raise RequestError(f"{source}: {no_folder(source)}; peers run a diffusers folder")
    if options.device == "cuda":
        _require_gpu()
    task = Task(
        checkpoint=str(source),
        height=height,
        width=width,
        steps=options.steps,
        rounds=options.rounds,
        repeat=options.repeat,
        threads=_threads(options.threads),
        device=options.device,
    )
    record = measure_peers(task, options.work, names, _progress)
    _show(options, record, lambda path: plot_peers(record, path))
    return 0


def _require_gpu() -> None:
    from bksdm.engines.nvidia_driver import (
        NO_DRIVER,
        describe_driver,
        load_driver,
        load_management,
    )

    driver = load_driver()
    if driver is None:
        raise RequestError(f"--device cuda: {NO_DRIVER}")
    describe_driver(driver, load_management())


def _report(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.report import SET, in_own_process, measure_set, write_report
    from bksdm.cli.extras import require

    require("diffusers", "export")
    if options.render:
        refuse_beside(options, "--render", ("only", "threads"))
    names = tuple(SET) if options.only is None else tuple(options.only.split(","))
    _check_names("--only", names, SET)
    if not options.output.is_dir():
        raise RequestError(f"{options.output}: {no_folder(options.output)}")
    check_outputs([options.output / "RESULTS.md"], text=True)
    clear_abandoned(options.output / "results")
    if not options.render:
        measure = in_own_process(options.work, _threads(options.threads))
        measure_set(names, options.only is not None, options.output, measure, _progress)
    print_path(write_report(options.output), sys.stdout)
    return 0


def _progress(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def _check_names(option: str, names: Sequence[str], known: Collection[str]) -> None:
    all_known = f"; known: {', '.join(known)}"
    for name in names:
        if name not in known:
            raise RequestError(
                f"{option}: unknown {shown(name)}{nearest(name, known) or all_known}"
            )


def _size(options: argparse.Namespace) -> tuple[int, int]:
    """Return width and height in pixels, by default the bundle's."""
    from bksdm.cli.picture_options import parse_size
    from bksdm.runtime.bundle import Bundle

    bundle = Bundle.open(options.bundle)
    if options.size is None:
        height, width = bundle.default_size
        return width, height
    return _multiples(*parse_size(options.size), bundle.vae_scale)


def _multiples(width: int, height: int, multiple: int) -> tuple[int, int]:
    with options_named(**SIZE):
        return side("width", width, multiple), side("height", height, multiple)


def _threads(wanted: int | None) -> int:
    import psutil

    return int(wanted or psutil.cpu_count(logical=False) or 1)


def _rewrite(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.rewrite import measure_rewrite
    from bksdm.benchmarks.tables import tables

    _require_at_least(options, rounds=1)
    width, height = _size(options)
    with progress("", "run", 4 * options.rounds + 6) as bar:
        record = measure_rewrite(
            options.bundle,
            height,
            width,
            rounds=options.rounds,
            threads=_threads(options.threads),
            progress=bar.update,
        )
    for table in tables(record):
        table.print()
    return 0


def _lora(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.lora import measure_loras
    from bksdm.benchmarks.side_by_side import write_record
    from bksdm.benchmarks.tables import tables

    _require_at_least(options, rank=1, rounds=1)
    check_outputs([options.json], text=True)
    with progress("", "call", 4 * (options.rounds + 1)) as bar:
        record = measure_loras(
            options.bundle,
            options.engine,
            _threads(options.threads),
            options.rank,
            options.rounds,
            progress=bar.update,
        )
    for table in tables(record):
        table.print()
    if options.json is not None:
        write_record(record, options.json)
    return 0


def _overhead(options: argparse.Namespace) -> int:
    from bksdm.cli.extras import require

    _require_at_least(options, rounds=1)
    require("diffusers", "export")
    from bksdm.benchmarks.overhead import report

    print(report(options.rounds))
    return 0


def _throughput(options: argparse.Namespace) -> int:
    from bksdm.benchmarks.plot import plot_throughput
    from bksdm.benchmarks.throughput import measure_throughput

    _require_at_least(options, requests=1)
    _check_files(options)
    batches = [int(n) for n in _numbers(options.batches, "--batches") if n.is_integer()]
    if len(batches) != len(options.batches.split(",")):
        raise RequestError(f"--batches must be whole numbers, not {shown(options.batches)}")
    loads = _numbers(options.load, "--load")
    rates = [] if options.rate is None else _numbers(options.rate, "--rate")
    _check_request(options, "--batches", num_images_per_prompt=max(batches))
    total = (len(loads) + len(rates)) * options.requests
    with progress("", "request", total) as bar:
        record = measure_throughput(
            options.bundle,
            options.engine,
            options.steps,
            batches=batches,
            loads=loads,
            rates=rates,
            requests=options.requests,
            threads=options.threads,
            progress=bar.update,
            sampler=options.sampler,
            engine_cache=options.engine_cache,
        )
    _show(options, record, lambda path: plot_throughput(record, path))
    return 0


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"{option} must be numbers with commas, not {shown(text)}") from error
    if not all(0 < number < 1e6 for number in numbers):
        raise RequestError(f"{option} must be above 0 and below a million, not {shown(text)}")
    return numbers
