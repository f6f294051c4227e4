"""The runtime alone: without torch, diffusers and transformers, and beside other threads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import bksdm.engines.errors
import bksdm.runtime.images

PROGRAM = """
import sys

BLOCKED = ("torch", "diffusers", "transformers", "optimum")


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Block())
from bksdm.cli import main

code = main(["generate", "a red apple", "--model", sys.argv[1], "-o", sys.argv[2],
             "--steps", "2", "--seed", "0"])
assert not [m for m in sys.modules if m.split(".")[0] in BLOCKED]
sys.exit(code)
"""


def test_a_picture_without_torch(nano_bundle, tmp_path):
    output = tmp_path / "apple.png"
    command = [sys.executable, "-c", PROGRAM, str(nano_bundle), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 1000
    assert done.stdout.strip() == str(output)


# State that a process has once: who changes it, even for a moment, changes it for other threads.
GLOBAL = {
    "catch_warnings", "simplefilter", "filterwarnings", "showwarning", "seterr", "setbufsize",
    "set_printoptions", "chdir", "fchdir", "umask", "putenv", "setlocale", "setrecursionlimit",
    "setswitchinterval", "setdefaulttimeout", "signal", "redirect_stdout", "redirect_stderr",
    "set_seed", "set_default_logger_severity", "MAX_IMAGE_PIXELS", "LOAD_TRUNCATED_IMAGES",
    "environ", "stdout", "stderr", "getcontext", "setcontext",
}  # fmt: skip


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
        "np.random.seed(0)", "os.environ['X'] = '1'", "Image.MAX_IMAGE_PIXELS = None",
        "with warnings.catch_warnings(): pass", "sys.stdout = x", "random.random()",
    ]  # fmt: skip
    assert all(list(changes(ast.parse(example))) for example in examples)
