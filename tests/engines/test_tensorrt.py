"""Plans built for real by tensorrt-rtx, which needs no GPU for it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.cli import main
from bksdm.engines import tensorrt as backend
from bksdm.engines.errors import EngineError
from bksdm.engines.profile import Profile
from bksdm.engines.tensorrt import load_module
from bksdm.optimize.plan import build
from bksdm.storage.files import PARTIAL
from bksdm.storage.plans import read_plan, read_record

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
PROFILE = Profile.parse("1", "64x64")


def graph(path, weight, *, cast=False):
    """Sample · w, in the type of the weight, or in float32 between two casts."""
    half = TensorProto.FLOAT16
    inner = "x32" if cast else "sample"
    nodes = [helper.make_node("MatMul", [inner, "w.weight"], ["y32" if cast else "y"])]
    if cast:
        nodes.insert(0, helper.make_node("Cast", ["sample"], ["x32"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Cast", ["y32"], ["y"], to=half))
    shape = ["batch", 4, "height", 64]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "g",
        [info("sample", half, shape)],
        [info("y", half, shape)],
        [numpy_helper.from_array(weight, "w.weight")],
    )
    onnx.save(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path
    )


def test_a_half_precision_graph_is_built(tmp_path):
    graph(tmp_path / "model.onnx", np.eye(64, dtype=np.float16))
    seen = []
    plan = build(
        tmp_path / "model.onnx",
        "unet",
        "tensorrt-rtx",
        ["sm89", "sm120"],
        PROFILE,
        lambda phase, part: seen.append((phase, part)),
    )
    assert len(plan.content) > 1000
    assert plan.dtypes.get("float", 0) == 0
    assert seen
    assert all(phase and 0 <= part <= 1 for phase, part in seen)


def test_hidden_single_precision_is_refused(tmp_path):
    graph(tmp_path / "model.onnx", np.eye(64, dtype=np.float32), cast=True)
    with pytest.raises(EngineError, match="tensors are float32 in a float16 graph, first"):
        build(tmp_path / "model.onnx", "unet", "tensorrt-rtx", ["sm89"], PROFILE)


def test_targets_are_checked(tmp_path):
    graph(tmp_path / "model.onnx", np.eye(64, dtype=np.float16))
    for targets in ([], ["sm42"], ["CURRENT"]):
        with pytest.raises(EngineError, match="known to tensorrt-rtx: sm75"):
            build(tmp_path / "model.onnx", "unet", "tensorrt-rtx", targets, PROFILE)


def test_a_graph_it_cannot_read_is_an_error(tmp_path):
    graph(tmp_path / "model.onnx", np.eye(64, dtype=np.float16))
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.node[0].op_type = "Frobnicate"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="unet: TensorRT cannot read the graph"):
        build(tmp_path / "model.onnx", "unet", "tensorrt-rtx", ["sm89"], PROFILE)


def test_an_absent_flavour_says_what_to_do(monkeypatch):
    monkeypatch.setitem(backend.MODULES, "tensorrt", "no_such_tensorrt")
    with pytest.raises(EngineError, match=r"pip install 'bksdm-runtime\[tensorrt\]'.*tensorrt-rtx"):
        load_module("tensorrt")
    with pytest.raises(EngineError, match="known: tensorrt, tensorrt-rtx"):
        load_module("abacus")


@pytest.fixture(scope="module")
def built(nano_bundle_fp16, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "nano"
    shutil.copytree(nano_bundle_fp16, folder, ignore=shutil.ignore_patterns("engines"))
    command = ["build", str(folder), "--engine", "tensorrt-rtx", "--target", "sm89"]
    assert main([*command, "--batch", "1:1:2"]) == 0
    return folder


def test_every_network_of_a_bundle_is_built_in_half_precision(built, capsys):
    (record,) = (built / "engines").glob("*/engine.json")
    plans = json.loads(record.read_text())["plans"]
    kernels = plans.pop("kernels-sm89")
    assert read_plan(record.parent, "kernels-sm89", {"kernels-sm89": kernels}).startswith(
        b"\x7fELF"
    )
    assert set(plans) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    # The path of the timestep, and four scalars of the text encoder.
    assert {name: plan["tensors"].get("float", 0) for name, plan in plans.items()} == {
        "text_encoder": 4,
        "unet": 9,
        "vae_decoder": 0,
        "vae_encoder": 0,
    }
    assert main(["build", str(built), "--list"]) == 0
    (name,) = capsys.readouterr().out.split()
    assert re.fullmatch(r"tensorrt-rtx-[\d.]+-sm89-float16-b1\.1\.2-64x64", name)
    assert main(["info", str(built), "--json"]) == 0
    assert name in json.loads(capsys.readouterr().out)["engines"]


def test_a_full_disk_leaves_what_was_built(built, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}
    write = Path.write_bytes

    def full(path, content):
        if path.name == "unet.plan":
            write(path, content[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    command = ["build", str(built), "--target", "sm89", "--batch", "1:1:2"]
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("bksdm: error: cannot write")
    assert error.endswith("No space left on device")
    after = {path: path.read_bytes() for path in built.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.slow
def test_after_a_killed_build_the_next_succeeds(built, tmp_path):
    folder = tmp_path / "nano"
    shutil.copytree(built, folder)
    shutil.rmtree(folder / "engines")
    command = [sys.executable, "-m", "bksdm.cli", "build", str(folder), "--target", "sm89"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while not list(folder.glob(f"engines/{PARTIAL}*/text_encoder.plan")):
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.02)
        process.kill()
    assert list(folder.glob(f"engines/{PARTIAL}*"))
    assert main(["build", str(folder), "--list"]) == 0
    assert (
        main(
            ["generate", "a", "--model", str(folder), "--steps", "1", "-o", str(tmp_path / "a.png")]
        )
        == 0
    )
    assert main(["build", str(folder), "--target", "sm89"]) == 0
    assert not list(folder.glob(f"engines/{PARTIAL}*"))
    (record,) = folder.glob("engines/*/engine.json")
    plans = read_record(record.parent)["plans"]
    assert all(read_plan(record.parent, name, plans) for name in plans)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--target", "sm42"], "known to tensorrt-rtx"),
        (["--target", "sm89", "--size", "60x64"], "multiple of 8"),
        (["--target", "sm89", "--batch", "0"], "--batch"),
        (["--target", "sm89", "--device", "0"], "--device is for tensorrt;"),
        (["--engine", "abacus"], "unknown engine"),
        (["--engine", "auto"], "name one to build for"),
        (["--remove", "nothing"], "is not built"),
    ],
)
def test_bad_arguments_leave_nothing(nano_bundle_fp16, capsys, arguments, named):
    before = sorted(nano_bundle_fp16.rglob("*.plan"))
    assert main(["build", str(nano_bundle_fp16), *arguments]) == 2
    assert named in capsys.readouterr().err
    assert sorted(nano_bundle_fp16.rglob("*.plan")) == before
    assert not list(nano_bundle_fp16.rglob(".partial*"))


def test_a_single_precision_bundle_is_refused(nano_bundle, capsys):
    assert main(["build", str(nano_bundle), "--target", "sm89"]) == 2
    assert "export it with --dtype float16" in capsys.readouterr().err
