"""``bksdm export``: turn a diffusers checkpoint into a bundle."""

from __future__ import annotations

import argparse
import sys

from bksdm.cli.arguments import (
    add_hub_options,
    add_new_folder_option,
    add_part_options,
    checkpoint,
    lora_file,
    parts_of,
)
from bksdm.cli.text import printable
from bksdm.storage.precision import PRECISIONS

EXAMPLES = """examples:
  bksdm export nota-ai/bk-sdm-small-2m -o small/
  bksdm export ./checkpoint -o small-fp16/ --dtype float16
  bksdm export nota-ai/bk-sdm-small-2m -o styled/ --lora style.safetensors:0.8
  bksdm export ./checkpoint -o small/ --tables euler-a:25 --tables default:50:image
  bksdm export model.safetensors -o bundle/ --vae vae.safetensors --embedding cat.pt:my-cat
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "source",
        type=checkpoint,
        metavar="SOURCE",
        help="diffusers folder, checkpoint in one file (.safetensors, .ckpt), or model id of the "
        "Hugging Face hub",
    )
    add_new_folder_option(parser, "BUNDLE")
    parser.add_argument(
        "--dtype",
        choices=tuple(PRECISIONS),
        default="float32",
        help="type of weights and arithmetic (default: float32)",
    )
    add_hub_options(parser)
    parser.add_argument(
        "--lora",
        type=lora_file,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="LoRA file, or folder that peft wrote, to merge into the weights; may be repeated",
    )
    add_part_options(parser)
    parser.add_argument(
        "--no-safety-checker",
        action="store_true",
        help="do not export the checkpoint's safety checker",
    )
    parser.add_argument(
        "--tables",
        action="append",
        default=[],
        metavar="SAMPLER:STEPS[:image]",
        help="write a compiled sampler into the bundle as `bksdm info --table` does, for C++; may "
        "be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Export, and print the parity table."""
    from bksdm.cli.extras import require

    require("torch", "export")
    from bksdm.export.exporter import export
    from bksdm.export.parity import format_table
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.bundle_tables import WantedTable, write_tables
    from bksdm.runtime.lora.file import split_scale

    # A mistake is refused here rather than after minutes.
    wanted = [WantedTable.read(text) for text in options.tables]

    report = export(
        options.source,
        options.output,
        options.dtype,
        options.revision,
        progress=lambda line: print(printable(line), file=sys.stderr, flush=True),
        loras=[split_scale(text) for text in options.lora],
        safety_checker=not options.no_safety_checker,
        variant=options.variant,
        token=options.token,
        parts=parts_of(options),
    )
    print(printable(format_table(report), kept="\n"))
    for table in wanted:
        print(printable(str(write_tables(Bundle.open(options.output), table))))
    return 0
