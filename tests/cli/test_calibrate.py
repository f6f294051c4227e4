"""``bksdm calibrate``: magnitudes of every tensor, and the error of float16."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from bksdm.cli import main
from bksdm.models import EMOJI
from bksdm.optimize.half import LARGEST
from bksdm.optimize.ranges import RangeEngine
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.samplers import step_table


def test_magnitudes_and_errors_are_reported(emoji_fp16, tmp_path, capsys):
    file = tmp_path / "ranges.json"
    command = ["calibrate", str(EMOJI), "--half", str(emoji_fp16), "--steps", "2"]
    assert main([*command, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert set(report) == set(Bundle.open(EMOJI).components)
    assert report.pop("vae_decoder_tiny")["beyond_float16"] == []
    for entry in report.values():
        assert len(entry["largest"]) > 50
        assert entry["beyond_float16"] == []
        # A float16 number is within 2^-11 of what it stands for, and half as far on average; some
        # dozens of roundings follow one another. Measured: 2.3e-4 to 6.1e-4.
        assert all(2**-13 < error < 2e-3 for error in entry["relative_l2_of_half"])
    # The timestep itself, times frequencies up to 1, is the largest number in there.
    table = step_table(Bundle.open(EMOJI).scheduler, 2)
    assert max(report["unet"]["largest"].values()) == pytest.approx(max(table.timesteps))
    assert "unet: " in capsys.readouterr().out


def test_magnitudes_are_those_of_the_tensors():
    """Against the same graph with a tensor as its output, run without any watching."""
    path = EMOJI / "vae_decoder" / "model.onnx"
    model = onnx.load(path)
    graph = model.graph
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
    weight = next(w for w in graph.initializer if w.name.endswith("conv_in.weight"))
    (widened,) = [n.output[0] for n in graph.node if n.input[0] == weight.name]
    assert engine.largest[widened] == np.abs(numpy_helper.to_array(weight)).max()


@pytest.fixture(scope="module")
def emoji_fp16(tmp_path_factory):
    """The built-in bundle as ``bksdm export --dtype float16`` has it: its weights are float16."""
    folder = tmp_path_factory.mktemp("bundles") / "half"
    # The tiny decoder has constants in float32 that an export in float16 has not.
    others = shutil.ignore_patterns("vae", "train", "classifier", "vae_decoder_tiny")
    shutil.copytree(EMOJI, folder, ignore=others)
    for component in Bundle.open(folder).components:
        path = folder / component / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        graph = model.graph
        for node in graph.node:
            # All of them widen weights.
            if node.op_type == "Cast":
                assert node.attribute[0].i == TensorProto.FLOAT
                node.attribute[0].i = TensorProto.FLOAT16
            if node.op_type == "Mul" and component == "text_encoder":
                node.input[:] = [f"{n}:half" if n == "val_69" else n for n in node.input]
        if component == "text_encoder":
            scale = next(w for w in graph.initializer if w.name == "val_69")
            half = numpy_helper.to_array(scale).astype(np.float16)
            graph.initializer.append(numpy_helper.from_array(half, "val_69:half"))
        for value in (*graph.input, *graph.output):
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.FLOAT and value.name != "timestep":
                kind.elem_type = TensorProto.FLOAT16
        if component == "unet":
            # Sines of the timestep stay in float32.
            at = next(i for i, n in enumerate(graph.node) if "cat_1" in n.input)
            graph.node[at].input[0] = "cat_1:half"
            cast = onnx.helper.make_node("Cast", ["cat_1"], ["cat_1:half"], to=TensorProto.FLOAT16)
            graph.node.insert(at, cast)
        del graph.value_info[:]
        onnx.save(model, path)
    return folder


@pytest.fixture
def loud_bundles(emoji_fp16, tmp_path):
    """The last convolution's input is 10⁵ times what it was, and its weight a 10⁵th."""
    folders = []
    for source in (EMOJI, emoji_fp16):
        folder = tmp_path / source.name
        unneeded = shutil.ignore_patterns("vae", "train", "classifier", "engines")
        shutil.copytree(source, folder, ignore=unneeded)
        path = folder / "vae_decoder" / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        last = [n for n in model.graph.node if n.op_type == "Conv"][-1]
        for name, factor in (("up", 1000), ("more", 1000), ("down", 1e-3), ("again", 1e-3)):
            value = np.array(factor, np.float16 if source is emoji_fp16 else np.float32)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        at = list(model.graph.node).index(last)
        source_name = last.input[0]
        for name in ("up", "more", "down", "again"):
            node = onnx.helper.make_node("Mul", [source_name, name], [f"loud:{name}"])
            model.graph.node.insert(at, node)
            at, source_name = at + 1, f"loud:{name}"
        model.graph.node[at].input[0] = source_name
        onnx.save(model, path)
        folders.append(folder)
    return folders


def test_an_overflow_is_named_and_fails(loud_bundles, tmp_path, capsys):
    single, half = loud_bundles
    file = tmp_path / "ranges.json"
    command = [
        "calibrate",
        str(single),
        "--half",
        str(half),
        "--steps",
        "1",
        "--size",
        "32x32",
        "--json",
        str(file),
    ]
    assert main(command) == 1
    entry = json.loads(file.read_text())["vae_decoder"]
    assert "loud:more" in entry["beyond_float16"]
    assert all(entry["largest"][name] > LARGEST for name in entry["beyond_float16"])
    assert entry["relative_l2_of_half"] == [float("inf")] * 2
    assert "loud:more  overflows" in capsys.readouterr().out


def test_bundles_of_the_wrong_type_are_refused(emoji_fp16, tiny_bundle, capsys):
    assert main(["calibrate", str(emoji_fp16)]) == 2
    assert "needs a float32 graph" in capsys.readouterr().err
    command = ["calibrate", str(tiny_bundle), "--half", str(tiny_bundle), "--steps", "1"]
    assert main(command) == 2
    assert "not a float16 graph" in capsys.readouterr().err


def test_damaged_weights_and_another_networks_graph_are_named(tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(EMOJI, bundle)
    decoder, encoder = (bundle / name / "model.onnx" for name in ("vae_decoder", "vae_encoder"))
    shutil.copy(encoder, decoder)
    assert main(["calibrate", str(bundle), "--steps", "1"]) == 2
    assert "no vae_decoder, for it has no input latent_sample" in capsys.readouterr().err
    (weights,) = (bundle / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100_000])
    assert main(["calibrate", str(bundle), "--steps", "1"]) == 2
    assert "unet: the file of weights is too short" in capsys.readouterr().err.replace("\\", "/")
