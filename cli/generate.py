"""``bksdm generate``: make pictures from prompts."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

from bksdm.cli.arguments import (
    add_engine_options,
    bundle_path,
    input_file,
    integer,
    named_path,
    output_file,
    output_target,
    shard,
)
from bksdm.cli.idle_options import refuse_idle, warn_of_idle
from bksdm.cli.outputs import check_numbered, check_outputs, print_path, results
from bksdm.cli.picture_options import add_picture_options, picture_options
from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI

EXAMPLES = """examples:
  bksdm generate "a red apple" -o apple.png
  bksdm generate "a lighthouse at dusk" --model bundle/ --steps 25 --seed 7 --size 512x512
  bksdm generate "a green apple" --image apple.png --strength 0.6 -o green.jpg --quality 90
  bksdm generate "a cat" --model bundle/ --negative "blurry" --count 4 --sampler ddim -o cat.webp
  bksdm generate "a dog" "a fox" --seed 1,2 -o animals.png
  bksdm generate --prompts prompts.txt --seed 7 -o pictures/
"""
DEFAULT_OUTPUT = "image.png"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--model",
        type=bundle_path,
        default=EMOJI,
        metavar="BUNDLE",
        help="folder of a bundle, or emoji, the built-in model, which knows three "
        "dozen objects (default: emoji; a folder of that name comes first)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=output_target,
        metavar="FILE",
        help="picture to write, as PNG, JPEG or WebP by its extension; - for a PNG "
        "on standard output; further images get -2, -3 … before the extension "
        f"(default: {DEFAULT_OUTPUT})",
    )
    parser.add_argument(
        "--quality",
        type=integer,
        metavar="N",
        help="of a JPEG or WebP, 1 to 100 (default: Pillow's, 75 and 80)",
    )
    parser.add_argument(
        "--lossless", action="store_true", help="write a WebP that keeps every pixel"
    )
    add_picture_options(parser)
    parser.add_argument(
        "--prompts",
        type=input_file,
        metavar="FILE",
        help="draw every line of a file, a prompt each, or a JSON object of "
        'options, as {"prompt": "a cat", "seed": 3, "steps": 20}; - for '
        "standard input. Line k without a seed gets --seed (default: 0) + "
        "k - 1. -o is a folder, or a pattern as pictures/{line}.jpg. Pictures "
        "that are already there are kept; manifest.jsonl beside them lists "
        "all",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="with --prompts: draw only the I-th of N equal parts of the lines",
    )
    parser.add_argument(
        "--preview", action="store_true", help="show the picture after every step in the terminal"
    )
    parser.add_argument(
        "--save-steps",
        type=named_path,
        metavar="DIR",
        help="write the picture after every step, and remove the steps that an "
        "earlier run left there",
    )
    parser.add_argument(
        "--animate", type=output_file, metavar="FILE.webp", help="write an animation of the steps"
    )
    parser.add_argument(
        "--decode-steps",
        action="store_true",
        help="decode the steps of --preview, --save-steps and --animate with the "
        "VAE: exact, but slow (default: a quick approximation)",
    )
    parser.add_argument(
        "--no-safety-checker", action="store_true", help="do not load the model's safety checker"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="start even if the picture seems to need more memory than is free",
    )
    add_engine_options(parser)


def run(options: argparse.Namespace) -> int:
    """Make the pictures and print their paths."""
    refuse_idle(options)
    if options.prompts is None:
        return _draw(options)
    from bksdm.cli.prompt_run import draw_prompts

    return draw_prompts(options)


def _draw(options: argparse.Namespace) -> int:
    """Draw one batch."""
    output = named_output(options.output or DEFAULT_OUTPUT)
    check_outputs([output, options.animate])

    from bksdm.cli.drawing import (
        flags_named,
        input_paths,
        load_model,
        open_inputs,
        warn_of_unknown,
    )
    from bksdm.cli.progress import counted, progress
    from bksdm.cli.step_pictures import StepPictures
    from bksdm.cli.written_pictures import check_record, chosen_format, write_pictures
    from bksdm.engines.registry import capabilities
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.engine_choice import engine_for
    from bksdm.runtime.images import to_pil
    from bksdm.runtime.memory import require_memory
    from bksdm.runtime.recorded import Recorder, spelled
    from bksdm.runtime.request import Request

    chosen = chosen_format(output, options.quality, options.lossless)
    bundle = Bundle.open(options.model)
    options.engine = engine_for(bundle, options.engine)
    engine = capabilities(options.engine)
    # A mistake is refused here rather than after gigabytes are loaded.
    with flags_named(options):
        config = picture_options(options)
        inputs = open_inputs(options)
        request = Request.resolve(bundle, engine, config, **inputs)
        if not (options.force or engine.on_device):
            require_memory(bundle, request.shape, request.guidance is not None, options.engine)
    check_numbered([output, options.animate], request.shape[0])
    steps = StepPictures(options.decode_steps, options.preview, options.save_steps, options.animate)
    recorder = Recorder(bundle, input_paths(options), inputs, chosen)
    check_record(recorder, request.config, chosen)
    warn_of_idle(config, bundle)
    warn_of_unknown(bundle, config.prompts)
    model = load_model(options, bundle)
    if steps.wanted and not options.decode_steps:
        _ = model.preview
    # The delay keeps the bar away from a request that is refused before its first step.
    total = len(request.table)
    with closing(steps), progress("denoise", "step", total, delay=0.01) as bar:
        # A callback makes a GPU wait; without pictures of the steps there is none.
        show = partial(steps.add, model) if steps.wanted else None
        result = model.generate(request, show, progress=counted(bar))
        images = to_pil(result.pixels)
        unfit = result.nsfw_content_detected or [False] * len(images)
        steps.finish(images, unfit)
    print(f"seed: {spelled('seed', result.config.seed)}", file=sys.stderr)
    told = results([output, options.animate])
    for path in write_pictures(result, recorder, output, chosen):
        print_path(path, told)
    for path in steps.animate(images, unfit):
        print_path(path, told)
    return 1 if all(unfit) else 0


def named_output(text: str) -> Path:
    """Return the file that ``-o`` names.

    Raises
    ------
    RequestError
        It names a folder.
    """
    try:
        return output_file(text)
    except argparse.ArgumentTypeError as error:
        raise RequestError(f"-o/--output: {error}") from error
