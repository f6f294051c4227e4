"""``bksdm calibrate``: magnitudes of every tensor, and the error of float16."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bksdm.cli import main
from bksdm.engines.half import LARGEST
from bksdm.engines.ranges import RangeEngine
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.samplers import step_table


def test_magnitudes_and_errors_are_reported(nano_bundle, nano_bundle_fp16, tmp_path, capsys):
    file = tmp_path / "ranges.json"
    command = ["calibrate", str(nano_bundle), "--half", str(nano_bundle_fp16), "--steps", "2"]
    assert main([*command, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert set(report) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    for entry in report.values():
        assert len(entry["largest"]) > 50
        assert entry["beyond_float16"] == []
        # A float16 number is within 2^-11 of what it stands for; some dozens of roundings follow
        # one another. Measured: 0.9e-3 to 2.2e-3.
        assert all(2**-12 < error < 1e-2 for error in entry["relative_l2_of_half"])
    # The timestep itself, times frequencies up to 1, is the largest number in there.
    table = step_table(Bundle.open(nano_bundle).scheduler, 2)
    assert max(report["unet"]["largest"].values()) == pytest.approx(max(table.timesteps))
    assert "unet: " in capsys.readouterr().out


def test_magnitudes_are_those_of_the_tensors(nano_bundle):
    """Against the same graph with a tensor as its output, run without any watching."""
    path = nano_bundle / "vae_decoder" / "model.onnx"
    model = onnx.load(path)
    name = next(n.output[0] for n in model.graph.node if n.op_type == "Conv")
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    import onnxruntime as ort

    plain = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels, tensor = plain.run(None, {"latent_sample": latents})
    engine = RangeEngine(path)
    found = engine({"latent_sample": latents})
    assert set(found) == {"sample"}
    # The watched graph is not fused in the same way, so that sums differ in their last bits.
    np.testing.assert_allclose(found["sample"], pixels, atol=1e-5)
    assert engine.largest[name] == pytest.approx(np.abs(tensor).max(), rel=1e-5)
    weight = next(w for w in model.graph.initializer if w.name.endswith("conv_in.weight"))
    assert engine.largest[weight.name] == np.abs(numpy_helper.to_array(weight)).max()


@pytest.fixture
def loud_bundles(nano_bundle, nano_bundle_fp16, tmp_path):
    """The last convolution's input is 10⁵ times what it was, and its weight a 10⁵th."""
    folders = []
    for source in (nano_bundle, nano_bundle_fp16):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        path = folder / "vae_decoder" / "model.onnx"
        model = onnx.load(path)
        last = [n for n in model.graph.node if n.op_type == "Conv"][-1]
        for name, factor in (("up", 1000), ("more", 1000), ("down", 1e-3), ("again", 1e-3)):
            value = np.array(factor, np.float16 if source is nano_bundle_fp16 else np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        at = list(model.graph.node).index(last)
        source_name = last.input[0]
        for name in ("up", "more", "down", "again"):
            node = onnx.helper.make_node("Mul", [source_name, name], [f"loud:{name}"])
            model.graph.node.insert(at, node)
            at, source_name = at + 1, f"loud:{name}"
        model.graph.node[at].input[0] = source_name
        (path.parent / "model.onnx.data").unlink(missing_ok=True)
        onnx.save(model, path)
        folders.append(folder)
    return folders


def test_an_overflow_is_named_and_fails(loud_bundles, tmp_path, capsys):
    single, half = loud_bundles
    file = tmp_path / "ranges.json"
    command = ["calibrate", str(single), "--half", str(half), "--steps", "1", "--json", str(file)]
    assert main(command) == 1
    entry = json.loads(file.read_text())["vae_decoder"]
    assert "loud:more" in entry["beyond_float16"]
    assert all(entry["largest"][name] > LARGEST for name in entry["beyond_float16"])
    assert entry["relative_l2_of_half"] == [float("inf")] * 2
    assert "loud:more  overflows" in capsys.readouterr().out


def test_bundles_of_the_wrong_type_are_refused(nano_bundle, nano_bundle_fp16, capsys):
    assert main(["calibrate", str(nano_bundle_fp16)]) == 2
    assert "needs a float32 graph" in capsys.readouterr().err
    assert main(["calibrate", str(nano_bundle), "--half", str(nano_bundle), "--steps", "1"]) == 2
    assert "not a float16 graph" in capsys.readouterr().err
