"""ONNX Runtime's CUDA provider in the loop on a GPU: pictures, times, memory, and its settings.

    python -m bksdm.benchmarks.gpu.provider BUNDLE RECORD.json [--picture CPU.png] [--seconds N]

Every part runs in a process of its own, so that one that fails or dies is a reason in the record,
and memory is its own. Not run on a GPU yet; the tests run the parts on a driver of host memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bksdm.benchmarks.gpu.counted import CountedGpu
from bksdm.benchmarks.gpu.drawing import opened_model
from bksdm.benchmarks.gpu.turns import summaries
from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.roofline import GPUS, lower_bound
from bksdm.benchmarks.side_by_side import distance, write_record
from bksdm.benchmarks.work import count_work
from bksdm.engines.device import Binding, DeviceNetwork
from bksdm.engines.onnxruntime import tensor_specs
from bksdm.engines.onnxruntime_cuda import SETTINGS, CudaNetwork, Recorder, preparation
from bksdm.engines.onnxruntime_package import (
    CUDA_PROVIDER,
    load_cuda_provider,
    load_onnxruntime,
)
from bksdm.engines.onnxruntime_session import open_session
from bksdm.engines.preparing import open_prepared
from bksdm.engines.profile import PROMPT_TOKENS
from bksdm.engines.protocol import TensorSpec
from bksdm.optimize.feeds import network_feeds
from bksdm.runtime.bundle import COMPONENTS, Bundle
from bksdm.runtime.cuda.device import Device, Memory, as_array
from bksdm.runtime.cuda.opened_networks import OpenedNetworks
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.stored_graph import Prepared

PROMPT, SEED = "a lighthouse", 7
RECORDERS: tuple[Recorder, ...] = ("nobody", "loop", "onnxruntime")
CHOICES: dict[str, dict[str, str]] = {
    "as chosen": {},
    "channels first": {"prefer_nhwc": "0"},
    "TF32": {"use_tf32": "1"},
    # Last, for it may take as long as it likes.
    "every convolution tried": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
}
"""Settings of the provider, as they differ from the engine's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The work.

    Attributes
    ----------
    side
        Height and width in pixels; None is the model's.
    steps
        Inference steps.
    repeat
        Pictures, and runs of a network, that count.
    """

    side: int | None = None
    steps: int = 25
    repeat: int = 15


def measure_pictures(
    bundle: Bundle, recorder: Recorder, settings: Settings, expected: NDArray[np.uint8]
) -> dict[str, Any]:
    """Draw on the first GPU, with networks whose kernels somebody records.

    Returns
    -------
    dict
        ``first_seconds`` until the first picture was there, ``stages`` with seconds, evaluations of
        the UNet per second, what was asked of the GPU for one picture (``counts``), bytes that are
        taken of its memory, seconds of each network's run, and the ``distance`` from the expected
        picture.
    """
    device = CountedGpu()
    free = _free_memory()
    start = time.perf_counter()
    networks = OpenedNetworks(
        bundle, partial(CudaNetwork, recorder=recorder), device, 0, bundle.path / "engines"
    )
    draw = partial(
        opened_model(bundle, networks, device),
        PROMPT,
        num_inference_steps=settings.steps,
        height=settings.side,
        width=settings.side,
    )
    pixels = draw(seed=SEED).pixels
    first = time.perf_counter() - start
    samples: dict[str, list[float]] = {}
    for number in range(settings.repeat):
        device.counts.clear()
        start = time.perf_counter()
        drawn = draw(seed=number)
        whole = time.perf_counter() - start
        for stage, seconds in {**drawn.seconds, "picture": whole}.items():
            samples.setdefault(stage, []).append(seconds)
    counts = dict(device.counts)
    stages = summaries(samples)
    taken = free - _free_memory()
    again = draw(seed=SEED).pixels
    height, width = (settings.side, settings.side) if settings.side else bundle.default_size
    sides = (height // bundle.vae_scale, width // bundle.vae_scale)
    runs = {
        name: network_seconds(device, network, sides, bundle.vae_scale, settings.repeat)
        for name, network in networks.load(1, height, width).networks.items()
    }
    return {
        "first_seconds": first,
        "stages": stages,
        "evaluations_per_second": drawn.steps / stages["picture"]["median"],
        "counts": counts,
        "device_memory_bytes": taken,
        "networks": summaries(runs),
        "distance": distance(pixels.astype(np.float32), expected.astype(np.float32), "picture"),
        "same_again": bool((again == pixels).all()),
    }


def network_seconds(
    device: Device, network: DeviceNetwork, sides: tuple[int, int], scale: int, repeat: int
) -> list[float]:
    """Return seconds of runs of a network by itself, each waited for, after one that is not."""
    specs = {name: network.tensors[name] for name in network.inputs}
    feeds = network_feeds(specs, sides)
    rows = len(next(iter(feeds.values())))
    held: dict[str, Memory] = {}
    bindings: dict[str, Binding] = {}
    with device.alone():
        for name, spec in network.tensors.items():
            # The UNet keeps the size, and the VAE decoder gives pixels.
            size = sides if "timestep" in specs else (sides[0] * scale, sides[1] * scale)
            shape = feeds[name].shape if name in feeds else _filled(spec, rows, size)
            count = int(np.prod(shape)) * spec.dtype.itemsize
            held[name] = device.allocate(count)
            bindings[name] = Binding(held[name].address, shape)
            if name in feeds:
                host = device.allocate_host(count)
                as_array(host, spec.dtype, shape)[...] = feeds[name]
                device.copy(held[name], host, count)
                device.synchronize()
        scratch = device.allocate(max(1, network.scratch))
        bound = network.bind(bindings, scratch.address)
        run: Callable[[], None] = partial(bound.enqueue, device.stream)
        run()
        device.synchronize()
        if bound.can_record(device.stream):
            run = device.record(run).launch
        found = []
        for _ in range(repeat):
            start = time.perf_counter()
            run()
            device.synchronize()
            found.append(time.perf_counter() - start)
    return found


def _filled(spec: TensorSpec, rows: int, sides: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of an output."""
    free = iter((rows, *sides))
    return tuple(axis if isinstance(axis, int) else next(free) for axis in spec.shape)


