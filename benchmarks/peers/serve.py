"""Answer JSON lines: what every peer's runner shares, with the standard library and numpy alone.

One request a line in, one answer a line out, ``{"error": …}`` where it failed:

- ``{"do": "convert", "source": FOLDER, "folder": FOLDER}``: seconds, bytes on disk, peak memory
- ``{"do": "load", "stage": NAME, "source": …, "folder": …, "threads": N, …}``: seconds, peak memory
- ``{"do": "run", "feeds": FILE.npz, "output": FILE.npy}``: seconds, peak memory, and what the peer
  itself said of the time of its parts

A stage is ``unet``, ``vae_decoder`` or ``picture``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[Any]]
Run = Callable[[Feeds], Any]
"""Arrays in, one array out; or that array and a mapping of seconds by part."""


def serve(convert: Callable[[str, str], object], load: Callable[..., Run]) -> None:
    """Answer until the input ends; what libraries print goes to stderr.

    Parameters
    ----------
    convert : callable
        ``convert(source, folder)`` writes what ``load`` reads.
    load : callable
        ``load(stage, source, folder, threads)`` returns what runs that stage.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    loaded: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            start = time.perf_counter()
            answer: dict[str, Any] = {}
            if do == "convert":
                convert(**request)
                answer["bytes"] = _bytes(Path(request["folder"]))
            elif do == "load":
                loaded = load(**request)
            else:
                assert loaded is not None, "run comes after load"
                feeds = dict(np.load(request["feeds"]))
                start = time.perf_counter()
                result = loaded(feeds)
            answer["seconds"] = time.perf_counter() - start
            if do == "run":
                array, parts = result if isinstance(result, tuple) else (result, {})
                np.save(request["output"], np.asarray(array, np.float32))
                answer["parts"] = parts
            answer["peak_bytes"] = _peak()
        except Exception as error:  # a peer's failure is a result, told to the harness
            reason = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {reason[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    status = Path("/proc/self/status")
    if not status.exists():
        return max(children, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    # On Linux the usage of a process starts from that of the one that started it; this does not.
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return max(children, int(fields["VmHWM"].split()[0]) * 1024)
