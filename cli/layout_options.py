"""Options that say how a server uses the engine of a model."""

from __future__ import annotations

import argparse

from bksdm.cli.arguments import real, threads


def add_layout_options(parser: argparse.ArgumentParser) -> None:
    """Add engine, replicas, threads, batch and queue."""
    parser.add_argument(
        "--engine",
        default="onnxruntime",
        help="onnxruntime, openvino, or auto (default: onnxruntime)",
    )
    parser.add_argument(
        "--replicas",
        type=threads,
        metavar="N",
        help="engine threads of a model, which draw beside each other (default: measured)",
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="CPU threads of each replica (default: measured)",
    )
    parser.add_argument(
        "--max-batch",
        type=threads,
        metavar="N",
        help="most pictures that a replica draws together (default: measured)",
    )
    parser.add_argument(
        "--queue",
        type=real,
        default=300.0,
        metavar="SECONDS",
        help="most work that waits for a model; what is beyond is refused with 429 (default: 300)",
    )
