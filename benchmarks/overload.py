"""Ask a server for more than it can draw, with clients that leave, and count what comes of it.

    python -m bksdm.benchmarks.overload emoji --seconds 300

Every request has to be answered once: drawn, or refused with a time after which it is tried again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bksdm.benchmarks.serving import OPENING, PATH, PROMPT
from bksdm.models import bundle_folder
from bksdm.runtime.user_files import write_text

LEAVES_AFTER = 0.3
"""Seconds, at most, after which a client that leaves does so."""
SAMPLE_SECONDS = 2.0


class Overload:
    """Requests at a rate, whatever becomes of them.

    Parameters
    ----------
    address : str
        Of the server.
    fields : dict
        Of each request.
    leaving : float
        Part of the clients that leave.
    """

    def __init__(self, address: str, fields: dict[str, Any], leaving: float) -> None:
        self.address, self.fields, self.leaving = address, fields, leaving
        self.answers: Counter[str] = Counter()
        self.told: list[tuple[float, float]] = []
        self._chance = random.Random(0)

    async def run(self, rate: float, seconds: float) -> int:
        """Send for so many seconds, and return how many were sent."""
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.address, timeout=600, limits=limits) as client:
            start, sent = time.perf_counter(), set[asyncio.Task[None]]()
            at = 0.0
            while at < seconds:
                await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
                sent.add(asyncio.create_task(self.one(client, len(sent))))
                at += self._chance.expovariate(rate)
            await asyncio.gather(*sent)
            return len(sent)

    async def one(self, client: httpx.AsyncClient, number: int) -> None:
        """Send a request, and count its answer."""
        leaves = self._chance.random() < self.leaving
        timeout = self._chance.uniform(0.01, LEAVES_AFTER) if leaves else None
        try:
            post = client.post(PATH, json={**self.fields, "seed": number})
            answer = await asyncio.wait_for(post, timeout)
        except TimeoutError:
            self.answers["left"] += 1
            return
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            return
        self.answers[str(answer.status_code)] += 1
        if answer.status_code == 429:
            self.told.append((time.perf_counter(), float(answer.headers["retry-after-ms"]) / 1000))


async def resident(process: psutil.Process, samples: list[tuple[float, int]]) -> None:
    """Note the memory of a process until cancelled."""
    while True:
        samples.append((time.perf_counter(), process.memory_info().rss))
        await asyncio.sleep(SAMPLE_SECONDS)


async def measure(arguments: argparse.Namespace, address: str, number: int) -> dict[str, Any]:
    """Return what became of an overload, and of the server's memory."""
    fields = {"prompt": PROMPT, "num_inference_steps": arguments.steps}
    fields |= {"height": arguments.size, "width": arguments.size}
    alone = Overload(address, fields, 0.0)
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        start = time.perf_counter()
        await asyncio.gather(*(alone.one(client, k) for k in range(arguments.probes)))
        capacity = arguments.probes / (time.perf_counter() - start)
    samples: list[tuple[float, int]] = []
    watching = asyncio.create_task(resident(psutil.Process(number), samples))
    overload = Overload(address, fields, arguments.leaving)
    sent = await overload.run(arguments.times * capacity, arguments.seconds)
    watching.cancel()
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        start = time.perf_counter()
        again = await client.post(PATH, json=fields)
        recovery = time.perf_counter() - start
        metrics = (await client.get("/metrics")).text
    later = samples[len(samples) // 3 :]
    slope = np.polyfit([at for at, _ in later], [size for _, size in later], 1)[0]
    idle = [line for line in metrics.splitlines() if line.startswith("bksdm_running_pictures{")]
    return {
        "capacity": capacity,
        "sent": sent,
        "answers": dict(overload.answers),
        "unanswered": sent - sum(overload.answers.values()),
        "retry_after_seconds": [told for _, told in overload.told[-5:]],
        "memory_mb": [round(size / 1e6, 1) for _, size in (samples[0], later[0], samples[-1])],
        "slope_mb_per_minute": float(slope) * 60 / 1e6,
        "after": {"status": again.status_code, "seconds": recovery, "state": idle},
    }


def main() -> None:
    """Measure, and print the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", help="folder of a bundle, or emoji")
    parser.add_argument("--seconds", type=float, default=300, help="of the overload")
    parser.add_argument("--times", type=float, default=4, help="of what it can draw")
    parser.add_argument("--steps", type=int, default=10, help="of a request")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--leaving", type=float, default=0.2, help="part of clients that leave")
    parser.add_argument("--probes", type=int, default=40, help="requests that tell the capacity")
    parser.add_argument("--layout", default="--queue 10", help="flags of bksdm serve, in one word")
    parser.add_argument("-o", "--output", type=Path, help="record, as JSON")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "bksdm.cli", "serve", str(bundle_folder(arguments.bundle))]
    command += ["--port", "0", *arguments.layout.split()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().removeprefix(OPENING).strip()
            record = asyncio.run(measure(arguments, address, server.pid))
        finally:
            server.terminate()
    told = json.dumps(record, indent=1)
    print(told)
    if arguments.output is not None:
        write_text(arguments.output, told + "\n")


if __name__ == "__main__":
    main()
