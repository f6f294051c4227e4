"""``bksdm build``: compile a bundle for a GPU."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bksdm.engines.errors import EngineError

EXAMPLES = """examples:
  bksdm build bundle-fp16/ --engine tensorrt-rtx --target sm89,sm120
  bksdm build bundle-fp16/ --engine tensorrt --batch 1:1:4 --size 384x384:512x512:768x768
  bksdm build bundle-fp16/ --list
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="float16 bundle")
    parser.add_argument("--engine", default="tensorrt-rtx",
                        help="tensorrt-rtx (RTX GPUs, builds without one) or tensorrt (the GPU "
                             "present)")  # fmt: skip
    parser.add_argument("--target", default="", metavar="SM[,SM…]",
                        help="tensorrt-rtx: compute capabilities, e.g. sm89,sm120")  # fmt: skip
    parser.add_argument("--batch", default="1", help="images: N or smallest:typical:largest")
    parser.add_argument("--size", metavar="WxH[:WxH:WxH]", help="pixels; the model's by default")
    parser.add_argument("--list", action="store_true", help="show what is built")
    parser.add_argument("--remove", metavar="NAME", help="remove what --list shows")


def run(options: argparse.Namespace) -> int:
    """Build, list or remove."""
    from bksdm.engines.plans import list_plans, remove_plans
    from bksdm.runtime.bundle import Bundle

    bundle = Bundle.open(options.bundle)
    engines = bundle.path / "engines"
    if options.list:
        print(*list_plans(engines), sep="\n")
        return 0
    if options.remove is not None:
        remove_plans(engines, [options.remove])
        return 0
    side = bundle.sample_size * bundle.vae_scale
    targets = tuple(part for part in options.target.split(",") if part)
    build_bundle(
        bundle.path,
        {name: bundle.model(name) for name in bundle.components},
        options.engine,
        targets,
        options.batch,
        options.size or f"{side}x{side}",
    )
    return 0


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

    from bksdm.engines.graph import describe_graph
    from bksdm.engines.plans import Recipe, check, model_digest, staged, write_plan, write_record
    from bksdm.engines.profile import Profile
    from bksdm.engines.tensorrt import build, check_targets, load_module
    from bksdm.runtime.cuda.compile import compile_kernels, source_digest
    from bksdm.runtime.cuda.gpu import Gpu

    began = time.monotonic()
    precision = describe_graph(models["unet"])["dtype"]
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
                "model": model_digest(model),
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
