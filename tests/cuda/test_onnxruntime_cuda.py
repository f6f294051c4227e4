"""ONNX Runtime in the loop on the GPU: the same pictures, one wait, whoever records its kernels."""

from __future__ import annotations

import shutil
import threading
from functools import partial

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from bksdm.cli import main
from bksdm.engines import onnxruntime_cuda
from bksdm.engines.device import Binding
from bksdm.engines.errors import EngineError
from bksdm.engines.registry import backend
from bksdm.engines.stream_fork import Fork
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.cuda import opened_networks
from bksdm.runtime.cuda.compile import source_digest
from bksdm.runtime.cuda.executor import CudaExecutor
from bksdm.runtime.cuda.opened_networks import OpenedNetworks
from bksdm.runtime.pipeline import TextToImage

from .conftest import _encode, _encoder
from .simulated import machine_code
from .streamed import StreamedSession

TWO_KINDS = {"num_inference_steps": 4, "guidance_interval": (0.0, 0.5)}
CASES = {
    "pndm": {"num_inference_steps": 6},
    "two kinds of step": TWO_KINDS,
    "three images": {"num_inference_steps": 3, "num_images_per_prompt": 3, "seed": [1, 2, 3]},
    "96x72": {"num_inference_steps": 2, "width": 96, "height": 72, "sampler": "euler-a"},
}


@pytest.fixture(scope="module")
def bundle(nano_bundle_fp16, tmp_path_factory):
    folder = tmp_path_factory.mktemp("opened") / "nano"
    shutil.copytree(nano_bundle_fp16, folder)
    return folder


@pytest.fixture
def opened():
    """The sessions that were opened."""
    return []


@pytest.fixture
def provider(driver, device, monkeypatch, opened):
    """The CPU provider in place of the CUDA provider; ``on_cpu`` are nodes that this has not."""

    def use(on_cpu=()):
        def open_session(graph, options, name, settings):
            assert name == "CUDAExecutionProvider"
            opened.append(StreamedSession(graph, device, settings, on_cpu))
            return opened[-1]

        monkeypatch.setattr(onnxruntime_cuda, "load_cuda_provider", lambda: ort)
        monkeypatch.setattr(onnxruntime_cuda, "open_session", open_session)
        monkeypatch.setattr(
            opened_networks, "stored_kernels", lambda target, _: machine_code(target)
        )

    return use


@pytest.fixture
def load(device, provider):
    def open_on_device(folder, recorder="nobody", in_loops=False):
        provider()
        bundle = Bundle.open(folder)
        open_network = backend("onnxruntime-cuda").open_on_device
        networks = OpenedNetworks(
            bundle, partial(open_network, recorder=recorder), device, 0, folder / "engines"
        )
        executor = CudaExecutor(bundle, _encode(bundle), networks, device, in_loops)
        return TextToImage(bundle, executor, _encoder(bundle, executor.vae_encoder))

    return open_on_device


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_those_of_plans(load, bundle, same_on_host, case):
    arguments = {"seed": 5, **CASES[case]}
    expected = same_on_host("a lighthouse", **arguments).pixels.astype(int)
    found = load(bundle)("a lighthouse", **arguments).pixels
    # The CPU provider rounds only what leaves a network to float16, the plans every tensor.
    assert np.abs(found - expected).max() <= 2


def test_whoever_records_the_pictures_are_the_same(load, bundle, device):
    expected = load(bundle)("a", seed=5, **TWO_KINDS).pixels
    assert device.counts["graph launches"] == 0
    for recorder, in_loops, launches in (
        ("loop", False, 5),
        ("loop", True, 2),
        ("onnxruntime", False, 0),
    ):
        model = load(bundle, recorder, in_loops)
        # The second one comes from recorded steps alone.
        for _ in range(2):
            device.counts.clear()
            assert (model("a", seed=5, **TWO_KINDS).pixels == expected).all()
            assert device.counts["graph launches"] == launches


def test_a_picture_to_start_from_needs_no_other_engine(load, bundle, same_on_host):
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    arguments = {"image": picture, "strength": 0.6, "num_inference_steps": 5, "seed": 2}
    expected = same_on_host("a", **arguments).pixels.astype(int)
    assert np.abs(load(bundle)("a", **arguments).pixels - expected).max() <= 2


def test_a_picture_waits_once_and_allocates_nothing(load, bundle, device):
    model = load(bundle)
    model("a", num_inference_steps=4, seed=0)
    device.counts.clear()
    result = model("b", num_inference_steps=9, sampler="euler", seed=1)
    assert device.counts["synchronisations"] == 1
    assert device.counts["allocations"] == 0
    # Text encoder and VAE decoder besides; check of the embeddings, VAE input, pixels.
    assert device.counts["plans"] == 2 + result.steps
    assert device.counts["kernels"] == 3 + 2 * result.steps


def test_every_shape_has_a_graph_of_its_own(load, bundle, opened):
    model = load(bundle, "onnxruntime")
    model("a", num_inference_steps=2, seed=0)
    for session in opened:
        assert session.settings["enable_cuda_graph"] == "1"
        assert session.settings["device_id"] == "0"
    unet = model.executor._networks.load(1, 64, 64).networks["unet"]
    bindings = {
        name: Binding(1 << 40, tuple(2 if n == "?" else n for n in spec.shape))
        for name, spec in unet.tensors.items()
    }
    ids = {unet.bind(bindings, 0).options.get_run_config_entry("gpu_graph_id") for _ in range(3)}
    assert len(ids) == 3
    assert "-1" not in ids


