"""``bksdm triton``: write a model repository of Triton's Inference Server."""

from __future__ import annotations

import argparse
import re
import sys

from bksdm.cli.arguments import add_new_folder_option, bundle_path
from bksdm.cli.layout_options import add_layout_options
from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI

EXAMPLES = """examples:
  bksdm triton small/ -o repository/
  bksdm triton small/ --name small --threads 1 --replicas 4 --max-batch 4 -o repository/
  tritonserver --model-repository=repository
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundle",
        nargs="?",
        type=bundle_path,
        default=EMOJI,
        metavar="BUNDLE",
        help="folder of a bundle (default: emoji, built in)",
    )
    add_new_folder_option(parser, "FOLDER")
    parser.add_argument(
        "--name", help="that clients ask for the model by (default: the name of its folder)"
    )
    add_layout_options(parser)


def run(options: argparse.Namespace) -> int:
    """Write the repository, and print its path."""
    from bksdm.cli.outputs import print_path
    from bksdm.runtime.bundle import Bundle
    from bksdm.serve.starting import host_engine
    from bksdm.serve.triton_repository import write_repository
    from bksdm.storage.publishing import refuse_existing

    refuse_existing(options.output)
    bundle = Bundle.open(options.bundle)
    name = options.name or bundle.path.resolve().name
    if re.fullmatch(r"[\w.-]+", name) is None:
        raise RequestError(f"--name may have letters, digits, dots and dashes, not {name!r:.60}")
    parameters: dict[str, str | float] = {
        "engine": host_engine(bundle, options.engine),
        "replicas": options.replicas or 0,
        "threads": options.threads or 0,
        "max_batch": options.max_batch or 0,
        "queue": options.queue,
    }
    write_repository(bundle, options.output, name, parameters)
    print_path(options.output, sys.stdout)
    return 0
