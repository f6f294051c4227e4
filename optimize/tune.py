"""Measure how a CPU runs the networks of a bundle fastest.

For each engine the convolutions are timed one by one, which shows the gain of Winograd's forms on
this machine. Then whole networks are compared: with direct convolutions, with the forms that the
cost model chooses, and with those that the times choose; then the fastest of each engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from bksdm.engines.protocol import Array, Engine
from bksdm.engines.registry import backend, make_engine
from bksdm.optimize.blocks import block_size
from bksdm.optimize.budget import Budget
from bksdm.optimize.choice import USUAL_COST
from bksdm.optimize.compose import choose_forms
from bksdm.optimize.convolution_times import time_convolution
from bksdm.optimize.convolutions import Convolution, convolutions
from bksdm.optimize.graph import load_graph
from bksdm.optimize.rules import PLAIN, MadeFor, Timing
from bksdm.optimize.tiles import Tile
from bksdm.optimize.tuned import Tuned
from bksdm.storage.precision import FLOAT32

ROUNDS = 5
# Where the model of costs expects less of the fastest form, no time is spent on measuring.
LEAST_EXPECTED = 0.8
# Of an engine's time; the rest is for whole networks.
CONVOLUTIONS = 0.5
ENDLESS = Budget()

Clock = Callable[[], float]
Progress = Callable[[str, int, int], object]


def tune(
    model: Path,
    engines: Sequence[str],
    side: int,
    threads: int | None,
    feeds: Mapping[str, Array],
    progress: Progress = lambda phase, done, total: None,
    clock: Clock = time.perf_counter,
    precision: str = FLOAT32.name,
    budget: Budget = ENDLESS,
) -> dict[str, Tuned]:
    """Return the fastest way to run a network on each engine.

    Parameters
    ----------
    model : Path
        A graph of float32.
    engines : sequence of str
        Engines that run networks on the CPU.
    side : int
        Height and width of its input, for which it is made and measured.
    threads : int, optional
        As for the engines.
    feeds : mapping
        Inputs of a run.
    progress : callable
        Called with a phase, and how many of its steps are done and there are.
    clock : callable
        Returns seconds.
    precision : str
        What the engines compute in.
    budget : Budget
        Where it is spent, the cost model decides what is not measured. Every engine runs the
        network twice all the same, to compare them.

    Raises
    ------
    EngineError
        An engine is not installed, or the network cannot be loaded or run.
    """
    found = {}
    for position, name in enumerate(engines):
        # The last share is for comparing the engines.
        own = budget.share(1 / (len(engines) - position + 1))
        load = partial(make_engine, name, model, threads, None, precision=precision)
        batch = max(len(array) for array in feeds.values())
        candidates = _candidates(
            model,
            name,
            side,
            threads=threads,
            batch=batch,
            progress=progress,
            clock=clock,
            budget=own.share(CONVOLUTIONS),
        )
        # One at a time against the fastest so far: two networks in memory, not all.
        fastest = candidates[0]
        for number, other in enumerate(candidates[1:], 1):
            if own.over:
                break
            shown = partial(progress, f"{name}, network {number} of {len(candidates) - 1}")
            one, two = race([load(fastest), load(other)], feeds, shown, clock, own)
            fastest = other if two < one else fastest
        found[name] = fastest
    loaded = [
        make_engine(name, model, threads, None, made_for, precision=precision)
        for name, made_for in found.items()
    ]
    seconds = race(loaded, feeds, partial(progress, " and ".join(found)), clock, budget)
    return {
        name: Tuned(taken, made_for)
        for (name, made_for), taken in zip(found.items(), seconds, strict=True)
    }


def race(
    engines: Sequence[Engine],
    feeds: Mapping[str, Array],
    progress: Callable[[int, int], object],
    clock: Clock,
    budget: Budget = ENDLESS,
) -> list[float]:
    """Run networks in turns after one untimed run each; return the median times."""
    seconds: list[list[float]] = [[] for _ in engines]
    for number in range(ROUNDS + 1):
        if number > 1 and budget.over:
            break
        progress(number, ROUNDS + 1)
        for engine, taken in zip(engines, seconds, strict=True):
            start = clock()
            engine(feeds)
            if number > 0:
                taken.append(clock() - start)
    return [float(np.median(taken)) for taken in seconds]


def _candidates(
    model: Path,
    engine: str,
    side: int,
    threads: int | None,
    batch: int,
    progress: Progress,
    clock: Clock,
    budget: Budget,
) -> list[MadeFor]:
    """Return the distinct ways to rewrite a graph; the one without tuning comes first."""
    proto, rules = load_graph(model), backend(engine).rules
    _, tail = choose_forms(proto, rules, MadeFor(side))
    inside = set() if tail is None else {choice.output for choice in tail.forms}
    sizes: dict[tuple[int, int, int, bool], Convolution] = {}
    for found in convolutions(proto, side):
        least = min(USUAL_COST(found, tile) for tile in found.tiles)
        if USUAL_COST(found, None) >= LEAST_EXPECTED * least:
            sizes[found.size] = found
    block = block_size() if rules.blocks else 0
    timings: list[Timing] = []
    largest = sorted(sizes.values(), key=lambda found: -USUAL_COST(found, None))
    for number, found in enumerate(largest):
        if budget.over:
            break
        progress(f"{engine}, convolutions", number, len(sizes))
        row_tiles = tail.count if tail is not None and found.node.output[0] in inside else 1
        load = partial(make_engine, engine, threads=threads, cache=None, made_for=PLAIN)
        timings.append(
            time_convolution(found, batch, row_tiles, block=block, load=load, clock=clock)
        )
    made = [
        MadeFor(side),
        MadeFor(side, ()),
        MadeFor(side, tuple(timings)),
    ]
    # Those that choose the same forms are the same graph.
    different: dict[tuple[tuple[str, Tile], ...], MadeFor] = {}
    for made_for in made:
        forms, _ = choose_forms(proto, rules, made_for)
        different.setdefault(tuple((c.output, c.tile) for c in forms), made_for)
    return list(different.values())
