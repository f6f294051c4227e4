"""Prepare every graph of a bundle, so that a machine without ``onnx`` only opens files."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from bksdm.engines.errors import EngineError
from bksdm.engines.preparing import open_prepared
from bksdm.engines.protocol import Engine
from bksdm.engines.registry import backend, open_engine
from bksdm.engines.variants import CONTROLLED, DEEP, DEEP_FEATURES, HINT, HINTED, SHALLOW, skipping
from bksdm.optimize.clip_skip import skips_layers
from bksdm.optimize.cuda_kernels import take_census
from bksdm.optimize.graph import load_graph
from bksdm.runtime.bundle import CONTROLNET, Bundle
from bksdm.runtime.precision_choice import precision_of
from bksdm.storage.files import remove_unused
from bksdm.storage.graph_cache import is_whole, stored_graphs
from bksdm.storage.places import engines_folder
from bksdm.storage.stored_graph import Prepared

Told = Callable[[str, float, str], object]


def prepare_bundle(
    path: str | Path | Bundle,
    engine: str,
    cache: Path | None = None,
    prepared: Told = lambda network, seconds, note: None,
) -> Path:
    """Rewrite all graphs for an engine, store them, and return their folder.

    Those of every option are made, but for ``clip_skip`` beyond 1, bfloat16, and pictures of a few
    rows.

    Parameters
    ----------
    path : str, Path or Bundle
        The bundle.
    engine : str
        One that runs graphs.
    cache : Path, optional
        Where they are stored; by default in the bundle, or in the user's cache if that cannot be
        written.
    prepared : callable
        Told of each network, the seconds it took, and for an engine on a GPU what its graph is made
        of, and what of that would run on the CPU.

    Raises
    ------
    BundleError
        The bundle is damaged.
    EngineError
        The engine is not installed or runs plans, or a graph cannot be stored.
    """
    bundle = Bundle.of(path)
    if backend(engine).runs_plans:
        raise EngineError(f"{engine} runs plans, which `bksdm build` makes in another way")
    place = engines_folder(bundle.path) if cache is None else cache
    # Loading trusts what it stored; whoever asks for a build may have found that it is damaged.
    for graph in stored_graphs(place):
        if not is_whole(graph.path):
            remove_unused(graph.path)
    make = partial(_make, bundle, engine, place, prepared)
    if backend(engine).open is None:
        for network in bundle.components:
            make(network)
        return place
    for network in bundle.components:
        if network == "unet" and backend(engine).capabilities.feature_reuse:
            if DEEP_FEATURES in make(network, DEEP).outputs:
                make(network, SHALLOW)
        else:
            make(network)
    if bundle.controlnets:
        make("unet", CONTROLLED)
    for name in bundle.controlnets:
        make(f"{CONTROLNET}{name}", HINT)
        make(f"{CONTROLNET}{name}", HINTED)
    if skips_layers(load_graph(bundle.model("text_encoder"))):
        make("text_encoder", skipping(1))
    if bundle.has_safety_checker:
        make("safety_checker")
    return place


def _make(
    bundle: Bundle,
    engine: str,
    cache: Path,
    prepared: Told,
    network: str,
    variant: str = "",
) -> Any:
    began, model = time.monotonic(), bundle.model(network)
    pixels = network == "vae_encoder" or variant == HINT
    side = bundle.sample_size * (bundle.vae_scale if pixels else 1)
    opened: Engine | Prepared
    note = ""
    if graph := backend(engine).graph:
        opened = open_prepared(graph(model), cache, lambda prepared: prepared)
        note = str(take_census(onnx.load_from_string(opened.content)))
    else:
        precision = precision_of(network, bundle.precision)
        opened = open_engine(
            engine, model, None, cache=cache, side=side, variant=variant, precision=precision
        )
    name = f"{network}-{variant}" if variant else network
    if name not in {graph.network for graph in stored_graphs(cache)}:
        raise EngineError(f"{name}: cannot be stored in {cache}; make room there, or remove it")
    prepared(f"{network} {variant}".strip(), time.monotonic() - began, note)
    return opened
