"""``bksdm quantize``: make a bundle in int8 or fp8."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bksdm.cli.arguments import (
    add_new_folder_option,
    bundle_path,
    input_file,
    integer,
    options_named,
)
from bksdm.cli.outputs import print_path
from bksdm.storage.precision import FLOAT32, INT8, QUANTIZED

if TYPE_CHECKING:
    from bksdm.runtime.bundle import Bundle

OPENVINO = "openvino"
EXAMPLES = """examples:
  bksdm quantize small/ -o small-int8/
  bksdm quantize small/ -o small-int8/ --prompts captions.txt --steps 25
  bksdm quantize small-fp16/ -o small-fp8/ --to fp8
  bksdm build small-fp8/ --engine tensorrt-rtx --target sm89,sm120
  bksdm generate "a lighthouse" --model small-int8/ --engine openvino -o lighthouse.png
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundle",
        type=bundle_path,
        metavar="BUNDLE",
        help="folder of a bundle, or emoji: float32 for engines on the CPU, float16 for TensorRT",
    )
    parser.add_argument(
        "--to",
        choices=QUANTIZED,
        default=INT8,
        help="int8, or for TensorRT fp8, on GPUs from sm89 on (default: int8)",
    )
    add_new_folder_option(parser, "DIR")
    parser.add_argument(
        "--prompts",
        type=input_file,
        metavar="FILE",
        help="prompts such as will be drawn, one a line; a dozen are enough (default: six of ours)",
    )
    parser.add_argument(
        "--steps",
        type=integer,
        default=10,
        metavar="N",
        help="denoising steps of each picture that is drawn (default: 10)",
    )
    parser.add_argument(
        "--engine",
        help="draws the pictures that are compared in the end: openvino or onnxruntime "
        "(default: openvino for a float32 bundle, else onnxruntime)",
    )


def run(options: argparse.Namespace) -> int:
    """Quantise, print how far pictures are from exact ones, and the path."""
    from bksdm.cli.extras import require

    require("onnx", "optimize")
    from bksdm.cli.progress import progress
    from bksdm.engines.registry import DEFAULT
    from bksdm.optimize.quantizing import quantize_bundle
    from bksdm.runtime.bundle import Bundle

    bundle = Bundle.open(options.bundle)
    with options_named(), progress("quantize", "picture") as bar:

        def told(work: str, done: int, total: int) -> None:
            bar.total = 3 * total
            if done:
                bar.update()

        made = quantize_bundle(
            bundle,
            options.output,
            _prompts(options.prompts, bundle),
            options.steps,
            options.engine or (OPENVINO if bundle.precision == FLOAT32.name else DEFAULT),
            options.to,
            told,
        )
    before, after = (size / 1e6 for size in made.unet_bytes)
    print(
        f"unet: {made.products} products in {options.to}, {made.kept} kept; "
        f"{before:.0f} MB -> {after:.0f} MB",
        file=sys.stderr,
    )
    told_apart = ", ".join(f"{value:.1f}" for value in made.pictures)
    print(f"pictures against {bundle.precision}, PSNR in dB: {told_apart}", file=sys.stderr)
    print_path(options.output, sys.stdout)
    return 0


def _prompts(path: Path | None, bundle: Bundle) -> list[str]:
    """Return what is drawn: the file's prompts, or such as the model knows."""
    from bksdm.cli.prompt_file import LineErrors, read_prompts
    from bksdm.models import EMOJI
    from bksdm.models.objects import known_objects
    from bksdm.optimize.quantizing import PROMPTS

    if path is None:
        objects = [f"{name} on blue" for name in known_objects()][:: len(PROMPTS)]
        return objects if bundle.path.resolve() == EMOJI.resolve() else list(PROMPTS)
    errors = LineErrors(path)
    lines = read_prompts(path, {}, errors)
    errors.refuse()
    return [prompt for line in lines for prompt in line.config.prompts]
