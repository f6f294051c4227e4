"""``bksdm verify``: compare a bundle with diffusers, network by network and picture by picture."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bksdm.cli.arguments import (
    add_engine_cache_option,
    add_hub_options,
    add_part_options,
    bundle_path,
    checkpoint,
    integer,
    lora_file,
    options_named,
    output_file,
    parts_of,
    refuse_beside,
)
from bksdm.cli.outputs import check_outputs, print_path, results
from bksdm.cli.text import printable
from bksdm.engines.errors import RequestError

EXAMPLES = """examples:
  bksdm verify bundle/ --against nota-ai/bk-sdm-small-2m
  bksdm verify --integrity bundle/
  bksdm verify --all -o docs/parity.md
"""


STEPS = 2
"""Denoising steps of the picture that is compared."""
COMPARED = ("revision", "variant", "token", "steps", "sampler", "lora")
"""Options of the comparison with a checkpoint."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundle",
        type=bundle_path,
        metavar="BUNDLE",
        nargs="?",
        help="folder of a bundle, or emoji; not with --all",
    )
    parser.add_argument(
        "--against",
        type=checkpoint,
        metavar="SOURCE",
        help="diffusers folder, checkpoint in one file, or model id of the hub, "
        "from which the bundle was exported",
    )
    add_hub_options(parser)
    parser.add_argument(
        "--steps",
        type=integer,
        metavar="N",
        help="denoising steps of the picture to compare (default: 2)",
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="its sampler (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--lora",
        type=lora_file,
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="LoRA that the bundle was exported with; may be repeated",
    )
    add_engine_cache_option(parser)
    add_part_options(parser)
    parser.add_argument(
        "--integrity",
        action="store_true",
        help="compare every file of the bundle with the checksums of the export; "
        "needs no --against",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="instead of a bundle, compare every sampler with text, image and mask "
        "on a small random model and the built-in one",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_file,
        metavar="FILE",
        help="with --all: page to write, - for standard output",
    )


def run(options: argparse.Namespace) -> int:
    """Print the comparison; exit with 1 if something misses its tolerance."""
    if options.integrity:
        if options.bundle is None or options.all or options.against is not None:
            raise RequestError("verify --integrity takes only BUNDLE")
        refuse_beside(options, "--integrity", (*COMPARED, "output"))
        return _check_integrity(options.bundle)
    from bksdm.cli.extras import require

    require("torch", "export")
    if options.all != (options.bundle is None) or options.all != (options.against is None):
        raise RequestError(
            "verify needs BUNDLE and --against SOURCE, or BUNDLE and --integrity, or only --all"
        )
    if options.output is not None and not options.all:
        raise RequestError("-o goes with --all; the comparison of a bundle is printed")
    if options.all:
        refuse_beside(options, "--all", COMPARED)
        check_outputs([options.output], text=True)
        return _run_all(options.output)
    from bksdm.engines.registry import DEFAULT, capabilities
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.generation_config import GenerationConfig
    from bksdm.runtime.request import Request

    steps = STEPS if options.steps is None else options.steps
    with options_named():
        config = GenerationConfig("", num_inference_steps=steps, sampler=options.sampler)
        Request.resolve(Bundle.open(options.bundle), capabilities(DEFAULT), config)
    # torch takes seconds to load, and networks follow.
    from bksdm.export.verify import verify
    from bksdm.runtime.lora.file import split_scale

    report, passed = verify(
        options.bundle,
        options.against,
        options.revision,
        steps=steps,
        sampler=options.sampler,
        loras=[split_scale(text) for text in options.lora],
        variant=options.variant,
        token=options.token,
        parts=parts_of(options),
        engine_cache=options.engine_cache,
    )
    print(printable(report, kept="\n"))
    return 0 if passed else 1


def _check_integrity(bundle: Path) -> int:
    from tqdm import tqdm

    from bksdm.runtime.integrity import find_damage

    with tqdm(desc="reading", unit="file", leave=False, delay=0.5, disable=None) as bar:

        def show(name: str) -> None:
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        problems = find_damage(bundle, show)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{bundle}: every file is what was exported")
    else:
        print(
            "export the bundle anew; what lies in its engines is mended by `bksdm build BUNDLE "
            "--engine NAME`",
            file=sys.stderr,
        )
    return 1 if problems else 0


def _run_all(output: Path | None) -> int:
    from bksdm.cli.progress import progress
    from bksdm.export.dummy import create_dummy
    from bksdm.export.exporter import export
    from bksdm.export.verify_all import measure, passed, render, total
    from bksdm.models import EMOJI
    from bksdm.runtime.user_files import write_text

    vae = EMOJI / "vae"
    if not vae.is_dir():
        raise RequestError(f"{vae}: missing; verify --all runs from the source tree alone")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, bundle = Path(folder) / "nano", Path(folder) / "bundle"
        create_dummy("nano", checkpoint)
        export(checkpoint, bundle)
        models = {"nano": (checkpoint, bundle), "emoji": (EMOJI, EMOJI)}
        with progress("", "picture", total(len(models))) as bar:
            cells = []
            for cell in measure(models):
                cells.append(cell)
                bar.update()
    page = render(cells)
    if output is None:
        print(page, end="")
    else:
        write_text(output, page)
        print_path(output, results([output]))
    return 0 if passed(cells) else 1
