"""``bksdm doctor`` in environments with one, both and none of ONNX Runtime's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import bksdm
from bksdm.cli import diagnosis
from bksdm.engines.errors import EngineError
from bksdm.engines.nvidia_driver import NO_DRIVER, DriverRecord, GpuRecord, load_driver
from tests.engines.onnxruntime_packages import CPU, GPU, OLD, install, uninstall

# Without the site's packages but for those that are linked into a folder.
PROGRAM = "import sys; sys.path[:0] = sys.argv[1:3]; from bksdm.cli import main; "
HIDDEN = ("onnxruntime", "openvino", "tensorrt", "__editable__")


@pytest.fixture
def site(tmp_path):
    """A folder of packages: those of this environment without any that brings an engine."""
    folder = tmp_path / "site"
    folder.mkdir()
    for place in filter(os.path.isdir, sys.path):
        if Path(place).name in ("site-packages", "dist-packages"):
            for entry in os.scandir(place):
                link = folder / entry.name
                if not entry.name.startswith(HIDDEN) and not link.is_symlink():
                    link.symlink_to(entry.path)
    return folder


@pytest.fixture
def bksdm_in(site, tmp_path):
    """Run a command in a process that sees those packages only."""
    # Alone: beside an installed one lie all other packages.
    program_folder = tmp_path / "program"
    program_folder.mkdir()
    (program_folder / "bksdm").symlink_to(Path(bksdm.__file__).parent)

    def call(*arguments):
        places = (str(site), str(program_folder))
        program = f"{PROGRAM}sys.exit(main(sys.argv[3:]))"
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, *places, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    return call


WITHOUT_CPU = "onnxruntime is not installed; run: pip install 'bksdm-runtime[cpu]'"
WITHOUT_GPU = "onnxruntime-cuda is not installed; run: pip install 'bksdm-runtime[gpu]'"
OF_CPU = "no CUDA provider here (installed: onnxruntime 1.32.0); run: pip uninstall -y onnxruntime"
ON_GPU = NO_DRIVER if load_driver() is None else "can be used, 1.31.1"
BOTH = "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1"
BROKEN = "files of onnxruntime-gpu 1.31.1 are missing"
TOO_OLD = "onnxruntime 1.25.0 is too old; run: pip install --upgrade 'bksdm-runtime[cpu]'"
ENVIRONMENTS = {
    # Installed in this order, then uninstalled; the exit code, and what is told of both engines.
    "none": ([], [], 1, WITHOUT_CPU, WITHOUT_GPU),
    "CPU": ([CPU], [], 0, "can be used, 1.32.0", OF_CPU),
    "GPU": ([GPU], [], 0, "can be used, 1.31.1", ON_GPU),
    "old": ([OLD], [], 1, TOO_OLD, TOO_OLD),
    "both": ([GPU, CPU], [], 0, f"note: {BOTH} are both installed", f"here (installed: {BOTH})"),
    "broken": ([CPU, GPU], [CPU], 1, BROKEN, BROKEN),
}


@pytest.mark.skipif(sys.platform != "linux", reason="a folder of links")
@pytest.mark.parametrize(
    ("installed", "gone", "code", "on_cpu", "on_cuda"), ENVIRONMENTS.values(), ids=ENVIRONMENTS
)
def test_each_environment_is_told(site, bksdm_in, installed, gone, code, on_cpu, on_cuda):
    for package in installed:
        install(site, package)
    for package in gone:
        uninstall(site, package)
    done = bksdm_in("doctor")
    assert done.returncode == code, done.stderr
    assert done.stderr == ""
    engines = done.stdout.partition("\nengines\n")[2]
    of_cpu, _, rest = engines.partition("  onnxruntime-cuda ")
    of_cuda, _, rest = rest.partition("  openvino ")
    assert on_cpu in of_cpu
    assert on_cuda in of_cuda
    assert "openvino is not installed; run: pip install 'bksdm-runtime[openvino]'" in rest
    assert "tensorrt is not installed; run: pip install 'bksdm-runtime[tensorrt]'" in rest


@pytest.mark.skipif(sys.platform != "linux", reason="a folder of links")
def test_a_broken_package_is_named_at_the_start(site, bksdm_in):
    install(site, CPU)
    install(site, GPU)
    uninstall(site, CPU)
    done = bksdm_in("generate", "a red apple", "--steps", "1", "-o", "x.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bksdm: error: files of onnxruntime-gpu 1.31.1 are missing")
    assert done.stderr.count("\n") == 1


def test_what_is_installed_here_is_told(run):
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["packages"]["torch"] == version("torch")
    assert found["engines"]["onnxruntime"] == {"version": version("onnxruntime"), "notes": []}
    assert found["processor"]["name"]
    assert found["cache"]["bytes"] >= 0
    code, out, _ = run("doctor")
    assert code == 0
    assert f"  torch              {version('torch')}\n" in out


def test_a_gpu_is_described_and_its_engines_can_be_used(run, monkeypatch):
    record = DriverRecord("580.65.06", "13.0", (GpuRecord("NVIDIA L4", "8.9", 23 * 10**9),))
    monkeypatch.setattr(diagnosis, "load_driver", object)
    monkeypatch.setattr(diagnosis, "describe_driver", lambda cuda, management: record)
    out = run("doctor")[1]
    assert "driver             580.65.06, for CUDA 13.0\n" in out
    assert "GPU 0              NVIDIA L4, compute capability 8.9, 23.0 GB\n" in out
    pytest.importorskip("tensorrt_rtx")
    assert f"tensorrt-rtx       can be used, {version('tensorrt-rtx-cu13')}\n" in out


def test_a_probe_that_fails_is_a_line_of_the_report(run, monkeypatch):
    def fail(*anything):
        raise OSError("the disk\nis gone")

    def refuse(*anything):
        raise EngineError("the NVIDIA driver shows no GPU (cuInit: CUDA_ERROR_NO_DEVICE)")

    monkeypatch.setattr(diagnosis, "load_driver", object)
    monkeypatch.setattr(diagnosis, "describe_driver", refuse)
    monkeypatch.setattr("bksdm.storage.processor.processor_name", fail)
    monkeypatch.setattr("bksdm.engines.registry.backends", fail)
    code, out, _ = run("doctor")
    assert code == 1
    assert out.count("OSError: the disk is gone\n") == 3
    assert "  the NVIDIA driver shows no GPU (cuInit: CUDA_ERROR_NO_DEVICE)\n" in out
