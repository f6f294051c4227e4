"""``bksdm build``: compile a bundle for a GPU, prepare it for a CPU, or tune it."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from bksdm.cli.arguments import (
    add_threads_option,
    bundle_path,
    duration,
    options_named,
    ordinal,
    refuse_beside,
)
from bksdm.cli.text import printable
from bksdm.engines.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bksdm.runtime.bundle import Bundle

EXAMPLES = """examples:
  bksdm build bundle-fp16/ --engine tensorrt-rtx --target sm89,sm120
  bksdm build bundle-fp16/ --engine tensorrt --batch 1:1:4 --size 384x384:512x512:768x768
  bksdm build bundle/ --engine onnxruntime
  bksdm build bundle/ --engine openvino --save
  bksdm build bundle/ --tune --budget 60s
  bksdm build bundle/ --engine onnxruntime --tune
  bksdm build bundle-fp16/ --list
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundle",
        type=bundle_path,
        metavar="BUNDLE",
        help="folder of a bundle, or emoji; a float16 one for TensorRT, float32 for --tune",
    )
    parser.add_argument(
        "--engine",
        help="tensorrt-rtx (for GeForce and RTX GPUs, needs no GPU to build; the "
        "default), tensorrt (for the GPU in this machine), or onnxruntime or "
        "openvino, whose graphs are otherwise rewritten at the first start; "
        "with --tune, one of the latter (default: all that are installed)",
    )
    parser.add_argument(
        "--target",
        metavar="SM[,SM…]",
        help="with tensorrt-rtx: compute capabilities, as sm89,sm120",
    )
    parser.add_argument(
        "--device",
        type=ordinal,
        metavar="N",
        help="with tensorrt: which GPU of this machine, counted from 0 (default: 0)",
    )
    parser.add_argument(
        "--batch",
        metavar="N[:N:N]",
        help="images per batch, or smallest:typical:largest (default: 1)",
    )
    parser.add_argument(
        "--size",
        metavar="WxH[:WxH:WxH]",
        help="pixels, or smallest:typical:largest (default: the model's size)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure which form of each network and which engine are fastest on "
        "this CPU; `generate` then runs those forms, and with --engine auto "
        "that engine",
    )
    add_threads_option(parser, "with --tune: ")
    parser.add_argument(
        "--budget",
        type=duration,
        metavar="TIME",
        help="with --tune: about how long it may take, as 60s or 5m; the rest is left to the cost "
        "model (default: as long as it takes)",
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="with openvino: write the rewritten networks in OpenVINO's own format, for C++ and "
        "other programs",
    )
    parser.add_argument("--list", action="store_true", help="list what was built for this bundle")
    parser.add_argument("--remove", metavar="NAME", help="remove one entry of --list")


def run(options: argparse.Namespace) -> int:
    """Build, list or remove."""
    from bksdm.cli.extras import require
    from bksdm.engines.registry import AUTO, backend
    from bksdm.runtime.bundle import Bundle
    from bksdm.storage.places import ENGINES, engines_folder
    from bksdm.storage.plans import list_built, remove_built

    for flag, given in (("--list", options.list), ("--remove", options.remove is not None)):
        if given:
            others = (
                *("list", "remove", "tune", "engine", "target"),
                *("device", "batch", "size", "threads", "budget", "save"),
            )
            refuse_beside(options, flag, (name for name in others if f"--{name}" != flag))
    bundle = Bundle.open(options.bundle)
    # What could not be written to the bundle lies in the user's cache.
    places = dict.fromkeys((bundle.path / ENGINES, engines_folder(bundle.path)))
    built = {name: place for place in places for name in list_built(place)}
    if options.list:
        for name in built:
            print(printable(name))
        if not built:
            print("nothing is built yet", file=sys.stderr)
        return 0
    if options.remove is not None:
        if options.remove not in built:
            names = ", ".join(built) or "nothing"
            raise EngineError(f"{options.remove!r} is not built; built: {names}")
        remove_built(built[options.remove], [options.remove])
        return 0
    if options.engine == AUTO:
        raise EngineError(
            "auto is chosen among engines that were measured; name one to build for, or leave "
            "--engine out with --tune to measure all"
        )
    require("onnx", "optimize")
    if options.save:
        refuse_beside(
            options, "--save", ("tune", "target", "device", "batch", "size", "threads", "budget")
        )
        if options.engine != "openvino":
            raise EngineError("--save is for --engine openvino")
        return _save(bundle)
    if options.tune:
        for name in ("target", "device", "batch", "size"):
            if getattr(options, name) is not None:
                raise EngineError(f"--{name} is for GPUs; --tune measures the model's own size")
        with options_named():
            return _tune(bundle, options.engine, options.threads, options.budget)
    for name in ("threads", "budget"):
        if getattr(options, name) is not None:
            raise EngineError(f"--{name} needs --tune")
    if options.engine is not None and not backend(options.engine).runs_plans:
        for name in ("target", "device", "batch", "size"):
            if getattr(options, name) is not None:
                raise EngineError(f"--{name} is for plans; {options.engine} runs every size")
        return _prepare(bundle, options.engine)
    return _build(bundle, options)


