"""Measure what LoRAs at run time cost: loading, switching, memory, and time of a UNet call."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

from bksdm.benchmarks.machine import describe_machine
from bksdm.engines.lora_inputs import SCOPES, covers
from bksdm.engines.registry import open_engine
from bksdm.engines.variants import DEEP
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.lora.layers import layers_of
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.sampling import Watch
from bksdm.storage.precision import FLOAT32

SWITCHES = 20
PLAIN = "plain"


def measure_loras(
    bundle: Path,
    engine: str,
    threads: int,
    rank: int,
    rounds: int,
    scopes: Sequence[str] = SCOPES,
    precision: str | None = None,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Load random LoRAs of several kinds, switch between two of each, and time UNet calls in turns.

    Parameters
    ----------
    bundle : Path
        The model.
    engine : str
        Of the networks.
    threads : int
        CPU threads.
    rank : int
        Of all layers.
    rounds : int
        Guided calls of each UNet, after one untimed.
    scopes : sequence of str
        Of :mod:`bksdm.engines.lora_inputs`.
    precision : str, optional
        As of :meth:`~bksdm.runtime.pipeline.TextToImage.load`.
    progress : callable
        Called after every call.

    Returns
    -------
    dict
        ``plain``: seconds of calls, and of opening the UNet anew, which merged weights would take
        at least. By scope: ``layers``; seconds to ``read`` a file, to ``load`` its networks, of
        each of 20 ``switches`` and of ``calls``; ``file_bytes``; ``memory_bytes`` by which the
        process grew until the first call was done.
    """
    process = psutil.Process()
    model = TextToImage.load(bundle, engine, threads, precision=precision)
    executor = model.executor
    assert isinstance(executor, HostExecutor)
    config = GenerationConfig("", num_inference_steps=2, seed=0)

    def call(loras: dict[str, float]) -> float:
        """Run the first evaluation of a job, which can be asked for again."""
        request = model.request(GenerationConfig("", num_inference_steps=2, seed=0, loras=loras))  # type: ignore[arg-type]
        job = executor.start(model.begin(request, {}), Watch(), {})
        seconds: dict[str, float] = {}
        executor.predict([job], seconds)
        progress()
        return seconds["unet"]

    call({})
    graph = model.bundle.model("unet")
    start = time.perf_counter()
    opened = open_engine(
        engine,
        graph,
        threads,
        model.bundle.path / "engines",
        model.bundle.sample_size,
        DEEP,
        precision or FLOAT32.name,
    )
    anew = time.perf_counter() - start
    del opened
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for scope in scopes:
            files = [
                _random(layers_of(graph), scope, rank, Path(folder) / f"{scope}-{k}.safetensors", k)
                for k in (0, 1)
            ]
            before, start = process.memory_info().rss, time.perf_counter()
            read = [model.loras.read(file) for file in files]
            reading = (time.perf_counter() - start) / len(files)
            start = time.perf_counter()
            for lora in read:
                model.use_lora(lora)
            loading = time.perf_counter() - start
            names = [lora.name for lora in read]
            call({names[0]: 1.0})
            found[scope] = {
                "layers": len(read[0].factors["unet"]),
                "read": reading,
                "load": loading,
                "switches": [
                    _switch(model, executor, {names[k % 2]: 1.01 + k / 100})
                    for k in range(SWITCHES)
                ],
                "file_bytes": files[0].stat().st_size,
                "memory_bytes": process.memory_info().rss - before,
                "calls": [],
                "name": names[0],
            }
        plain: list[float] = []
        for _ in range(rounds):
            plain.append(call({}))
            for entry in found.values():
                entry["calls"].append(call({entry["name"]: 1.0}))
    for entry in found.values():
        del entry["name"]
    height, width = model.bundle.default_size
    return {
        "kind": "lora",
        "machine": describe_machine(),
        "model": {"name": model.bundle.path.resolve().name, "digest": model.bundle.digest()},
        "settings": {
            "engine": engine,
            "precision": model.precision,
            "threads": threads,
            "rank": rank,
            "height": height,
            "width": width,
            "steps": config.num_inference_steps,
        },
        "plain": {"calls": plain, "open": anew},
        "scopes": found,
    }


def _switch(model: TextToImage, executor: HostExecutor, loras: dict[str, float]) -> float:
    """Return the seconds from a choice, at a scale that is new, to the arrays of its networks."""
    start = time.perf_counter()
    adaptation, _ = model.loras.adapt(
        GenerationConfig("", loras=loras).loras  # type: ignore[arg-type]
    )
    assert adaptation.unet is not None
    adaptation.unet.feeds(executor.predict.load_adapted(adaptation.unet).inputs)
    return time.perf_counter() - start


def _random(
    layers: dict[str, tuple[int, ...]], scope: str, rank: int, path: Path, seed: int
) -> Path:
    """Write a file for all layers of a scope."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer, (out, into, *kernel) in layers.items():
        if covers(scope, layer):
            down = generator.standard_normal((rank, into, *kernel), np.float32) / into**0.5
            up = generator.standard_normal((out, rank, *(1 for _ in kernel)), np.float32) / 10
            tensors[f"unet.{layer}.lora_A.weight"] = down.astype(np.float32)
            tensors[f"unet.{layer}.lora_B.weight"] = up.astype(np.float32)
    save_file(tensors, path)
    return path
