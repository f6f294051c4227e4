"""A bundle of a handful of nodes: what the command line does around a picture takes no time."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.cli import main
from bksdm.models import EMOJI

WIDTH = 8
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def save(folder, inputs, output, nodes, constants):
    """Write a graph; inputs and the output are ``(name, type, shape)``."""
    graph = helper.make_graph(
        nodes,
        folder.name,
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*output)],
        [
            numpy_helper.from_array(np.array(value, kind), name)
            for name, (kind, value) in constants.items()
        ],
    )
    folder.mkdir()
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "model.onnx")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """Pictures of 64×64 that depend on the seed, the prompt, the steps and an image."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    folder.mkdir()
    node, size = helper.make_node, ["batch", 4, "height", "width"]
    save(
        folder / "text_encoder",
        [("input_ids", INT, ["batch", "tokens"])],
        ("last_hidden_state", FLOAT, ["batch", "tokens", WIDTH]),
        [
            node("Cast", ["input_ids"], ["ids"], to=FLOAT),
            node("Unsqueeze", ["ids", "last"], ["one"]),
            node("Mul", ["one", "row"], ["last_hidden_state"]),
        ],
        {"last": (np.int64, [2]), "row": (np.float32, np.full(WIDTH, 1e-3))},
    )
    save(
        folder / "unet",
        [
            ("sample", FLOAT, size),
            ("timestep", FLOAT, ["batch"]),
            ("encoder_hidden_states", FLOAT, ["batch", "tokens", WIDTH]),
        ],
        ("out_sample", FLOAT, size),
        [
            node("ReduceMean", ["encoder_hidden_states", "axes"], ["mean"]),
            node("Reshape", ["mean", "shape"], ["told"]),
            node("Reshape", ["timestep", "shape"], ["t"]),
            node("Mul", ["t", "little"], ["scaled"]),
            node("Add", ["told", "scaled"], ["both"]),
            node("Mul", ["sample", "both"], ["out_sample"]),
        ],
        {
            "axes": (np.int64, [1, 2]),
            "shape": (np.int64, [-1, 1, 1, 1]),
            "little": (np.float32, 1e-3),
        },
    )
    save(
        folder / "vae_decoder",
        [("latent_sample", FLOAT, size)],
        ("sample", FLOAT, ["batch", 3, "tall", "wide"]),
        [
            node("Slice", ["latent_sample", "zero", "three", "one"], ["colours"]),
            node("Resize", ["colours", "", "scales"], ["sample"], mode="nearest"),
        ],
        {
            "zero": (np.int64, [0]),
            "three": (np.int64, [3]),
            "one": (np.int64, [1]),
            "scales": (np.float32, [1, 1, 8, 8]),
        },
    )
    save(
        folder / "vae_encoder",
        [("sample", FLOAT, ["batch", 3, "tall", "wide"])],
        ("latent_parameters", FLOAT, ["batch", 8, "height", "width"]),
        [
            node("AveragePool", ["sample"], ["small"], kernel_shape=[8, 8], strides=[8, 8]),
            node("Concat", ["small", "small", "small"], ["nine"], axis=1),
            node("Slice", ["nine", "zero", "eight", "one"], ["latent_parameters"]),
        ],
        {"zero": (np.int64, [0]), "eight": (np.int64, [8]), "one": (np.int64, [1])},
    )
    for name in ("tokenizer", "scheduler", "model_index.json"):
        copy = shutil.copytree if (EMOJI / name).is_dir() else shutil.copyfile
        copy(EMOJI / name, folder / name)
    widths = [8, 8, 8, 8]
    for name, content in {
        "text_encoder/config.json": {"num_hidden_layers": 1},
        "unet/config.json": {"in_channels": 4, "sample_size": 8, "cross_attention_dim": WIDTH},
        "vae_decoder/config.json": {"latent_channels": 4, "block_out_channels": widths},
        "vae_decoder/preview.json": {
            "weights": np.eye(3, 4).tolist(),
            "bias": [0, 0, 0],
            "rms_error": 1,
        },
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def tiny_copy(tiny_bundle, tmp_path):
    """A bundle to damage."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    return folder


@pytest.fixture
def emoji_copy(tmp_path):
    """The built-in bundle to damage."""
    folder = tmp_path / "emoji"
    unneeded = shutil.ignore_patterns("vae", "train", "classifier", "engines", "__pycache__")
    shutil.copytree(EMOJI, folder, ignore=unneeded)
    return folder


@pytest.fixture
def run(capsys):
    """Run a command; return its exit code, and what it wrote to standard output and error."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        # A progress bar draws over itself.
        return code, out, "\n".join(line.rsplit("\r", 1)[-1].strip() for line in err.split("\n"))

    return call


@pytest.fixture
def usual_signals():
    """Signals as in a terminal: a test run in the background may have inherited that it ignores."""
    usual = {
        "SIGINT": signal.default_int_handler,
        "SIGTERM": signal.SIG_DFL,
        "SIGHUP": signal.SIG_DFL,
    }
    before = {
        number: signal.signal(number, usual[name])
        for name in usual
        if (number := getattr(signal, name, None)) is not None
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def draw(run, tiny_bundle):
    """Run ``bksdm generate`` on the tiny bundle."""
    return lambda *arguments: run(
        "generate", "a dog", "--model", tiny_bundle, "--steps", 1, "--seed", 0, *arguments
    )
