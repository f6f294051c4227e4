"""Options that say which model draws, on which engine, and as what files pictures are written."""

from __future__ import annotations

import argparse

from bksdm.cli.arguments import add_engine_options, bundle_path, integer
from bksdm.models import EMOJI


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Add the model that draws."""
    parser.add_argument(
        "--model",
        type=bundle_path,
        default=EMOJI,
        metavar="BUNDLE",
        help="folder of a bundle, or emoji, the built-in model, which knows three "
        "dozen objects (default: emoji; a folder of that name comes first)",
    )


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add what is to be settled about the format of files."""
    parser.add_argument(
        "--quality",
        type=integer,
        metavar="N",
        help="of a JPEG or WebP, 1 to 100 (default: Pillow's, 75 and 80)",
    )
    parser.add_argument(
        "--lossless", action="store_true", help="write a WebP that keeps every pixel"
    )


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Add how the model is loaded, but for its threads."""
    parser.add_argument(
        "--no-safety-checker", action="store_true", help="do not load the model's safety checker"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="start even if the picture seems to need more memory than is free",
    )
    add_engine_options(parser)
