"""``bksdm evaluate``: score the pictures that a bundle draws."""

from __future__ import annotations

import argparse

from bksdm.cli.arguments import (
    add_engine_options,
    add_threads_option,
    bundle_path,
    input_file,
    named_path,
    refuse_beside,
    shard,
)
from bksdm.cli.picture_options import CONTROL_IMAGE, add_option_flags
from bksdm.engines.errors import RequestError
from bksdm.runtime.control_options import CONTROL_OPTIONS
from bksdm.runtime.generation_config import DEFAULTS

EXAMPLES = """examples:
  bksdm evaluate emoji
  bksdm evaluate emoji --engine openvino --precision bfloat16 --fast 2
  bksdm evaluate small --prompts coco.jsonl --reference real_im256.npz -o small-scores
  bksdm evaluate small --prompts coco.jsonl --reference real_im256.npz -o part-2 --shard 2/8
  bksdm evaluate --merge part-1 part-2 --reference real_im256.npz -o small-scores
  bksdm evaluate --table small-scores small-fast-scores
"""
LEFT_OUT = ("num_images_per_prompt", "strength", "loras", *CONTROL_OPTIONS)
STEPS = 25
OF_RUNS = ("prompts", "reference", "output", "shard", "inception", "clip", "clip_model")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundle",
        type=bundle_path,
        nargs="?",
        metavar="BUNDLE",
        help="folder of a bundle, or emoji. Without --prompts it must be the built-in model, or "
        "made of it: its classifier then judges its own fifty prompts, two seeds each, at "
        "guidance 4 if --guidance does not say",
    )
    parser.add_argument(
        "--prompts",
        type=input_file,
        metavar="FILE",
        help="score a picture for every line of a file, as for `generate`, by the protocol of "
        "BK-SDM's model card: FID, inception score and CLIP score at 256×256; at guidance 7.5 if "
        "neither the line nor --guidance says. What is measured already is kept",
    )
    parser.add_argument(
        "--reference",
        type=named_path,
        metavar="FILE.npz",
        help="of real pictures: mean and covariance of Inception's features, as pytorch-fid "
        "--save-stats writes them",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=named_path,
        metavar="DIR",
        help="folder for the measures of each picture, and the scores; an interrupted run goes on "
        "in it",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="measure only the I-th of N equal parts of the lines",
    )
    parser.add_argument(
        "--merge",
        type=named_path,
        nargs="+",
        metavar="DIR",
        help="put parts of a run, that --shard made, together into -o, and score them",
    )
    parser.add_argument(
        "--table",
        type=named_path,
        nargs="*",
        metavar="DIR",
        help="print scored runs beside the figures of BK-SDM's model card, as Markdown",
    )
    parser.add_argument(
        "--inception",
        type=named_path,
        metavar="FILE",
        help="Inception's weights, pt_inception-2015-12-05-6726825d.pth (default: downloaded)",
    )
    parser.add_argument(
        "--clip",
        type=named_path,
        metavar="FILE",
        help="CLIP's weights in open_clip's form (default: laion2b_s34b_b88k, downloaded)",
    )
    parser.add_argument(
        "--clip-model",
        metavar="NAME",
        help="open_clip's model that --clip holds the weights of (default: ViT-g-14)",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    add_engine_options(parser)
    add_threads_option(parser)
    own = {**DEFAULTS, "num_inference_steps": STEPS, "guidance_scale": None}
    add_option_flags(parser, LEFT_OUT, own)
    parser.set_defaults(**{CONTROL_IMAGE: []})


def run(options: argparse.Namespace) -> int:
    """Score, and print the scores."""
    if options.bundle is not None:
        for name in ("merge", "table"):
            if getattr(options, name) is not None:
                raise RequestError(f"--{name} takes what was measured; leave the bundle out")
    if options.table is not None:
        refuse_beside(options, "--table", (*OF_RUNS, "merge", "json"))
        from bksdm.cli.run_scores import print_table

        return print_table(options.table)
    if options.merge is not None:
        refuse_beside(options, "--merge", ("prompts", "shard", "inception", "clip", "clip_model"))
        from bksdm.cli.run_scores import merge_parts

        return merge_parts(options)
    if options.bundle is None:
        raise RequestError("a bundle is needed, as in: bksdm evaluate emoji")
    if options.prompts is None:
        refuse_beside(options, "the built-in model's own prompts", OF_RUNS)
        from bksdm.cli.emoji_scores import score_emoji

        return score_emoji(options)
    from bksdm.cli.evaluation_run import measure_prompts

    return measure_prompts(options)
