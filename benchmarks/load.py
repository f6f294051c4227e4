"""Time the loading of a model in a process of its own.

python -m bksdm.benchmarks.load BUNDLE ENGINE THREADS CACHE
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bksdm.engines.errors import EngineError
from bksdm.storage.plans import TUNED

ROUNDS = 3


def measure_loads(bundle: Path, engine: str, threads: int | None) -> dict[str, list[float]]:
    """Return seconds of loading, each in a new process, imports included.

    ``cold`` is the first start on a machine, which optimises the graphs, tuned where the bundle
    is; ``warm`` are starts that find them stored. Files may be in the system's page cache in both.

    Raises
    ------
    EngineError
        The model cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as cache:
        for folder in (bundle / "engines").glob(f"{TUNED}*"):
            shutil.copytree(folder, Path(cache) / folder.name)
        command = [
            sys.executable,
            "-m",
            "bksdm.benchmarks.load",
            str(bundle),
            engine,
            str(threads or 0),
            cache,
        ]
        taken = []
        for _ in range(1 + ROUNDS):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines() or ["it said nothing"]
                raise EngineError(f"{bundle}: cannot be loaded ({said[-1]})")
            taken.append(float(json.loads(done.stdout)))
    return {"cold": taken[:1], "warm": taken[1:]}


def _main(bundle: str, engine: str, threads: str, cache: str) -> None:
    start = time.perf_counter()
    from bksdm.runtime.pipeline import TextToImage

    TextToImage.load(bundle, engine, int(threads) or None, engine_cache=Path(cache))
    print(json.dumps(time.perf_counter() - start))


if __name__ == "__main__":
    _main(*sys.argv[1:])
