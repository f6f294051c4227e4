"""Compile a bundle into TensorRT plans, with the kernels of the loop beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bksdm.engines.errors import EngineError
from bksdm.engines.profile import Profile
from bksdm.engines.registry import backend
from bksdm.engines.tensorrt import BUILD_FLAGS, load_module
from bksdm.optimize.plan import build, validate_targets
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.cuda.compile import compile_kernels, source_digest
from bksdm.runtime.cuda.gpu import Gpu
from bksdm.storage.digest import model_digest
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.plans import Recipe, staged, validate_plans, write_plan, write_record
from bksdm.storage.precision import FLOAT16, FP8

LEAST_FP8 = 89
"""The oldest compute capability with products in fp8 ("Working with Quantized Types")."""
DEFAULT_ENGINE = "tensorrt-rtx"


@dataclass(frozen=True)
class Built:
    """A network that was built.

    Attributes
    ----------
    network : str
        Its name.
    size : int
        Of the plan, in bytes.
    seconds : float
        What building took.
    dtypes : dict
        Number of tensors of each type.
    """

    network: str
    size: int
    seconds: float
    dtypes: dict[str, int]


def build_bundle(
    path: str | Path | Bundle,
    engine: str = DEFAULT_ENGINE,
    targets: Sequence[str] = (),
    batch: str = "1",
    size: str | None = None,
    device: int | None = None,
    progress: Callable[[str, str, float], object] = lambda network, phase, part: None,
    built: Callable[[Built], object] = lambda network: None,
) -> Path:
    """Build every network of a bundle for GPUs, and return the folder of the plans.

    Parameters
    ----------
    path : str, Path or Bundle
        A float16 bundle.
    engine : str
        ``tensorrt-rtx`` (RTX GPUs, builds without one) or ``tensorrt`` (the GPU present).
    targets : sequence of str
        For ``tensorrt-rtx``: compute capabilities, such as ``sm89``.
    batch, size : str
        Images and pixels, as one value or as ``smallest:typical:largest``, such as ``1:1:4`` and
        ``512x512``; by default one image of the model's size.
    device : int, optional
        For ``tensorrt``: which GPU; by default the first.
    progress : callable
        Told a network, a phase, and how much of that is done, 0 to 1.
    built : callable
        Told of every network as soon as it is built.

    Raises
    ------
    BundleError
        The bundle is damaged.
    EngineError
        The bundle is not float16, the engine is not built, or a network cannot be.
    """
    bundle = Bundle.of(path)
    if not backend(engine).runs_plans:
        raise EngineError(f"{engine} needs no building; tuning makes it faster")
    models = {name: bundle.model(name) for name in bundle.components}
    precision = bundle.precision
    # The weights may be float16 where the graph computes in float32.
    numbers = str(GraphFile.read(models["unet"]).inputs["sample"].dtype)
    if numbers != FLOAT16.name:
        if precision != numbers:
            raise EngineError(
                f"{bundle.path} is {precision}; quantize one that was exported with --dtype float16"
            )
        raise EngineError(f"{bundle.path} is {precision}; export it with --dtype float16 first")
    version = str(load_module(engine).__version__)
    engines, timings = bundle.path / "engines", None
    if engine == "tensorrt":
        if targets:
            raise EngineError("--target is for tensorrt-rtx; tensorrt builds for the GPU present")
        targets = (Gpu(device or 0).target,)
        timings = engines / f"timings-{version}-{targets[0]}.cache"
    else:
        if device is not None:
            raise EngineError("--device is for tensorrt; tensorrt-rtx builds for --target")
        validate_targets(targets)
    if precision == FP8:
        _refuse_older(targets)
    height, width = bundle.default_size
    profile = Profile.parse(batch, size or f"{width}x{height}")
    recipe = Recipe(engine, version, tuple(targets), precision, profile, BUILD_FLAGS[engine])
    kernels = {target: compile_kernels(target) for target in targets}
    with staged(engines / recipe.name) as beside:
        plans = {
            f"kernels-{target}": {
                "model": source_digest(),
                **write_plan(beside, f"kernels-{target}", code, ".cubin"),
            }
            for target, code in kernels.items()
        }
        for network, model in models.items():
            start = time.monotonic()

            def told(phase: str, part: float, network: str = network) -> None:
                progress(network, phase, part)

            plan = build(model, network, engine, targets, profile, told, timings)
            seconds = time.monotonic() - start
            plans[network] = {
                "model": model_digest(model, engines),
                **write_plan(beside, network, plan.content),
                "seconds": round(seconds, 1),
                "tensors": plan.dtypes,
            }
            built(Built(network, len(plan.content), seconds, plan.dtypes))
        write_record(beside, recipe, plans)
    validate_plans(engines / recipe.name, recipe, models)
    return engines / recipe.name


def _refuse_older(targets: Sequence[str]) -> None:
    """Refuse GPUs that have no products in fp8."""
    for target in targets:
        if int(target.removeprefix("sm")) < LEAST_FP8:
            raise EngineError(
                f"{target} has no products in fp8, which take sm{LEAST_FP8} (Ada) or newer; "
                "quantize the bundle to int8"
            )
