"""Measure how close an exported graph is to the torch network it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bksdm.engines.onnxruntime_package import load_onnxruntime
from bksdm.engines.onnxruntime_session import open_session
from bksdm.export.graph import cast_inputs
from bksdm.export.networks import Case, Network
from bksdm.optimize.graph import load_graph
from bksdm.optimize.half import emulate_half
from bksdm.optimize.preparing import Composed
from bksdm.storage.precision import FLOAT16, FLOAT32, Precision

# Two sizes times two batches, none of them the traced ones. 8 x 8 ends at 1 x 1 below four blocks;
# 9 x 12 has sides that no power of two above 4 divides, so that every upsampling is uneven. A text
# of 154 tokens is a prompt in two parts.
CASES: tuple[Case, ...] = tuple(
    Case(batch, height, width, seed, tokens)
    for seed, (batch, height, width, tokens) in enumerate(
        [(1, 8, 8, 77), (3, 8, 8, 77), (1, 9, 12, 77), (3, 9, 12, 154)], start=1
    )
)

# Largest relative L2 error, per type of the graph. The worst of the four networks measured with
# random weights: 8.0e-6 in float32 (VAE decoder, full size) and 3.9e-3 in float16 with every tensor
# rounded (VAE decoder, nano). Six times that, because the order of sums differs between machines.


@dataclass(frozen=True)
class Reference:
    """Inputs and the float32 outputs of torch for one case, in the graph's order."""

    feeds: dict[str, NDArray[Any]]
    expected: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class ComponentParity:
    """The worst case of one component.

    Attributes
    ----------
    component
        Folder of the bundle.
    dtype
        Type of the exported graph.
    cases
        Number of random inputs compared.
    max_abs
        Largest absolute difference from torch in float32.
    relative_l2
        Largest ``|y - y_torch| / |y_torch|`` of a case.
    psnr
        Smallest PSNR of a case in dB, the peak being torch's range of values; infinite when equal.
    tolerance
        Largest accepted ``relative_l2``.
    """

    component: str
    dtype: str
    cases: int
    max_abs: float
    relative_l2: float
    psnr: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the component is within its tolerance; never true for NaN or infinity."""
        return math.isfinite(self.max_abs) and self.relative_l2 <= self.tolerance


def references(
    network: Network, precision: Precision = FLOAT32, cases: Sequence[Case] = CASES
) -> list[Reference]:
    """Run torch in float32 on fresh random inputs.

    Parameters
    ----------
    network
        In float32.
    precision
        Round the inputs to it first, so that only the network's own rounding is measured.
    cases
        Sizes and seeds.

    Returns
    -------
    list of Reference
        In the order of the cases. Arrays are copies: the network can be freed.
    """
    results = []
    for case in cases:
        inputs = cast_inputs(network.example(case), network.inputs, precision)
        full = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        with torch.no_grad():
            made = network(*full)
        expected = tuple(x.numpy().copy() for x in (made if isinstance(made, tuple) else (made,)))
        feeds = {name: x.numpy() for name, x in zip(network.inputs, inputs, strict=True)}
        results.append(Reference(feeds, expected))
    return results


def compare(
    graph: Path, component: str, precision: Precision, truth: list[Reference]
) -> ComponentParity:
    """Run a graph in onnxruntime on the CPU and compare it with torch.

    Every tensor of a float16 graph is rounded, so an overflow on a GPU fails here too.

    Parameters
    ----------
    graph
        The ONNX file.
    component
        Name for the report.
    precision
        That the graph computes in; decides the tolerance.
    truth
        What `references` returned.

    Returns
    -------
    ComponentParity
        The worst values over all cases and outputs; a shape that differs counts as infinitely far.
    """
    session = _session(graph, precision)
    errors = [
        _error(found, expected)
        for ref in truth
        for found, expected in zip(session.run(None, ref.feeds), ref.expected, strict=True)
    ]
    max_abs, relative, psnr = (list(column) for column in zip(*errors, strict=True))
    return ComponentParity(
        component=component,
        dtype=precision.name,
        cases=len(truth),
        max_abs=max(max_abs),
        relative_l2=max(relative),
        psnr=min(psnr),
        tolerance=precision.tolerance,
    )


def format_table(rows: Sequence[ComponentParity]) -> str:
    """Return a table of plain text, one line per component, without a final newline."""
    width = max([18, *(len(row.component) + 2 for row in rows)])
    lines = [
        f"{'component':<{width}}{'dtype':<9}{'cases':>5}{'max abs':>11}{'rel L2':>11}{'PSNR dB':>9}"
    ]
    for row in rows:
        verdict = "" if row.passed else f"  missed: rel L2 above {row.tolerance:g}"
        lines.append(
            f"{row.component:<{width}}{row.dtype:<9}{row.cases:>5}{row.max_abs:>11.2e}"
            f"{row.relative_l2:>11.2e}{row.psnr:>9.1f}{verdict}"
        )
    return "\n".join(lines)


def _session(graph: Path, precision: Precision) -> Any:
    options = load_onnxruntime().SessionOptions()
    # A few small runs do not repay a second, repacked copy of the weights, nor a pool that keeps
    # its peak: full-size Small must pass in 5 GB.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    proto = load_graph(graph)
    if precision == FLOAT16:
        emulate_half(proto)
    return open_session(Composed.of(proto, graph).prepared(), options)


def _error(found: NDArray[Any], expected: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return largest absolute error, relative L2 error and PSNR of one output."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return math.inf, math.inf, -math.inf
    truth = expected.astype(np.float64)
    difference = found.astype(np.float64) - truth
    square = float(np.mean(difference**2))
    relative = float(np.linalg.norm(difference)) / max(float(np.linalg.norm(truth)), 1e-30)
    peak = float(np.ptp(truth))
    psnr = 10 * math.log10(peak**2 / square) if square > 0 and peak > 0 else math.inf
    return float(np.abs(difference).max()), relative, psnr