def measure_settings(
    model: Path,
    settings: Mapping[str, str],
    sides: tuple[int, int],
    repeat: int,
    provider: str = CUDA_PROVIDER,
) -> dict[str, Any]:
    """Time a network in a session of its own, fed from the host.

    Returns
    -------
    dict
        ``first_seconds`` until its first run was done, ``seconds`` of the next ones, and the number
        of ``nodes`` by provider and operator.
    """
    start = time.perf_counter()
    session = _session(model, settings, provider)
    feeds = network_feeds(tensor_specs(session.get_inputs()), sides)
    session.run(None, feeds)
    first, samples = time.perf_counter() - start, []
    for _ in range(repeat):
        start = time.perf_counter()
        session.run(None, feeds)
        samples.append(time.perf_counter() - start)
    nodes: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        counted = nodes.setdefault(part.ep_name, Counter())
        counted.update(node.op_type for node in part.get_nodes())
    return {"first_seconds": first, "nodes": nodes, **summaries({"seconds": samples})}


def _session(model: Path, settings: Mapping[str, str], provider: str) -> Any:
    def open_graph(graph: Prepared) -> Any:
        options = load_onnxruntime().SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return open_session(graph, options, provider, settings)

    return open_prepared(preparation(model), model.parents[1] / "engines", open_graph)


def roofline(bundle: Bundle, gpu: str, sides: tuple[int, int]) -> dict[str, Any]:
    """Return the least seconds of a guided UNet call by a GPU's datasheet; empty for others."""
    known = [peak for key, peak in GPUS.items() if key in gpu.lower().replace(" ", "")]
    if not known:
        return {}
    sizes = {"batch": 2, "height": sides[0], "width": sides[1], "tokens": PROMPT_TOKENS}
    bound = lower_bound(count_work(bundle.model("unet"), sizes), known[0])
    return {"peak": asdict(known[0]), "unet_bound_seconds": bound}


def _free_memory() -> int:
    from cuda.bindings import driver

    return int(driver.cuMemGetInfo()[1])


