"""ONNX Runtime's packages, installed by pip over each other in an environment of their own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# What a build writes, and what is not of the package.
LEFT_OUT = ("build", "dist", "site", "*.egg-info", ".*", "__pycache__", "engines-*", "vae", "train")
CPU, GPU = "onnxruntime", "onnxruntime-gpu"
PINS = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


class Environment:
    """A virtual environment, and the package's source."""

    def __init__(self, folder):
        self.folder = folder
        self.source = folder / "source"
        shutil.copytree(ROOT, self.source, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        self.programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")

    def run(self, program, *arguments, code=0):
        """Run a program of the environment, and check its exit code."""
        done = subprocess.run(
            [self.programs / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
        )
        assert done.returncode == code, (arguments, done.stderr[-2000:])
        return done

    def pip(self, *arguments):
        """Run pip with the versions that tests run with."""
        pins = ("-c", str(self.source / "constraints.txt")) if arguments[0] == "install" else ()
        return self.run("pip", "--disable-pip-version-check", *arguments, *pins)

    def doctor(self, code=0):
        """Return what ``bksdm doctor`` finds of the engines."""
        return json.loads(self.run("bksdm", "doctor", "--json", code=code).stdout)["engines"]

    def draw(self, name):
        """Return a picture's pixels."""
        options = ("--steps", "2", "--seed", "7", "--engine-cache", f"of-{name}")
        done = self.run("bksdm", "generate", "a red apple", *options, "-o", f"{name}.png")
        assert "warning" not in done.stderr
        return np.asarray(Image.open(self.folder / f"{name}.png")).astype(int)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", folder / "w"]
    command += ["-c", ROOT / "constraints.txt", CPU, GPU]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip gets no {GPU} for this machine: {done.stderr.strip().splitlines()[-1]}")
    return Environment(folder)


@pytest.mark.slow
def test_each_mixture_is_named_and_mended(environment):
    environment.pip("install", f"{environment.source}[cpu]")
    assert environment.doctor()[CPU] == {"version": PINS[CPU], "notes": []}
    drawn = environment.draw("cpu")

    # The libraries of CUDA, two gigabytes, change nothing of this.
    environment.pip("install", "--no-deps", GPU)
    found = environment.doctor()
    (note,) = found[CPU]["notes"]
    assert f"both installed, but write the same folder, which holds the files of {GPU};" in note
    assert "no CUDA provider" not in found["onnxruntime-cuda"].get("problem", "")

    environment.pip("uninstall", "-y", CPU)
    problem = environment.doctor(code=1)[CPU]["problem"]
    assert problem.startswith(f"files of {GPU} {PINS[GPU]} are missing")
    failed = environment.run("bksdm", "generate", "a red apple", code=2)
    assert failed.stderr == f"bksdm: error: {problem}\n"
    _, _, repair = problem.partition("; run: ")
    environment.pip(*shlex.split(repair)[1:])
    assert environment.doctor()[CPU] == {"version": PINS[GPU], "notes": []}
    assert abs(environment.draw("gpu") - drawn).max() <= 1

    environment.pip("install", "--no-deps", CPU)
    found = environment.doctor()
    (note,) = found[CPU]["notes"]
    assert f"which holds the files of {CPU};" in note
    assert "no CUDA provider here" in found["onnxruntime-cuda"]["problem"]

    environment.pip("uninstall", "-y", CPU, GPU)
    found = environment.doctor(code=1)
    assert found[CPU]["problem"].endswith("run: pip install 'bksdm-runtime[cpu]'")
    assert found["onnxruntime-cuda"]["problem"].endswith("run: pip install 'bksdm-runtime[gpu]'")


@pytest.mark.slow
@pytest.mark.parametrize(("extras", "brings", "leaves"), [("cpu", CPU, GPU), ("gpu", GPU, CPU)])
def test_an_extra_brings_one_of_them(environment, extras, brings, leaves):
    report = environment.folder / "report.json"
    target = f"{environment.source}[{extras},openvino,tensorrt-rtx]"
    options = ("--dry-run", "--ignore-installed", "--quiet", "--report", str(report))
    environment.pip("install", *options, target)
    found = {entry["metadata"]["name"] for entry in json.loads(report.read_text())["install"]}
    assert brings in found
    assert leaves not in found
    assert ("nvidia-cudnn-cu13" in found) == (extras == "gpu")
    assert "nvidia-cublas" in found or extras == "cpu"
