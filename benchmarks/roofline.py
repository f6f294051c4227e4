"""Bound the time of a network's work on a machine from below (roofline, Williams et al. 2009)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.work import NetworkWork, count_work
from bksdm.engines.onnxruntime_package import load_onnxruntime
from bksdm.engines.profile import PROMPT_TOKENS
from bksdm.engines.registry import open_engine
from bksdm.optimize.feeds import network_feeds
from bksdm.runtime.bundle import Bundle

# Products that fit into a core's cache: larger ones ran slower in every library tried.
PROBE = (16, 512, 512)
PROBE_BYTES = 2**28
PROBE_ROUNDS = 30
COMPONENT_ROUNDS = 3


@dataclass(frozen=True)
class Peak:
    """Peak performance of a machine.

    Attributes
    ----------
    name
        Of the machine.
    flops_per_second, bytes_per_second
        Arithmetic and memory.
    source
        ``measured``, or the document that states it.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    source: str


# Dense float16 tensor-core products summed in float32, without sparsity, and memory bandwidth.
GPUS = {
    "a100": Peak("A100 80GB SXM", 312e12, 2039e9, "NVIDIA A100 datasheet (June 2021)"),
    "h100": Peak("H100 SXM", 989.4e12, 3350e9, "NVIDIA H100 datasheet, half of its sparse figure"),
    "h200": Peak("H200 SXM", 989.4e12, 4800e9, "NVIDIA H200 datasheet, half of its sparse figure"),
    "rtx4090": Peak("GeForce RTX 4090", 165.2e12, 1008e9, "NVIDIA Ada architecture whitepaper"),
}


def measure_peak(threads: int) -> Peak:
    """Measure float32 matrix products in ONNX Runtime and copies in numpy; the best of several.

    Parameters
    ----------
    threads : int
        CPU threads of the products; the copies take one.
    """
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(PROBE).astype(np.float32) for _ in range(2))
    names = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, PROBE) for n in "abc"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])], "probe", names[:2], names[2:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    source = np.zeros(PROBE_BYTES, np.uint8)
    target = np.zeros_like(source)
    flops = 2 * math.prod(PROBE) * PROBE[-1] / _best(lambda: session.run(None, {"a": a, "b": b}))
    # A copy reads and writes.
    moved = 2 * PROBE_BYTES / _best(lambda: np.copyto(target, source))
    return Peak(f"this machine, {threads} threads", flops, moved, "measured")


def measure_component(bundle: Bundle, name: str, sizes: tuple[int, int], threads: int) -> float:
    """Return the median seconds of a run of a network by the default engine, after a warm-up."""
    engine = open_engine(
        "onnxruntime", bundle.model(name), threads, bundle.path / "engines", bundle.sample_size
    )
    feeds = network_feeds(engine.inputs, sizes)
    engine(feeds)
    times = []
    for _ in range(COMPONENT_ROUNDS):
        start = time.perf_counter()
        engine(feeds)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def lower_bound(work: NetworkWork, peak: Peak) -> float:
    """Return seconds: max(operations / peak, bytes / bandwidth), convolutions taken as direct.

    A rewritten convolution needs fewer operations, and may take less time than this.
    """
    arithmetic = sum(work.flops.values()) / peak.flops_per_second
    memory = (work.weight_bytes + work.activation_bytes) / peak.bytes_per_second
    return max(arithmetic, memory)


def measure_roofline(
    bundle_path: Path, height: int, width: int, threads: int, gpu: str | None = None
) -> dict[str, Any]:
    """Count the work of every network, and compare the bound with the time it takes.

    Parameters
    ----------
    bundle_path : Path
        The model.
    height, width : int
        In pixels.
    threads : int
        CPU threads.
    gpu : str, optional
        A key of :data:`GPUS`: bounds by its datasheet, and no times.
    """
    bundle = Bundle.open(bundle_path)
    peak = measure_peak(threads) if gpu is None else GPUS[gpu]
    sizes = (height // bundle.vae_scale, width // bundle.vae_scale)
    networks: dict[str, Any] = {}
    for name in bundle.components:
        batch = 2 if name in ("unet", "text_encoder") else 1
        # The encoder's picture is what the others' latents are made from.
        scale = bundle.vae_scale if name == "vae_encoder" else 1
        work = count_work(
            bundle.model(name),
            {"batch": batch, "height": sizes[0], "width": sizes[1], "tokens": PROMPT_TOKENS},
        )
        networks[name] = {**asdict(work), "bound_seconds": lower_bound(work, peak)}
        if gpu is None:
            own = (sizes[0] * scale, sizes[1] * scale)
            networks[name]["seconds"] = measure_component(bundle, name, own, threads)
    return {
        "kind": "roofline",
        "machine": describe_machine(),
        "model": {"name": bundle.path.resolve().name, "digest": bundle.digest()},
        "settings": {"height": height, "width": width, "threads": threads},
        "peak": asdict(peak),
        "networks": networks,
    }


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(PROBE_ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)
