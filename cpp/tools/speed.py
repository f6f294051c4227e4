"""Time of a picture in C++ beside Python's, on one engine, in turns; and of a start.

    python cpp/tools/speed.py build/libbksdm.so BUNDLE [ROUNDS]

The bundle has the table default:25 and graphs of `bksdm build --engine openvino --save`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from bksdm import TextToImage
from tests.cpp.library import Library

STEPS = 25
START = """
import sys, time
sys.path.append({root!r})
import ctypes
began = time.perf_counter()
if {cpp}:
    from tests.cpp.library import Library
    model = Library({library!r}).open({bundle!r}, threads=1)
else:
    from bksdm import TextToImage
    model = TextToImage.load({bundle!r}, engine="openvino", threads=1)
opened = time.perf_counter()
status = open("/proc/self/status").read()
print(opened - began, int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def main(library: str, bundle: str, rounds: int) -> None:
    """Print medians."""
    cpp = Library(library).open(bundle, threads=1)
    python = TextToImage.load(bundle, engine="openvino", threads=1)
    seconds: dict[str, list[float]] = {"C++": [], "Python": []}
    for turn in range(rounds + 1):
        for name, draw in (
            ("C++", lambda seed: cpp.generate("a red apple", (seed,), steps=STEPS)),
            (
                "Python",
                lambda seed: python("a red apple", num_inference_steps=STEPS, seed=seed),
            ),
        ):
            began = time.perf_counter()
            draw(turn)
            if turn:  # the first compiles the networks
                seconds[name].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(seconds["C++"], seconds["Python"], strict=True)]
    for name, found in seconds.items():
        print(f"{name:<8}{statistics.median(found):8.4f} s a picture")
    print(f"ratio   {statistics.median(ratios):8.4f}, median of {rounds} pairs")
    for name in seconds:
        found = [start(name == "C++", library, bundle) for _ in range(5)]
        opened, memory = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:<8}{opened:8.4f} s to open a model, then {memory:.0f} MB at most")


def start(cpp: bool, library: str, bundle: str) -> list[float]:
    """Return the seconds until a model is open, and the peak of memory in MB."""
    root = str(Path(__file__).parents[2])
    script = START.format(root=root, cpp=cpp, library=library, bundle=bundle)
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return list(map(float, done.stdout.split()))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 20)
