"""``bksdm generate``: make pictures from a prompt."""

from __future__ import annotations

import argparse
import json
import warnings
from contextlib import AbstractContextManager, closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bksdm.cli.arguments import SIZE, named_path, options_named, output_file, threads
from bksdm.cli.outputs import check_numbered, check_outputs, numbered, print_path, results
from bksdm.cli.picture_options import add_picture_options, picture_options, recorded
from bksdm.models import EMOJI
from bksdm.runtime.generation_config import OPTIONS

if TYPE_CHECKING:
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.result import Result

EXAMPLES = """examples:
  bksdm generate "a red apple" -o apple.png
  bksdm generate "a lighthouse at dusk" --model bundle/ --steps 25 --seed 7 --size 512x512
  bksdm generate "a green apple" --image apple.png --strength 0.6 -o green.png
  bksdm generate "a cat" --model bundle/ --negative "blurry" --count 4 --sampler ddim -o cat.png
  bksdm generate "a dog" "a fox" --seed 1,2 -o animals.png
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help=OPTIONS["prompt"].help)
    parser.add_argument("--model", type=named_path, default=EMOJI, metavar="BUNDLE",
                        help="folder of a bundle (default: the built-in model, which knows three "
                             "dozen objects)"
                        )  # fmt: skip
    parser.add_argument("-o", "--output", type=output_file, default=Path("image.png"),
                        metavar="FILE",
                        help="PNG to write, - for standard output; further images get -2, -3 … "
                             "before the extension (default: image.png)"
                        )  # fmt: skip
    add_picture_options(parser)
    parser.add_argument("--preview", action="store_true",
                        help="show the picture after every step in the terminal"
                        )  # fmt: skip
    parser.add_argument("--save-steps", type=named_path, metavar="DIR",
                        help="write the picture after every step, and remove the steps that an "
                             "earlier run left there")  # fmt: skip
    parser.add_argument("--animate", type=output_file, metavar="FILE.webp",
                        help="write an animation of the steps")  # fmt: skip
    parser.add_argument("--decode-steps", action="store_true",
                        help="decode the steps of --preview, --save-steps and --animate with the "
                             "VAE: exact, but slow (default: a quick approximation)"
                        )  # fmt: skip
    parser.add_argument("--no-safety-checker", action="store_true",
                        help="do not load the model's safety checker")  # fmt: skip
    parser.add_argument("--force", action="store_true",
                        help="start even if the picture seems to need more memory than is free"
                        )  # fmt: skip
    parser.add_argument("--engine", default="onnxruntime",
                        help="onnxruntime or openvino (CPU), auto (the fastest by `bksdm build "
                             "--tune`), onnxruntime:cuda, onnxruntime:tensorrt, or tensorrt-rtx or "
                             "tensorrt after `bksdm build` (default: onnxruntime)")  # fmt: skip
    parser.add_argument("--threads", type=threads, metavar="N",
                        help="CPU threads (default: physical cores)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Make the pictures and print their paths."""
    check_outputs([options.output, options.animate])

    from tqdm import tqdm

    from bksdm.cli.step_pictures import StepPictures
    from bksdm.engines.registry import capabilities
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.images import open_picture, save_png, to_pil
    from bksdm.runtime.memory import require_memory
    from bksdm.runtime.pipeline import TextToImage
    from bksdm.runtime.request import Request
    from bksdm.runtime.sampling import Step

    bundle, engine = Bundle.open(options.model), capabilities(options.engine)
    # A mistake is refused here rather than after gigabytes are loaded.
    with _flags_named(options):
        config = picture_options(options)
        inputs = {
            name: None if path is None else open_picture(path)
            for name, path in (("image", options.image), ("mask", options.mask))
        }
        request = Request.resolve(bundle, engine, config, **inputs)
        if not (options.force or engine.on_device):
            require_memory(bundle, request.shape, request.guidance is not None, options.engine)
    check_numbered([options.output, options.animate], request.shape[0])
    steps = StepPictures(options.decode_steps, options.preview, options.save_steps, options.animate)
    with options_named():
        model = TextToImage.load(
            bundle, options.engine, options.threads, safety_checker=not options.no_safety_checker
        )
    if steps.wanted and not options.decode_steps:
        _ = model.preview
    # The delay keeps the bar away from a request that is refused before its first step.
    with closing(steps), tqdm(desc="denoise", unit="step", leave=False, delay=0.01) as bar:

        def show(step: Step) -> None:
            bar.total = step.total
            bar.update()
            if steps.wanted:
                steps.add(model, step)

        result = model.generate(request, show)
        images = to_pil(result.pixels)
        unfit = result.nsfw_content_detected or [False] * len(images)
        steps.finish(images, unfit)
    told = results([options.output, options.animate])
    beside = _recorded_beside(options, bundle, result)
    for index, image in enumerate(images):
        path = numbered(options.output, index)
        if unfit[index]:
            warnings.warn(
                f"{path} is not written: the safety checker found the picture unfit; take another "
                "seed or prompt, or --no-safety-checker",
                stacklevel=1,
            )
            continue
        save_png(image, path, {**recorded(result.config, index), **beside, "index": str(index)})
        print_path(path, told)
    for path in steps.animate(images, unfit):
        print_path(path, told)
    return 1 if all(unfit) else 0


def _flags_named(options: argparse.Namespace) -> AbstractContextManager[None]:
    return options_named(**({} if options.size is None else SIZE))


def _recorded_beside(options: argparse.Namespace, bundle: Bundle, result: Result) -> dict[str, str]:
    """Return the other values that a picture carries, so that it can be made again."""
    prompts = result.config.prompts
    engines = dict.fromkeys(result.engines.values())
    stated = {
        # Which noise an image has depends on those beside it.
        "batch": json.dumps(prompts) if len(prompts) > 1 else None,
        "scheduler": bundle.scheduler.get("_class_name"),
        "image": options.image and options.image.name,
        "mask": options.mask and options.mask.name,
        "safety_checker": _checked(bundle, result),
        "engine": ", ".join(engines) if len(engines) == 1 else ", ".join(
            f"{network}: {engine}" for network, engine in result.engines.items()
        ),
        "model": bundle.path.resolve().name,
        "model_digest": bundle.digest(),
        "version": version("bksdm-runtime"),
    }  # fmt: skip
    return {name: str(value) for name, value in stated.items() if value is not None}


def _checked(bundle: Bundle, result: Result) -> str:
    """Return whether pictures were checked, and if not, why."""
    if result.nsfw_content_detected is not None:
        return "passed"
    return "off" if bundle.has_safety_checker else "the model has none"