def test_graphs_are_prepared_without_a_gpu(nano_bundle_fp16, tmp_path, capsys):
    folder = tmp_path / "nano"
    shutil.copytree(nano_bundle_fp16, folder, ignore=shutil.ignore_patterns("engines"))
    assert main(["build", str(folder), "--engine", "onnxruntime-cuda"]) == 0
    *lines, place = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines) == Bundle.open(folder).components
    assert all(line.endswith(", all with a CUDA kernel") for line in lines)
    assert place == str(folder / "engines")
    (stored,) = folder.glob("engines/graphs-onnxruntime-cuda/unet-*/model.onnx")
    assert b"MultiHeadAttention" in stored.read_bytes()
    assert main(["build", str(folder), "--engine", "onnxruntime-cuda", "--target", "sm90"]) == 2
    assert "--target is for plans" in capsys.readouterr().err


def test_what_would_run_on_the_cpu_is_named(provider, bundle, device):
    provider(on_cpu=("Resize", "Attention", "Gather"))
    with pytest.raises(EngineError, match=r"unet: .* no CUDA kernels for Attention, Resize, which"):
        onnxruntime_cuda.CudaNetwork(bundle / "unet" / "model.onnx", device.stream)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sample": None}, "unet: expects tensors"),
        ({"sample": (2, 4, 8)}, "unet: sample has shape"),
        ({"sample": (2, 5, 8, 8)}, r"sample has shape \(.*\), not \(2, 5, 8, 8\)"),
    ],
)
def test_what_does_not_fit_is_named(provider, bundle, device, changes, named):
    provider()
    unet = onnxruntime_cuda.CudaNetwork(bundle / "unet" / "model.onnx", device.stream)
    shapes = {name: spec.shape for name, spec in unet.tensors.items()} | changes
    bindings = {name: Binding(0, shape) for name, shape in shapes.items() if shape is not None}
    with pytest.raises(EngineError, match=named):
        unet.bind(bindings, 0)


def test_a_float32_bundle_is_refused(load, nano_bundle):
    with pytest.raises(EngineError, match="export the bundle with --dtype float16"):
        load(nano_bundle)("a", num_inference_steps=1, seed=0)


def test_compiled_kernels_are_kept_and_checked(tmp_path, monkeypatch):
    from bksdm.runtime.cuda import compile as compiled

    made = []

    def compile_kernels(target):
        made.append(target)
        return b"code of " + target.encode()

    monkeypatch.setattr(compiled, "compile_kernels", compile_kernels)
    folder = tmp_path / "new"
    assert compiled.stored_kernels("sm90", folder) == b"code of sm90"
    assert compiled.stored_kernels("sm90", folder) == b"code of sm90"
    assert compiled.stored_kernels("sm89", folder) == b"code of sm89"
    assert made == ["sm90", "sm89"]
    (file,) = folder.glob("kernels-sm90-*")
    assert source_digest()[:12] in file.name
    file.write_bytes(file.read_bytes()[:-1])
    assert compiled.stored_kernels("sm90", folder) == b"code of sm90"
    # What cannot be written is made again.
    folder.joinpath("x").write_bytes(b"")
    assert compiled.stored_kernels("sm90", folder / "x") == b"code of sm90"
    assert made == ["sm90", "sm89", "sm90", "sm90"]


def test_a_fork_joins_the_recording(device):
    """Work in another stream is part of it, in order, and nothing is left unjoined."""
    from cuda.bindings import driver

    from .simulated import HOST_FUNCTION, accepted

    (inner,) = accepted(driver.cuStreamCreateWithPriority(1, 0))
    seen = []

    def put(stream, name):
        import ctypes

        function = HOST_FUNCTION(lambda _: seen.append(name))
        functions.append(function)
        pointer = ctypes.cast(function, ctypes.c_void_p).value
        accepted(driver.cuLaunchHostFunc(stream, driver.CUhostFn(pointer), 0))

    functions = []

    def work():
        put(device.stream, "before")
        with Fork(device.stream, int(inner)):
            put(int(inner), "within")
        put(device.stream, "after")

    with device.alone():
        work()
        device.synchronize()
        assert seen == ["before", "within", "after"]
        graph = device.record(work)
        assert len(seen) == 3
        graph.launch()
        device.synchronize()
        assert seen == ["before", "within", "after"] * 2

        def unjoined():
            put(device.stream, "before")
            Fork(device.stream, int(inner)).__enter__()
            put(int(inner), "within")

        with pytest.raises(EngineError, match="recording failed"):
            device.record(unjoined)
        work()
        device.synchronize()
        assert len(seen) == 9


def test_threads_may_share_a_model(load, bundle):
    model = load(bundle)
    arguments = {"num_inference_steps": 3}
    expected = [model("a", seed=seed, **arguments).pixels for seed in range(4)]
    found = [None] * 4

    def draw(seed):
        found[seed] = model("a", seed=seed, **arguments).pixels

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((a == b).all() for a, b in zip(expected, found, strict=True))
