"""``bksdm verify`` accepts a bundle of its checkpoint and refuses one of another."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file, save_file

from bksdm.cli import main
from bksdm.engines.errors import BksdmError, BundleError, ExportError
from bksdm.export.dummy import create_dummy
from bksdm.export.reference import open_pipeline
from bksdm.export.verify_all import TASKS, Cell, measure, passed, render
from bksdm.runtime import noise
from bksdm.runtime.pipeline import TextToImage

# The installed package leaves the checkpoint's VAE out.
EMOJI = Path(__file__).parents[2] / "models" / "emoji"


def test_a_bundle_passes_against_its_checkpoint(nano_bundle, nano_checkpoint, capsys):
    assert main(["verify", str(nano_bundle), "--against", str(nano_checkpoint)]) == 0
    assert "within 1" in capsys.readouterr().out


def test_a_bundle_fails_against_other_weights(nano_bundle, tmp_path, capsys):
    other = tmp_path / "other"
    create_dummy("nano", other, seed=1)
    assert main(["verify", str(nano_bundle), "--against", str(other)]) == 1
    assert "missed" in capsys.readouterr().out


def test_the_built_in_model_passes_against_itself(capsys):
    """Its weights are float16, shared with its checkpoint; it computes in float32."""
    assert main(["verify", str(EMOJI), "--against", str(EMOJI)]) == 0
    table = capsys.readouterr().out
    assert table.count("float32") == 5
    assert "missed" not in table


@pytest.mark.parametrize(
    ("file", "missing"),
    [
        ("text_encoder/model.safetensors", r"\S*final_layer_norm\.bias"),
        ("unet/diffusion_pytorch_model.safetensors", r"conv_in\.bias"),
        ("vae/diffusion_pytorch_model.safetensors", r"encoder\.conv_in\.bias"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_no_truth(nano_bundle, checkpoint, capsys, file, missing):
    """The libraries put random numbers in the place of what is missing."""
    path = checkpoint / file
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors = {name: t for name, t in tensors.items() if not re.fullmatch(missing, name)}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})
    assert main(["verify", str(nano_bundle), "--against", str(checkpoint)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert re.search(
        rf"{path}: not the \d+ tensors of this network: 1 missing \({missing}\)$", line
    )
    # The reference by itself, too, and no bundle is a checkpoint.
    with pytest.raises(ExportError, match="1 missing"):
        open_pipeline(checkpoint)
    with pytest.raises(BundleError, match="run `bksdm export` on it first"):
        TextToImage.load(checkpoint)


def test_a_graph_without_one_of_its_tensors_is_not_opened(nano_bundle, tmp_path):
    ignored = shutil.ignore_patterns("engines")
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle", ignore=ignored)
    path = bundle / "text_encoder" / "model.onnx"
    graph = onnx.load(path)
    (weight,) = (w for w in graph.graph.initializer if w.name.endswith("final_layer_norm.bias"))
    graph.graph.initializer.remove(weight)
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(BksdmError, match="text_encoder"):
        TextToImage.load(bundle)


def test_another_architecture_is_refused(nano_bundle, nano_checkpoint, tmp_path, capsys):
    whole = tmp_path / "whole"
    shutil.copytree(nano_bundle, whole)
    path = whole / "unet" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    (timestep,) = (i for i in graph.graph.input if i.name == "timestep")
    timestep.type.tensor_type.elem_type = onnx.TensorProto.INT64
    path.write_bytes(graph.SerializeToString())
    for bundle, source, named in (
        (nano_bundle, EMOJI, rf"nano knows \d+ tokens, {EMOJI} \d+; give --against the"),
        (whole, nano_checkpoint, r"takes timestep int64 \[batch\], and .* timestep float32 \[1\]"),
        (nano_bundle, nano_bundle, "is a bundle, without weights for torch; give --against the"),
    ):
        assert main(["verify", str(bundle), "--against", str(source)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(named, line)


def test_a_bundle_of_fixed_length_passes_with_any_sampler(
    nano_bundle, nano_checkpoint, tmp_path, capsys
):
    """As versions of ours exported it before prompts could be long."""
    folder = tmp_path / "fixed"
    shutil.copytree(nano_bundle, folder)
    path = folder / "unet" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    (states,) = (i for i in graph.graph.input if i.name == "encoder_hidden_states")
    states.type.tensor_type.shape.dim[1].dim_value = 77
    path.write_bytes(graph.SerializeToString())
    command = ["verify", str(folder), "--against", str(nano_checkpoint), "--sampler"]
    assert main([*command, "dpm++2m-karras", "--steps", "3"]) == 0
    assert "picture, --steps 3: largest difference" in capsys.readouterr().out
    assert main([*command, "dpm"]) == 2
    assert "unknown sampler 'dpm'" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_every_cell_is_measured(nano_checkpoint, nano_bundle):
    models = {"nano": (nano_checkpoint, nano_bundle)}
    cells = list(measure(models, ["pndm", "euler-a"], [2, 3]))
    assert [c.task for c in cells if c.sampler == "pndm"] == [t for t in TASKS for _ in range(2)]
    assert all(c.largest is not None for c in cells)
    assert passed(cells)
    (row,) = re.findall(r"\| pndm \|(.*)\|", render(cells))
    expected = [c.largest for c in cells if c.sampler == "pndm"]
    assert [int(cell) for cell in row.split("|")] == expected
    # LCM has no more steps than it was distilled for.
    beyond = list(measure(models, ["lcm"], [60]))
    assert [c.largest for c in beyond] == [None] * len(TASKS)
    assert passed(beyond)
    assert "| lcm | – | – | – |\n\n- lcm, 60 steps: num_inference_steps" in render(beyond)


def test_a_picture_that_differs_does_not_pass():
    assert not passed([Cell(model="nano", sampler="pndm", task=TASKS[0], steps=2, largest=2)])
    assert not passed(
        [Cell(model="nano", sampler="euler-a", task=TASKS[0], steps=2, largest=4, same_noise=2)]
    )
    cell = Cell(model="nano", sampler="euler-a", task=TASKS[0], steps=2, largest=4, same_noise=1)
    assert passed([cell])
    others = [
        Cell(model="nano", sampler="euler-a", task=task, steps=2, largest=0) for task in TASKS[1:]
    ]
    assert "| euler-a | 4 (1) | 0 | 0 |" in render([cell, *others])


@pytest.mark.filterwarnings("ignore")
def test_a_picture_above_1_is_drawn_again_from_torchs_noise(
    nano_checkpoint, nano_bundle, monkeypatch
):
    """Noise that is far from torch's makes other pictures, and only torch's own makes the same."""
    draw = noise.BatchNoise.draw
    monkeypatch.setattr(
        noise.BatchNoise, "draw", lambda self, *arguments: draw(self, *arguments) + 0.1
    )
    (cell, *_) = measure({"nano": (nano_checkpoint, nano_bundle)}, ["euler-a"], [2])
    assert cell.largest > 1
    assert cell.same_noise <= 1


def test_all_needs_the_checkpoint_of_the_built_in_model(tmp_path, monkeypatch, capsys):
    """Which the installed package leaves out."""
    monkeypatch.setattr("bksdm.models.EMOJI", tmp_path)
    assert main(["verify", "--all"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'vae'}: missing; verify --all runs from the source tree" in line


@pytest.mark.parametrize("arguments", [["--all", "x"], [], ["x"], ["--against", "y"]])
def test_verify_says_what_it_takes(arguments, capsys):
    assert main(["verify", *arguments]) == 2
    assert "BUNDLE and --against" in capsys.readouterr().err
