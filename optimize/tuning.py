"""Measure how a CPU runs a bundle fastest, and store the result in the bundle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.registry import AUTO, backends, cpu_engines, version_of
from bksdm.optimize.budget import Budget
from bksdm.optimize.feeds import network_feeds
from bksdm.optimize.tune import ROUNDS, tune
from bksdm.optimize.tuned import Tuned, write_tuned
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.network_tensors import require_names
from bksdm.runtime.precision_choice import precision_of
from bksdm.runtime.validation import MAX_THREADS, whole
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.places import engines_folder

PARTS = {"unet": 12, "vae_decoder": 6, "vae_encoder": 2}
"""Of a budget, by what a network is of a picture's time; of others 1."""
Measured = Mapping[str, Mapping[str, Tuned]]
"""By network and engine."""


def tune_bundle(
    path: str | Path | Bundle,
    engine: str | None = None,
    threads: int | None = None,
    progress: Callable[[str, str, int, int], object] = lambda network, phase, done, total: None,
    measured: Callable[[str, Mapping[str, Tuned]], object] = lambda network, found: None,
    budget: float | None = None,
) -> tuple[Path, Measured]:
    """Measure every network of a bundle; engines then run as they were tuned.

    It takes minutes, or about as long as ``budget``, and nothing else should run.

    Parameters
    ----------
    path : str, Path or Bundle
        A float32 bundle.
    engine : str, optional
        One of the CPU's engines; by default all that are installed.
    threads : int, optional
        CPU threads; by default one per physical core.
    progress : callable
        Called with a network, a phase, and how many of its steps are done and there are.
    measured : callable
        Called with a network and its measurements, as soon as it is done.
    budget : float, optional
        Seconds to spend: what costs most is measured first, and the cost model decides the rest.
        Loading every network on every engine and running it twice is the least.

    Returns
    -------
    Path, mapping
        Where it is stored, and all that was measured.

    Raises
    ------
    BundleError, RequestError
        The bundle is damaged, or an argument is out of range.
    EngineError
        The bundle is not float32, an engine is none of the CPU's or not installed, or nothing can
        be written.
    """
    bundle = Bundle.of(path)
    threads = None if threads is None else whole("threads", threads, 1, MAX_THREADS)
    if engine in (None, AUTO):
        names = tuple(name for name in cpu_engines() if backends()[name].version is not None)
    elif engine in cpu_engines():
        names = (str(engine),)
    else:
        raise EngineError(f"tuning is for {' and '.join(cpu_engines())}, not {engine}")
    models = {name: bundle.model(name) for name in bundle.components}
    graphs = {name: GraphFile.read(model) for name, model in models.items()}
    inputs = {name: graph.inputs for name, graph in graphs.items()}
    for name, graph in graphs.items():
        require_names(models[name], graph.inputs, graph.outputs)
    if inputs["unet"]["sample"].dtype != np.float32:
        raise EngineError(f"{bundle.path} is float16, which is no faster on a CPU; export float32")
    if budget is not None and not 0 < budget < math.inf:
        raise RequestError(f"budget must be a positive number of seconds, not {budget}")
    whole_budget = Budget(budget)
    found: dict[str, Mapping[str, Tuned]] = {}
    sizes: dict[str, dict[str, list[int]]] = {}
    for position, (network, model) in enumerate(models.items()):
        to_come = [PARTS.get(name, 1) for name in list(models)[position:]]
        scale = bundle.vae_scale if network == "vae_encoder" else 1
        side = bundle.sample_size * scale
        feeds = network_feeds(inputs[network], (side, side))
        sizes[network] = {name: list(array.shape) for name, array in feeds.items()}

        def told(phase: str, done: int, total: int, network: str = network) -> None:
            progress(network, phase, done, total)

        found[network] = tune(
            model,
            names,
            side,
            threads=threads,
            feeds=feeds,
            progress=told,
            precision=precision_of(network, bundle.precision),
            budget=whole_budget.share(to_come[0] / sum(to_come)),
        )
        measured(network, found[network])
    settings = {"threads": threads, "rounds": ROUNDS, "budget": budget, "sizes": sizes}
    stored = write_tuned(engines_folder(bundle.path), models, found, settings, version_of)
    return stored, found
