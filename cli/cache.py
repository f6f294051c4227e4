"""``bksdm cache``: list or remove the prepared graphs that were stored for later starts."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from bksdm.cli.arguments import named_path, real
from bksdm.cli.text import printable
from bksdm.engines.errors import RequestError
from bksdm.runtime.validation import no_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bksdm.storage.graph_cache import CachedGraph

EXAMPLES = """examples:
  bksdm cache
  bksdm cache prune --older-than 30
  bksdm cache prune --all --engine-cache bundle/
"""
DAY = 24 * 3600
UNUSED_DAYS = 14.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "prune"),
        default="list",
        help="list the graphs (default), or remove those that were not used for two weeks",
    )
    parser.add_argument(
        "--engine-cache",
        type=named_path,
        metavar="DIR",
        help="folder of graphs, or a bundle (default: the user's cache)",
    )
    parser.add_argument(
        "--older-than",
        type=real,
        metavar="DAYS",
        help="with prune: those that were not used for so long",
    )
    parser.add_argument("--all", action="store_true", help="with prune: all that are not in use")


def run(options: argparse.Namespace) -> int:
    """List or remove."""
    from bksdm.storage.graph_cache import clear_empty, prune, stored_graphs
    from bksdm.storage.places import ENGINES, user_cache

    if options.action != "prune" and (options.all or options.older_than is not None):
        raise RequestError("--all and --older-than are for `bksdm cache prune`")
    if options.all and options.older_than is not None:
        raise RequestError("--all and --older-than exclude each other")
    days = UNUSED_DAYS if options.older_than is None else options.older_than
    if not 0 <= days <= 1e6:
        raise RequestError(f"--older-than must be a number of days from 0 on, not {days:g}")
    root = options.engine_cache or user_cache() / ENGINES
    if options.engine_cache is not None and not root.is_dir():
        raise RequestError(f"--engine-cache: {root}: {no_folder(root)}")
    if options.action == "list":
        _print(stored_graphs(root), f"nothing is stored in {root}")
        return 0
    gone = prune(root, 0 if options.all else days * DAY)
    clear_empty(root)
    _print(gone, "nothing was removed")
    if options.all:
        for graph in stored_graphs(root):
            print(f"{printable(str(graph.path))}: in use, not removed", file=sys.stderr)
    return 0


def _print(graphs: Iterable[CachedGraph], nothing: str) -> None:
    now, total, count = time.time(), 0, 0
    for graph in graphs:
        days = max(0.0, now - graph.used) / DAY
        age = f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} h"
        line = (
            f"{graph.model:<20} {graph.network:<16} {graph.size / 1e6:8.1f} MB {age:>9}  "
            f"{graph.path}"
        )
        print(printable(line))
        total, count = total + graph.size, count + 1
    print(f"{total / 1e6:.1f} MB in all" if count else nothing, file=sys.stderr)
