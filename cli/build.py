"""``bksdm build``: compile a bundle for a GPU, or measure what a CPU runs it fastest with."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bksdm.cli.arguments import integer, named_path
from bksdm.cli.text import printable
from bksdm.engines.errors import EngineError
from bksdm.engines.registry import AUTO, CPU_ENGINES
from bksdm.runtime.checks import MAX_THREADS

if TYPE_CHECKING:
    from bksdm.runtime.bundle import Bundle

EXAMPLES = """examples:
  bksdm build bundle-fp16/ --engine tensorrt-rtx --target sm89,sm120
  bksdm build bundle-fp16/ --engine tensorrt --batch 1:1:4 --size 384x384:512x512:768x768
  bksdm build bundle/ --tune
  bksdm build bundle/ --engine onnxruntime --tune
  bksdm build bundle-fp16/ --list
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", type=named_path, metavar="BUNDLE",
                        help="float16 bundle, or float32 with --tune")  # fmt: skip
    parser.add_argument("--engine",
                        help="tensorrt-rtx (RTX GPUs, builds without one; the default), tensorrt "
                             "(the GPU present); with --tune onnxruntime or openvino, by default "
                             "those that are installed")  # fmt: skip
    parser.add_argument("--target", metavar="SM[,SM…]",
                        help="tensorrt-rtx: compute capabilities, e.g. sm89,sm120")  # fmt: skip
    parser.add_argument("--batch", help="images: N or smallest:typical:largest (default 1)")
    parser.add_argument("--size", metavar="WxH[:WxH:WxH]", help="pixels; the model's by default")
    parser.add_argument("--tune", action="store_true",
                        help="measure on this CPU what `generate` then runs fastest")  # fmt: skip
    parser.add_argument(
        "--threads", type=integer, help="--tune: CPU threads (default: physical cores)"
    )
    parser.add_argument("--list", action="store_true", help="show what is built")
    parser.add_argument("--remove", metavar="NAME", help="remove what --list shows")


def run(options: argparse.Namespace) -> int:
    """Build, list or remove."""
    from bksdm.runtime.bundle import Bundle
    from bksdm.storage.plans import list_built, remove_built

    bundle = Bundle.open(options.bundle)
    engines = bundle.path / "engines"
    if options.list:
        built = list_built(engines)
        for name in built:
            print(printable(name))
        if not built:
            print("nothing is built yet", file=sys.stderr)
        return 0
    if options.remove is not None:
        remove_built(engines, [options.remove])
        return 0
    if options.tune:
        for name in ("target", "batch", "size"):
            if getattr(options, name) is not None:
                raise EngineError(f"--{name} is for GPUs; --tune measures the model's own size")
        if options.threads is not None and options.threads > MAX_THREADS:
            raise EngineError(f"--threads must be at most {MAX_THREADS}, not {options.threads}")
        tune_bundle(bundle, options.engine, options.threads)
        return 0
    if options.threads is not None:
        raise EngineError("--threads is for --tune")
    if options.engine in CPU_ENGINES:
        raise EngineError(f"{options.engine} needs no building; --tune makes it faster")
    height, width = bundle.default_size
    targets = tuple(part for part in (options.target or "").split(",") if part)
    build_bundle(
        bundle.path,
        {name: bundle.model(name) for name in bundle.components},
        options.engine or "tensorrt-rtx",
        targets,
        options.batch or "1",
        options.size or f"{width}x{height}",
    )
    return 0


