"""``bksdm dummy``: write a checkpoint with random weights, for benchmarks and tests."""

from __future__ import annotations

import argparse
import sys

from bksdm.cli.arguments import add_new_folder_option, integer, options_named
from bksdm.cli.outputs import print_path

EXAMPLES = """examples:
  bksdm dummy nano -o nano-checkpoint/
  bksdm dummy base -o base-checkpoint/ --controlnet
  bksdm dummy small-2m -o small-checkpoint/     (the exact architecture of BK-SDM-Small-2M)
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "name",
        metavar="NAME",
        help="architecture: sd-v1-4, base, small, tiny, base-2m, small-2m, tiny-2m, sdxs (one "
        "step), lcm (guidance is an input), or nano, nano-base, nano-sdxs and nano-lcm (for "
        "tests)",
    )
    add_new_folder_option(parser, "DIR")
    parser.add_argument(
        "--seed",
        type=integer,
        default=0,
        metavar="N",
        help="seed of the random weights (default: 0)",
    )
    parser.add_argument(
        "--controlnet",
        action="store_true",
        help="write a ControlNet for the UNet too, into DIR/controlnet",
    )


def run(options: argparse.Namespace) -> int:
    """Write the checkpoint and print its path."""
    from bksdm.cli.extras import require

    require("torch", "export")
    from bksdm.export.dummy import create_dummy
    from bksdm.runtime.noise import validate_seed

    with options_named():
        seed = validate_seed(options.seed)
        create_dummy(options.name, options.output, seed, options.controlnet)
    print_path(options.output, sys.stdout)
    return 0
