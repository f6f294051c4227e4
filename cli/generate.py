"""``bksdm generate``: make pictures from a prompt."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bksdm.cli.arguments import (
    input_file,
    integer,
    named_path,
    options_named,
    output_file,
    real,
    threads,
)
from bksdm.cli.outputs import check_numbered, check_outputs, numbered, print_path, results
from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI
from bksdm.runtime.checks import shown

if TYPE_CHECKING:
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.pipeline import Result

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
    parser.add_argument("prompt", nargs="+", help="what to draw; several are drawn in one batch")
    parser.add_argument("--model", type=named_path, default=EMOJI, metavar="BUNDLE",
                        help="bundle folder; by default the built-in model of a few dozen objects"
                        )  # fmt: skip
    parser.add_argument("-o", "--output", type=output_file, default=Path("image.png"),
                        metavar="FILE",
                        help="PNG to write, - for standard output; further images get -2, -3 …"
                        )  # fmt: skip
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to avoid")
    parser.add_argument("--steps", type=integer, default=25, help="inference steps (default 25)")
    parser.add_argument("--guidance", type=real, default=7.5, help="guidance scale (default 7.5)")
    parser.add_argument("--guidance-rescale", type=real, default=0.0, metavar="PART",
                        help="bring back the deviation that guidance adds, 0 to 1 (default 0)"
                        )  # fmt: skip
    parser.add_argument("--guidance-interval", default="0:1", metavar="FROM:TO",
                        help="guidance in this part of the steps only, which is faster, e.g. 0:0.8"
                        )  # fmt: skip
    parser.add_argument("--seed", metavar="N[,N…]",
                        help="-2^63 to 2^64-1, one for all images or one for each; random by "
                             "default")  # fmt: skip
    parser.add_argument(
        "--size", metavar="WxH", help="pixels, e.g. 512x512; the model's by default"
    )
    parser.add_argument("--count", type=integer, default=1, help="number of images (default 1)")
    parser.add_argument("--sampler",
                        help="as `bksdm samplers` lists them; the bundle's own by default"
                        )  # fmt: skip
    parser.add_argument("--eta", type=real, default=0.0,
                        help="noise of ddim and tcd in every step, 0 to 1 (default 0)")  # fmt: skip
    parser.add_argument("--prompt-weights", action="store_true",
                        help="(text:1.3), (text) and [text] weigh what they enclose")  # fmt: skip
    parser.add_argument("--long-prompt", action="store_true",
                        help="encode what is beyond 77 tokens too, not cut it off")  # fmt: skip
    parser.add_argument("--clip-skip", type=integer, default=0, metavar="N",
                        help="leave out the text encoder's last N layers for the prompt "
                             "(default 0)")  # fmt: skip
    parser.add_argument("--fast", type=integer, default=0, metavar="LEVEL",
                        help="1 to 3: less work for nearly the same picture (default 0: exact)"
                        )  # fmt: skip
    parser.add_argument("--image", type=input_file, metavar="FILE",
                        help="picture to start from, - for standard input")  # fmt: skip
    parser.add_argument("--strength", type=real, metavar="PART",
                        help="how much of --image may change, 0 to 1 (default 0.8; 1 with --mask)"
                        )  # fmt: skip
    parser.add_argument("--mask", type=input_file, metavar="FILE",
                        help="of --image only what is white here changes")  # fmt: skip
    parser.add_argument("--preview", action="store_true",
                        help="show what every step makes of the picture, in the terminal"
                        )  # fmt: skip
    parser.add_argument("--save-steps", type=named_path, metavar="DIR",
                        help="write what every step makes of the picture, in place of the steps of "
                             "an earlier run")  # fmt: skip
    parser.add_argument("--animate", type=output_file, metavar="FILE.webp",
                        help="write the steps as an animation")  # fmt: skip
    parser.add_argument("--decode-steps", action="store_true",
                        help="decode the steps by the VAE: exact, slow; by default a quick map"
                        )  # fmt: skip
    parser.add_argument("--no-safety-checker", action="store_true",
                        help="do not check the pictures, where the model could")  # fmt: skip
    parser.add_argument("--force", action="store_true",
                        help="begin even if the picture seems to need more memory than is free"
                        )  # fmt: skip
    parser.add_argument("--engine", default="onnxruntime",
                        help="onnxruntime or openvino (CPU), auto (the faster, once `bksdm build "
                             "--tune` has measured), onnxruntime:cuda, onnxruntime:tensorrt, or "
                             "what `bksdm build` made")  # fmt: skip
    parser.add_argument("--threads", type=threads, help="CPU threads (default: physical cores)")


def run(options: argparse.Namespace) -> int:
    """Make the pictures and print their paths."""
    check_outputs([options.output, options.animate])

    from tqdm import tqdm

    from bksdm.cli.step_pictures import StepPictures
    from bksdm.engines.registry import DEVICE_ENGINES
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.images import save_png
    from bksdm.runtime.memory import require_memory
    from bksdm.runtime.pipeline import TextToImage
    from bksdm.runtime.request import Request
    from bksdm.runtime.sampling import Step

    bundle = Bundle.open(options.model)
    arguments = _arguments(options)
    # A mistake is refused here rather than after gigabytes are loaded.
    with options_named():
        request = Request.check(bundle, options.prompt, **arguments)
        if not options.force and options.engine not in DEVICE_ENGINES:
            require_memory(bundle, request.shape, request.guidance is not None, options.engine)
    check_numbered([options.output, options.animate], request.shape[0])
    steps = StepPictures(options.decode_steps, options.preview, options.save_steps, options.animate)
    with options_named():
        model = TextToImage.load(
            options.model, options.engine, options.threads,
            safety_checker=not options.no_safety_checker,
        )  # fmt: skip
    if steps.wanted and not options.decode_steps:
        _ = model.preview
    # The delay keeps the bar away from a request that is refused before its first step.
    with closing(steps), tqdm(desc="denoise", unit="step", leave=False, delay=0.01) as bar:

        def show(step: Step) -> None:
            bar.total = step.total
            bar.update()
            if steps.wanted:
                steps.add(model, step)

        result = model(options.prompt, **arguments, callback_on_step_end=show)
        images = result.images
        unfit = result.nsfw_content_detected or [False] * len(images)
        steps.finish(images, unfit)
    told = results([options.output, options.animate])
    parameters = _parameters(options, bundle, result)
    for index, image in enumerate(images):
        path = numbered(options.output, index)
        if unfit[index]:
            warnings.warn(
                f"{path} is not written: the safety checker found the picture unfit; take another "
                "seed or prompt, or --no-safety-checker",
                stacklevel=1,
            )
            continue
        prompt = options.prompt[index // options.count]
        save_png(image, path, {"prompt": prompt, **parameters, "index": str(index)})
        print_path(path, told)
    for path in steps.animate(images, unfit):
        print_path(path, told)
    return 1 if all(unfit) else 0


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the pipeline is told beside the prompt."""
    from bksdm.runtime.images import open_picture

    width, height = (None, None) if options.size is None else parse_size(options.size)
    image, mask = (
        None if path is None else open_picture(path) for path in (options.image, options.mask)
    )
    return {
        "negative_prompt": options.negative,
        "height": height,
        "width": width,
        "num_inference_steps": options.steps,
        "guidance_scale": options.guidance,
        "num_images_per_prompt": options.count,
        "seed": None if options.seed is None else parse_seed(options.seed),
        "sampler": options.sampler,
        "eta": options.eta,
        "guidance_rescale": options.guidance_rescale,
        "guidance_interval": parse_interval(options.guidance_interval),
        "image": image,
        "strength": options.strength,
        "mask": mask,
        "prompt_weights": options.prompt_weights,
        "long_prompt": options.long_prompt,
        "clip_skip": options.clip_skip,
        "fast": options.fast,
    }


