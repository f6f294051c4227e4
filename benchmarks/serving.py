"""Load servers with requests that arrive at random, in turns with one that draws one by one.

    python -m bksdm.benchmarks.serving emoji --requests 48 -o serving.json

Open loop: requests arrive as a Poisson process whether or not those before are done, and are timed
from when they should have been sent. Clients and each server are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bksdm.benchmarks.machine import describe_machine
from bksdm.benchmarks.statistics import Summary
from bksdm.benchmarks.throughput import poisson_arrivals
from bksdm.models import bundle_folder
from bksdm.runtime.user_files import write_text

PATH = "/v1/images/generations"
PROMPT = "a red apple"
REFERENCE = "one by one"
OPENING = "serving on "
TIMEOUT = 3600.0


@dataclass(frozen=True)
class Load:
    """Requests that are sent.

    Attributes
    ----------
    steps : sequence of int
        Of each request.
    arrivals : sequence of float
        Seconds from the start.
    options : mapping
        Of all, as height and width.
    """

    steps: Sequence[int]
    arrivals: Sequence[float]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """When a request was answered, from its arrival on, its steps, and the status."""

    seconds: float
    steps: int
    status: int


def servers(bundle: Path, processors: int, layout: Sequence[str]) -> dict[str, list[str]]:
    """Return the commands of the servers, by name."""
    python = [sys.executable, "-m"]
    ours = ["bksdm.cli", "serve", str(bundle), "--port", "0", "--queue", "3600", *layout]
    reference = ["bksdm.benchmarks.one_by_one", str(bundle), str(processors)]
    return {REFERENCE: [*python, *reference], "bksdm serve": [*python, *ours]}


@contextmanager
def started(command: Sequence[str]) -> Iterator[str]:
    """Start a server, and return its address."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            if not line.startswith(OPENING):
                raise SystemExit(f"the server did not start: {' '.join(command)}")
            yield line.removeprefix(OPENING).strip()
        finally:
            server.terminate()


async def send(address: str, load: Load) -> tuple[list[Answer], float]:
    """Send requests as they arrive, and return their answers and the seconds until the last."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT, limits=limits) as client:
        start = time.perf_counter()

        async def one(number: int) -> Answer:
            arrival = load.arrivals[number]
            await asyncio.sleep(max(0.0, start + arrival - time.perf_counter()))
            fields = {"prompt": PROMPT, "seed": number, **load.options}
            fields["num_inference_steps"] = load.steps[number]
            answer = await client.post(PATH, json=fields)
            seconds = time.perf_counter() - start - arrival
            return Answer(seconds, load.steps[number], answer.status_code)

        answers = await asyncio.gather(*map(one, range(len(load.steps))))
        return answers, time.perf_counter() - start


def measured(address: str, load: Load) -> dict[str, Any]:
    """Return throughput and latencies of a load, by steps."""
    answers, seconds = asyncio.run(send(address, load))
    served = [answer for answer in answers if answer.status == 200]
    latencies = {
        str(steps): Summary.of([a.seconds for a in served if a.steps == steps]).fields()
        for steps in sorted({answer.steps for answer in served})
    }
    latencies["all"] = Summary.of([answer.seconds for answer in served]).fields()
    return {
        "requests": len(answers),
        "failed": len(answers) - len(served),
        "pictures_per_second": len(served) / seconds,
        "latency": latencies,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the record of all loads and servers, in turns."""
    bundle, generator = bundle_folder(arguments.bundle), np.random.default_rng(0)
    steps = generator.choice(arguments.steps, arguments.requests).tolist()
    options = {"height": arguments.size, "width": arguments.size}
    record: dict[str, Any] = {
        "machine": describe_machine(),
        "bundle": bundle.name,
        "steps": arguments.steps,
        "size": arguments.size,
        "layout": arguments.layout,
        "loads": {},
    }
    commands = servers(bundle, arguments.threads, arguments.layout.split())
    saturated = Load(steps, [0.0] * len(steps), options)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            with started(command) as address:
                measured(address, Load(steps[:2], [0.0, 0.0], options))
                found[name].append(measured(address, saturated))
    record["loads"]["saturated"] = found
    capacity = float(np.median([r["pictures_per_second"] for r in found[REFERENCE]]))
    for part in arguments.loads:
        found = {name: [] for name in commands}
        for turn in range(arguments.rounds):
            arrivals = poisson_arrivals(part * capacity, len(steps), turn)
            for name, command in commands.items():
                with started(command) as address:
                    measured(address, Load(steps[:2], [0.0, 0.0], options))
                    found[name].append(measured(address, Load(steps, arrivals, options)))
        record["loads"][f"{part:g} of capacity"] = found
    record["capacity"] = capacity
    return record


def table(record: Mapping[str, Any]) -> str:
    """Return a record as a table: medians of the rounds."""
    lines = [
        "| load | server | pictures/s | steps | p50 s | p95 s |",
        "|---|---|---:|---|---:|---:|",
    ]
    for load, found in record["loads"].items():
        for name, rounds in found.items():
            speed = np.median([r["pictures_per_second"] for r in rounds])
            for steps in rounds[0]["latency"]:
                median, late = (
                    np.median([r["latency"][steps][key] for r in rounds])
                    for key in ("median", "p95")
                )
                cells = (load, name, f"{speed:.2f}", steps, f"{median:.2f}", f"{late:.2f}")
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", help="folder of a bundle, or emoji")
    parser.add_argument("--requests", type=int, default=48, help="of each load")
    parser.add_argument("--rounds", type=int, default=3, help="of each load and server")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 25, 50], help="mixed")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.95], help="of capacity")
    parser.add_argument("--threads", type=int, default=2, help="of the one that draws one by one")
    parser.add_argument("--layout", default="", help="further flags of bksdm serve, in one word")
    parser.add_argument("-o", "--output", type=Path, help="record, as JSON")
    arguments = parser.parse_args()
    record = measure(arguments)
    print(table(record))
    if arguments.output is not None:
        write_text(arguments.output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
