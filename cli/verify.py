"""``bksdm verify``: compare a bundle with diffusers, network by network and picture by picture."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  bksdm verify bundle/ --against nota-ai/bk-sdm-small-2m
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--against", required=True, metavar="SOURCE", help="diffusers checkpoint")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--steps", type=int, default=2, help="steps of the pictures (default 2)")


def run(options: argparse.Namespace) -> int:
    """Print both comparisons; exit 1 when one misses its tolerance."""
    from bksdm.cli.extras import require

    require("torch", "export")
    from bksdm.export.verify import verify

    report, passed = verify(options.bundle, options.against, options.revision, options.steps)
    print(report)
    return 0 if passed else 1