def _parameters(options: argparse.Namespace, bundle: Bundle, result: Result) -> dict[str, str]:
    """Return what a picture carries, so that it can be made again."""
    from bksdm.runtime.samplers import sampler_name

    own_sampler = bundle.scheduler.get("_class_name")
    stated = {
        # Which noise an image has depends on those beside it.
        "batch": json.dumps(options.prompt) if len(options.prompt) > 1 else None,
        "negative_prompt": options.negative,
        "seed": result.seed if isinstance(result.seed, int) else _listed(result.seed),
        "steps": options.steps,
        "guidance_scale": options.guidance,
        "guidance_rescale": options.guidance_rescale,
        "guidance_interval": options.guidance_interval,
        "prompt_weights": options.prompt_weights,
        "long_prompt": options.long_prompt,
        "clip_skip": options.clip_skip,
        "fast": options.fast,
        "sampler": sampler_name(options.sampler) if options.sampler else own_sampler,
        "eta": options.eta,
        "image": options.image and options.image.name,
        "strength": options.strength,
        "mask": options.mask and options.mask.name,
        "safety_checker": _checked(bundle, result),
        "engine": options.engine,
        "model": bundle.path.resolve().name,
        "model_digest": bundle.digest(),
        "version": version("bksdm-runtime"),
    }
    return {name: str(value) for name, value in stated.items() if value is not None}


def _checked(bundle: Bundle, result: Result) -> str:
    """Say whether pictures were checked, and if not, why."""
    if result.nsfw_content_detected is not None:
        return "passed"
    return "off" if bundle.has_safety_checker else "the model has none"


def _listed(seeds: Sequence[int] | None) -> str:
    return ",".join(map(str, seeds or ()))


def parse_seed(text: str) -> int | list[int]:
    """Return the number, or the numbers of ``N,N``.

    Raises
    ------
    RequestError
        The text has another form.
    """
    if re.fullmatch(r"-?[0-9]{1,99}(,-?[0-9]{1,99})*", text) is None:
        raise RequestError(f"--seed must look like 7 or 7,8,9, not {shown(text)}")
    first, *others = (int(part) for part in text.split(","))
    return [first, *others] if others else first


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of ``WxH``.

    Raises
    ------
    RequestError
        The text has another form.
    """
    match = re.fullmatch(r"([0-9]{1,99})[xX]([0-9]{1,99})", text)
    if match is None:
        raise RequestError(f"--size must look like 512x512, not {shown(text)}")
    return int(match[1]), int(match[2])


def parse_interval(text: str) -> tuple[float, float]:
    """Return the two numbers of ``FROM:TO``.

    Raises
    ------
    RequestError
        The text has another form.
    """
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise RequestError(
            f"--guidance-interval must look like 0:0.8, not {shown(text)}"
        ) from error
    return start, end
