"""The runtime makes a picture where torch, diffusers and transformers cannot be imported."""

from __future__ import annotations

import subprocess
import sys

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
