"""Operations counted from graphs, against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bksdm.benchmarks.roofline import GPUS, Peak, lower_bound
from bksdm.benchmarks.work import NetworkWork, count_work
from bksdm.cli import main
from bksdm.engines.errors import BundleError, EngineError
from bksdm.export.networks import NETWORKS, Case, load_network


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.component)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 16, 24)])
def test_operations_are_those_torch_counts(
    nano_checkpoint, nano_bundle, kind, batch, height, width
):
    network = load_network(kind, nano_checkpoint)
    counter = FlopCounterMode(display=False)
    with (
        counter,
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        network(*network.example(Case(batch, height, width, 0)))
    work = count_work(
        nano_bundle / kind.component / "model.onnx",
        {"batch": batch, "height": height, "width": width, "tokens": 77},
    )
    # torch counts convolutions, products and attention, a multiply-add as two, as we do.
    counted = sum(flops for kind, flops in work.flops.items() if kind != "other")
    assert counted == counter.get_total_flops()
    assert 0 < work.flops["other"] < counted


def test_bytes_of_a_float16_bundle_are_half(nano_bundle, nano_bundle_fp16):
    sizes = {"batch": 2, "height": 8, "width": 8}
    single, half = (
        count_work(bundle / "vae_decoder" / "model.onnx", sizes)
        for bundle in (nano_bundle, nano_bundle_fp16)
    )
    assert single.flops == half.flops
    assert single.activation_bytes == 2 * half.activation_bytes
    # Sizes and other whole numbers take what they take.
    assert single.weight_bytes == pytest.approx(2 * half.weight_bytes, rel=0.01)


def test_a_missing_size_is_named(nano_bundle):
    with pytest.raises(EngineError, match="no size was given for height"):
        count_work(nano_bundle / "unet" / "model.onnx", {"batch": 1})


def test_a_damaged_graph_is_named(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"garbage")
    with pytest.raises(BundleError, match=r"model\.onnx: not an ONNX file"):
        count_work(model, {})


def test_the_bound_is_what_takes_longer():
    peak = Peak("p", 100.0, 10.0, "here")
    assert lower_bound(NetworkWork({"convolution": 500}, 1, 2), peak) == pytest.approx(5.0)
    assert lower_bound(NetworkWork({"convolution": 5}, 10, 20), peak) == pytest.approx(3.0)


def test_the_command_prints_every_network(capsys):
    assert main(["bench", "roofline", "--gpu", "h100"]) == 0
    printed = capsys.readouterr().out
    assert GPUS["h100"].source in printed
    assert "a calculation" in printed
    assert all(name in printed for name in ("text_encoder", "unet", "vae_decoder", "vae_encoder"))
    assert main(["bench", "roofline", "--gpu", "abacus"]) == 2
    assert "known: a100, h100, h200, rtx4090" in capsys.readouterr().err
