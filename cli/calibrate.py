"""``bksdm calibrate``: check whether a model fits into float16, and what accuracy that costs."""

from __future__ import annotations

import argparse
import math
from contextlib import redirect_stdout
from typing import Any

from bksdm.cli.arguments import SIZE, bundle_path, integer, options_named, output_file
from bksdm.cli.outputs import check_outputs, results
from bksdm.cli.text import as_json, printable

EXAMPLES = """examples:
  bksdm calibrate bundle-fp32/
  bksdm calibrate bundle-fp32/ --half bundle-fp16/ --steps 2 --json ranges.json

Draws a picture with a float32 bundle on the CPU and reports the largest magnitude of every tensor
on the way. With --half, the float16 bundle of the same checkpoint runs on the inputs of the first
and of the last step, every tensor rounded to float16. Exits 1 where float16 overflows.
"""
SHOWN = 5
SEED = 0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundle", type=bundle_path, metavar="BUNDLE", help="folder of a float32 bundle, or emoji"
    )
    parser.add_argument(
        "--half",
        type=bundle_path,
        metavar="BUNDLE16",
        help="float16 bundle of the same checkpoint, to compare with",
    )
    parser.add_argument("--prompt", default="a red apple", metavar="TEXT", help="what to draw")
    parser.add_argument(
        "--steps", type=integer, default=10, metavar="N", help="denoising steps (default: 10)"
    )
    parser.add_argument("--sampler", metavar="NAME", help="default: the model's own")
    parser.add_argument("--size", metavar="WxH", help="pixels (default: the model's size)")
    parser.add_argument(
        "--json",
        type=output_file,
        metavar="FILE",
        help="write every tensor's largest magnitude, - for standard output",
    )


def run(options: argparse.Namespace) -> int:
    """Print a table per network; exit 1 where float16 overflows."""
    from bksdm.cli.extras import require

    require("onnx", "optimize")
    from bksdm.cli.picture_options import parse_size
    from bksdm.engines.registry import DEFAULT, capabilities
    from bksdm.optimize.half import LARGEST
    from bksdm.optimize.ranges import half_error
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.generation_config import GenerationConfig
    from bksdm.runtime.request import Request
    from bksdm.runtime.user_files import write_text

    check_outputs([options.json], text=True)
    bundle = Bundle.open(options.bundle)
    half = None if options.half is None else Bundle.open(options.half)
    width, height = (None, None) if options.size is None else parse_size(options.size)
    report: dict[str, Any] = {}
    with options_named(**SIZE):
        config = GenerationConfig(
            options.prompt,
            height=height,
            width=width,
            num_inference_steps=options.steps,
            seed=SEED,
            sampler=options.sampler,
        )
        request = Request.resolve(bundle, capabilities(DEFAULT), config)
    engines = _run(bundle, request)
    with redirect_stdout(results([options.json])):
        for name, engine in engines.items():
            largest = engine.largest
            beyond = [tensor for tensor, value in largest.items() if not value <= LARGEST]
            report[name] = {"largest": largest, "beyond_float16": beyond}
            print(f"{name}: {len(largest)} tensors, {len(beyond)} beyond float16's {LARGEST:.0f}")
            for tensor, value in list(largest.items())[: max(SHOWN, len(beyond))]:
                overflows = "  overflows" if tensor in beyond else ""
                print(f"  {value:12.5g}  {printable(tensor)}{overflows}")
            if half is not None and name in half.components:
                errors = half_error(half.model(name), [engine.first, engine.last])
                report[name]["relative_l2_of_half"] = errors
                first, last = errors
                print(
                    f"  float16: relative L2 {first:.2e} in the first call, {last:.2e} in the last"
                )
    if options.json is not None:
        write_text(options.json, as_json(report) + "\n")
    finite = all(
        math.isfinite(error)
        for entry in report.values()
        for error in entry.get("relative_l2_of_half", ())
    )
    return 0 if finite and not any(entry["beyond_float16"] for entry in report.values()) else 1


def _run(bundle: Any, request: Any) -> dict[str, Any]:
    """Draw a picture and encode it again; return the engines, which recorded magnitudes."""
    import numpy as np

    from bksdm.cli.progress import progress
    from bksdm.optimize.ranges import RangeEngine
    from bksdm.runtime.bundle import DECODERS, TINY
    from bksdm.runtime.host import HostExecutor
    from bksdm.runtime.network_tensors import require_tensors
    from bksdm.runtime.noise_predictor import NoisePredictor
    from bksdm.runtime.pipeline import TextToImage
    from bksdm.runtime.prompt_encoder import PromptEncoder
    from bksdm.runtime.sampling import Step
    from bksdm.runtime.tokenizer import Tokenizer

    models = {name: bundle.model(name) for name in bundle.components}
    engines = {name: require_tensors(RangeEngine(model), model) for name, model in models.items()}
    tokenizer = Tokenizer.load(bundle.path / "tokenizer")
    encode = PromptEncoder(tokenizer, lambda skipped: engines["text_encoder"])
    executor = HostExecutor(
        encode, NoisePredictor(engines["unet"]), engines["vae_decoder"], bundle.scaling_factor
    )
    latents: list[Any] = []
    with progress("calibrate", "step", delay=0.01) as bar:

        def show(step: Step) -> None:
            bar.total = step.total
            bar.update()
            latents[:] = [step.latents]

        pixels = TextToImage(bundle, executor).generate(request, show).pixels
    if "vae_encoder" in engines:
        picture = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        engines["vae_encoder"]({"sample": picture})
    if (tiny := engines.get(DECODERS[TINY])) is not None:
        tiny({"latent_sample": latents[0] / np.float32(bundle.decoder_scaling(TINY))})
    return engines