def tune_bundle(bundle: Bundle, engine: str | None, threads: int | None) -> None:
    """Measure every network, and print and store what was fastest.

    Raises
    ------
    EngineError
        The bundle is not float32, an engine is none of a CPU or not installed, or nothing can be
        written.
    """
    from tqdm import tqdm

    from bksdm.benchmarks.feeds import network_feeds
    from bksdm.optimize.compose import describe_rewrite
    from bksdm.optimize.tune import ROUNDS, tune
    from bksdm.optimize.tuned import write_tuned
    from bksdm.storage.graph import load_graph, tensor_specs

    if engine in (None, AUTO):
        names: tuple[str, ...] = tuple(name for name in CPU_ENGINES if find_spec(name) is not None)
    elif engine in CPU_ENGINES:
        names = (str(engine),)
    else:
        raise EngineError(f"--tune is for {' and '.join(CPU_ENGINES)}, not {engine}")
    models = {name: bundle.model(name) for name in bundle.components}
    inputs = {name: tensor_specs(load_graph(model).graph.input) for name, model in models.items()}
    if inputs["unet"]["sample"].dtype != np.float32:
        raise EngineError(f"{bundle.path} is float16, which is no faster on a CPU; export float32")
    measured, sizes = {}, {}
    for component, model in models.items():
        scale = bundle.vae_scale if component == "vae_encoder" else 1
        side = bundle.sample_size * scale
        feeds = network_feeds(inputs[component], (side, side))
        sizes[component] = {name: list(array.shape) for name, array in feeds.items()}
        with tqdm(desc=component, leave=False, delay=0.5, disable=None,
                  bar_format="{desc}: {n_fmt}/{total_fmt} {postfix}") as bar:  # fmt: skip

            def show(phase: str, done: int, total: int, bar: tqdm[None] = bar) -> None:
                bar.total, bar.n = total, done
                bar.set_postfix_str(phase)

            found = tune(model, names, side, threads, feeds, show)
        measured[component] = found
        for name, tuned in sorted(found.items(), key=lambda entry: entry[1].seconds):
            forms = describe_rewrite(model, tuned.made_for, name)
            print(f"{component:<14}{name:<14}{tuned.seconds:9.4f} s  {forms}")
    settings = {"threads": threads, "rounds": ROUNDS, "sizes": sizes}
    print(write_tuned(bundle.path / "engines", models, measured, settings))


def build_bundle(
    path: Path,
    models: dict[str, Path],
    flavour: str,
    targets: tuple[str, ...],
    batch: str,
    size: str,
) -> None:
    """Build every network and print a line for each.

    Raises
    ------
    EngineError
        The bundle is not float16, or a network cannot be built.
    """
    from tqdm import tqdm

    from bksdm.engines.profile import Profile
    from bksdm.engines.tensorrt import build, check_targets, load_module
    from bksdm.runtime.cuda.compile import compile_kernels, source_digest
    from bksdm.runtime.cuda.gpu import Gpu
    from bksdm.storage.digest import model_digest
    from bksdm.storage.graph import graph_inputs
    from bksdm.storage.plans import Recipe, check, staged, write_plan, write_record

    began = time.monotonic()
    # The weights may be float16 where the graph computes in float32.
    precision = str(graph_inputs(models["unet"])["sample"].dtype)
    if precision != "float16":
        raise EngineError(f"{path} is {precision}; export it with --dtype float16 first")
    version = str(load_module(flavour).__version__)
    if flavour == "tensorrt":
        if targets:
            raise EngineError("--target is for tensorrt-rtx; tensorrt builds for the GPU present")
        targets = (Gpu().target,)
    else:
        check_targets(targets)
    recipe = Recipe(flavour, version, targets, precision, Profile.parse(batch, size))
    timings = None
    if flavour == "tensorrt":
        timings = path / "engines" / f"timings-{version}-{targets[0]}.cache"
    kernels = {target: compile_kernels(target) for target in targets}
    folder = path / "engines" / recipe.name
    with staged(folder) as beside:
        plans = {
            f"kernels-{target}": {
                "model": source_digest(),
                **write_plan(beside, f"kernels-{target}", code, ".cubin"),
            }
            for target, code in kernels.items()
        }
        for component, model in models.items():
            start = time.monotonic()
            with tqdm(total=1.0, desc=component, leave=False, delay=0.5, disable=None,
                      bar_format="{desc}: {percentage:3.0f}% {postfix}") as bar:  # fmt: skip

                def show(phase: str, part: float, bar: tqdm[None] = bar) -> None:
                    bar.set_postfix_str(phase, refresh=False)
                    bar.update(part - bar.n)

                plan = build(model, component, flavour, targets, recipe.profile, show, timings)
            seconds = time.monotonic() - start
            plans[component] = {
                "model": model_digest(model, folder.parent),
                **write_plan(beside, component, plan.content),
                "seconds": round(seconds, 1),
                "tensors": plan.dtypes,
            }
            print(f"{component:<14}{len(plan.content) / 1e6:9.1f} MB{seconds:8.1f} s  "
                  + ", ".join(f"{n} {kind}" for kind, n in plan.dtypes.items()))  # fmt: skip
        write_record(beside, recipe, plans)
    check(folder, recipe, models)
    print(f"{time.monotonic() - began:.0f} s in all{_peak_memory()}")
    print(folder)


def _peak_memory() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f", at most {peak / 1e9:.1f} GB of memory"
