"""``bksdm batch``: draw a file of prompts with several processes, or with a Ray cluster."""

from __future__ import annotations

import argparse

from bksdm.cli.arguments import checkpoint, input_file, threads
from bksdm.cli.extras import require
from bksdm.cli.loading_options import add_format_options, add_loading_options, add_model_option
from bksdm.cli.picture_options import add_picture_options

EXAMPLES = """examples:
  bksdm batch prompts.jsonl -o pictures/
  bksdm batch prompts.parquet --model small/ --steps 25 --processes 8 --threads 2 -o pictures/
  bksdm batch prompts.jsonl --model /shared/small --ray auto -o s3://bucket/pictures
"""
FORMATS = ("png", "jpeg", "webp")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "prompts",
        type=input_file,
        metavar="FILE",
        help="a prompt in each line, or a JSON object of options, as of `bksdm generate "
        "--prompts`, or a .parquet whose columns are options; - for standard input. Line k without "
        "a seed gets --seed (default: 0) + k - 1",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=checkpoint,
        required=True,
        metavar="PLACE",
        help="folder, or URL that fsspec knows, as s3://bucket/pictures. A picture's name is a "
        "digest of model, options, prompt and seed; one that is there is not drawn again. A "
        "manifest with the name of FILE lists all",
    )
    parser.add_argument(
        "--processes",
        type=threads,
        metavar="N",
        help="that draw at the same time (default: as many as there are processors and memory for)",
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="CPU threads of each (default: the processors divided among the processes; 1 with "
        "--ray)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="draw with the workers of a Ray cluster: its address, auto for the one that this "
        "machine is part of, or local to start one here",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="png", help="of the files (default: png)"
    )
    add_model_option(parser)
    add_format_options(parser)
    add_picture_options(parser)
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Draw what is missing, print the paths of all pictures, and list them."""
    if options.ray is not None:
        require("ray", "ray")
    from bksdm.cli.batch_run import draw_batch

    return draw_batch(options)
