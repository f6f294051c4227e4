"""The runtime alone: without torch, diffusers, transformers or onnx, beside other threads."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bksdm.engines.errors
import bksdm.runtime.images
from bksdm.cli import main

PROGRAM = """
import sys

BLOCKED = ("torch", "diffusers", "transformers", "optimum", "onnx")


for name in BLOCKED:
    sys.modules[name] = None
from bksdm.cli import main

code = main(sys.argv[1:])
assert not [m for m in sys.modules if m.split(".")[0] in BLOCKED and m not in BLOCKED]
sys.exit(code)
"""
OPTIONS = ["--steps", "4", "--seed", "0"]


def draw(bundle, output, *options):
    """Draw a picture in a process that can import none of what an export takes."""
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "generate",
        "a red apple",
        "--model",
        str(bundle),
        "-o",
        str(output),
        *OPTIONS,
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_a_prepared_bundle_needs_numpy_and_its_engine(nano_bundle, tmp_path, engine):
    """To the last bit what is drawn where everything is installed."""
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle")
    assert main(["build", str(bundle), "--engine", engine]) == 0
    output, expected = tmp_path / "apple.png", tmp_path / "expected.png"
    for options in [["--engine", engine], ["--engine", engine, "--fast", "2", "--clip-skip", "1"]]:
        done = draw(bundle, output, *options)
        assert done.returncode == 0
        assert "warning" not in done.stderr
        assert done.stdout.strip() == str(output)
        assert (
            main(
                [
                    "generate",
                    "a red apple",
                    "--model",
                    str(bundle),
                    "-o",
                    str(expected),
                    *OPTIONS,
                    *options,
                ]
            )
            == 0
        )
        np.testing.assert_array_equal(pixels(output), pixels(expected))


def test_a_bundle_that_was_not_prepared_runs_as_exported(nano_bundle, tmp_path):
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle")
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    output, expected = tmp_path / "apple.png", tmp_path / "expected.png"
    done = draw(bundle, output)
    assert done.returncode == 0
    assert done.stderr.count("pip install 'bksdm-runtime[optimize]'") == 1
    assert (
        main(
            ["generate", "a red apple", "--model", str(nano_bundle), "-o", str(expected), *OPTIONS]
        )
        == 0
    )
    assert abs(pixels(output) - pixels(expected)).max() <= 1
    for options, named in [
        (["--fast", "1"], "package onnx"),
        (["--clip-skip", "1"], "package onnx"),
        (["--engine", "openvino"], "package onnx"),
    ]:
        done = draw(bundle, tmp_path / "none.png", *options)
        assert done.returncode == 2
        assert named in done.stderr
        assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["build", "{bundle}", "--engine", "onnxruntime"], "'bksdm-runtime[optimize]'"),
        (["build", "{bundle}", "--tune"], "'bksdm-runtime[optimize]'"),
        (["calibrate", "{bundle}"], "'bksdm-runtime[optimize]'"),
        (["verify", "{bundle}", "--against", "{bundle}"], "'bksdm-runtime[export]'"),
        (["export", "x", "-o", "y"], "'bksdm-runtime[export]'"),
        (["info", "{bundle}"], None),
        (["build", "{bundle}", "--list"], None),
        (["cache"], None),
        (["verify", "--integrity", "{bundle}"], None),
    ],
)
def test_commands_do_without_onnx_or_name_what_brings_it(nano_bundle, command, named):
    words = [word.format(bundle=nano_bundle) for word in command]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=False
    )
    if named is None:
        assert done.returncode == 0, done.stderr
    else:
        assert named in done.stderr
        assert "fault of the program" not in done.stderr


# State that a process has once: who changes it, even for a moment, changes it for other threads.
GLOBAL = {
    "catch_warnings",
    "simplefilter",
    "filterwarnings",
    "showwarning",
    "seterr",
    "setbufsize",
    "set_printoptions",
    "chdir",
    "fchdir",
    "umask",
    "putenv",
    "setlocale",
    "setrecursionlimit",
    "setswitchinterval",
    "setdefaulttimeout",
    "signal",
    "redirect_stdout",
    "redirect_stderr",
    "set_seed",
    "set_default_logger_severity",
    "MAX_IMAGE_PIXELS",
    "LOAD_TRUNCATED_IMAGES",
    "environ",
    "stdout",
    "stderr",
    "getcontext",
    "setcontext",
}


def changes(tree):
    """What a module calls or assigns of it, and numpy's shared random generator."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        targets = [node.func] if isinstance(node, ast.Call) else getattr(node, "targets", [])
        for target in targets:
            while isinstance(target, ast.Subscript):
                target = target.value
            name = getattr(target, "attr", getattr(target, "id", ""))
            text = ast.unparse(target)
            shared = re.fullmatch(r"(np\.)?random\.[a-z_]+", text) and name != "default_rng"
            if name in GLOBAL or shared:
                yield text


def test_nothing_changes_what_all_threads_share():
    found = {}
    for module in (bksdm.runtime.images, bksdm.engines.errors):
        for path in Path(module.__file__).parent.rglob("*.py"):
            if names := list(changes(ast.parse(path.read_text(encoding="utf-8")))):
                found[path.name] = names
    assert found == {}
    examples = [
        "np.random.seed(0)",
        "os.environ['X'] = '1'",
        "Image.MAX_IMAGE_PIXELS = None",
        "with warnings.catch_warnings(): pass",
        "sys.stdout = x",
        "random.random()",
    ]
    assert all(list(changes(ast.parse(example))) for example in examples)