def _prepare(bundle: Bundle, engine: str) -> int:
    from bksdm.optimize.prepare_bundle import prepare_bundle

    def prepared(network: str, seconds: float, note: str) -> None:
        print(f"{network:<24}{seconds:8.1f} s  {note}".rstrip(), flush=True)

    print(prepare_bundle(bundle, engine, prepared=prepared))
    return 0


def _save(bundle: Bundle) -> int:
    from bksdm.cli.extras import require
    from bksdm.storage.places import engines_folder

    require("openvino", "openvino")
    from bksdm.optimize.saving import save_openvino

    def saved(network: str, size: int) -> None:
        print(f"{network:<14}{size / 1e6:9.1f} MB", flush=True)

    print(save_openvino(bundle, engines_folder(bundle.path), saved=saved))
    return 0


def _tune(bundle: Bundle, engine: str | None, threads: int | None, budget: float | None) -> int:
    from tqdm import tqdm

    from bksdm.engines.registry import backend
    from bksdm.optimize.compose import describe_rewrite
    from bksdm.optimize.tuned import Tuned
    from bksdm.optimize.tuning import tune_bundle

    with tqdm(
        leave=False, delay=0.5, disable=None, bar_format="{desc}: {n_fmt}/{total_fmt} {postfix}"
    ) as bar:

        def show(network: str, phase: str, done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(network, refresh=False)
            bar.set_postfix_str(phase)

        def measured(network: str, found: Mapping[str, Tuned]) -> None:
            bar.clear()
            for name, tuned in sorted(found.items(), key=lambda entry: entry[1].seconds):
                forms = describe_rewrite(bundle.model(network), tuned.made_for, backend(name).rules)
                print(f"{network:<14}{name:<14}{tuned.seconds:9.4f} s  {forms}")

        stored, _ = tune_bundle(bundle, engine, threads, show, measured, budget)
    print(stored)
    return 0


def _build(bundle: Bundle, options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bksdm.optimize.building import DEFAULT_ENGINE, Built, build_bundle

    began = time.monotonic()
    with tqdm(
        total=1.0,
        leave=False,
        delay=0.5,
        disable=None,
        bar_format="{desc}: {percentage:3.0f}% {postfix}",
    ) as bar:

        def show(network: str, phase: str, part: float) -> None:
            bar.set_description_str(network, refresh=False)
            bar.set_postfix_str(phase, refresh=False)
            bar.update(part - bar.n)

        def built(network: Built) -> None:
            bar.clear()
            kinds = ", ".join(f"{count} {kind}" for kind, count in network.dtypes.items())
            print(
                f"{network.network:<14}{network.size / 1e6:9.1f} MB{network.seconds:8.1f} s  "
                f"{kinds}"
            )

        folder = build_bundle(
            bundle,
            options.engine or DEFAULT_ENGINE,
            tuple(part for part in (options.target or "").split(",") if part),
            batch=options.batch or "1",
            size=options.size,
            device=options.device,
            progress=show,
            built=built,
        )
    print(f"{time.monotonic() - began:.0f} s in all{_peak_memory()}")
    print(folder)
    return 0


def _peak_memory() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f", at most {peak / 1e9:.1f} GB of memory"