def parts(
    bundle: Bundle, settings: Settings, picture: Path
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is measured, by name, each in a process of its own."""

    def drawn(recorder: Recorder) -> dict[str, Any]:
        return measure_pictures(bundle, recorder, settings, np.asarray(Image.open(picture))[None])

    def run(name: str, choice: str) -> dict[str, Any]:
        load_cuda_provider()
        side = settings.side or max(bundle.default_size)
        sides = (side // bundle.vae_scale,) * 2
        chosen = {**SETTINGS, **CHOICES[choice]}
        return measure_settings(bundle.model(name), chosen, sides, settings.repeat)

    networks = [name for name in COMPONENTS if name != "unet"]
    return {
        **{f"recorded by {name}": partial(drawn, name) for name in RECORDERS},
        **{f"{name}, as chosen": partial(run, name, "as chosen") for name in networks},
        **{f"unet, {choice}": partial(run, "unet", choice) for choice in CHOICES},
    }


def measure_provider(
    folder: Path, settings: Settings, picture: Path, seconds: float, report: Callable[[str], None]
) -> dict[str, Any]:
    """Run every part that there is time for.

    Parameters
    ----------
    folder : Path
        A float16 bundle.
    settings : Settings
        The work.
    picture : Path
        What the CPU draws: PNG of the same prompt, seed and steps; made if it is missing.
    seconds : float
        Time for all parts.
    report : callable
        Called with one line before each.
    """
    began = time.perf_counter()
    bundle = Bundle.open(folder)
    if not picture.exists():
        report("the CPU's picture")
        drawn = TextToImage.load(folder)(
            PROMPT,
            num_inference_steps=settings.steps,
            height=settings.side,
            width=settings.side,
            seed=SEED,
        )
        drawn.images[0].save(picture)
    found: dict[str, Any] = {}
    for name in parts(bundle, settings, picture):
        left = seconds - (time.perf_counter() - began)
        report(f"{name}, {left:.0f} s left")
        found[name] = (
            _in_own_process(folder, settings, picture, name, left)
            if left > 0
            else {"reason": "there was no time left"}
        )
    machine = describe_machine()
    side = settings.side or max(bundle.default_size)
    return {
        "kind": "gpu-provider",
        "machine": machine,
        "model": {"name": folder.resolve().name, "digest": bundle.digest()},
        "settings": asdict(settings),
        "parts": found,
        "roofline": roofline(bundle, " ".join(machine["gpus"]), (side // bundle.vae_scale,) * 2),
    }


def _in_own_process(
    folder: Path, settings: Settings, picture: Path, name: str, seconds: float
) -> dict[str, Any]:
    """Return the result of a part, or the reason why there is none."""
    with tempfile.TemporaryDirectory() as place:
        record = Path(place) / "part.json"
        work = json.dumps(asdict(settings))
        command = [sys.executable, "-m", __spec__.name, str(folder), str(record)]
        command += ["--picture", str(picture), "--part", name, "--work", work]
        try:
            done = subprocess.run(
                command, timeout=seconds, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return {"reason": f"it took more than {seconds:.0f} s"}
        if done.returncode == 0:
            return dict(json.loads(record.read_text(encoding="utf-8")))
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"reason": f"ended with code {done.returncode} ({said[-1].strip()[:300]})"}


def main() -> None:
    """Measure everything, or one part; write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="float16 bundle")
    parser.add_argument("record", type=Path, help="JSON to write")
    parser.add_argument("--picture", type=Path, default=Path("cpu.png"), help="what the CPU draws")
    parser.add_argument("--seconds", type=float, default=600, help="to be done by (default: 600)")
    parser.add_argument("--part", help="only this part, in this process")
    parser.add_argument("--work", default="{}", help="JSON: size, steps and repetitions")
    options = parser.parse_args()
    settings = Settings(**json.loads(options.work))
    if options.part is not None:
        measure = parts(Bundle.open(options.bundle), settings, options.picture)[options.part]
        write_record(measure(), options.record)
        return
    record = measure_provider(
        options.bundle,
        settings,
        options.picture,
        options.seconds,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    write_record(record, options.record)


if __name__ == "__main__":
    main()
