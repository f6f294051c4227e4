"""Score the built-in model, or a bundle made of it, and print what was found."""

from __future__ import annotations

import argparse
from typing import Any

from bksdm.cli.arguments import SIZE, options_named
from bksdm.cli.drawing import load_model
from bksdm.cli.idle_options import warn_of_idle
from bksdm.cli.picture_options import shared_options
from bksdm.cli.progress import progress
from bksdm.cli.text import as_json
from bksdm.engines.errors import RequestError
from bksdm.engines.registry import capabilities
from bksdm.evaluate.emoji import GUIDANCE, check_bundle, evaluate_emoji, requests
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.request import Request


def score_emoji(options: argparse.Namespace) -> int:
    """Draw, judge and print."""
    bundle = Bundle.open(options.bundle)
    check_bundle(bundle)
    options.engine = engine_for(bundle, options.engine)
    options.no_safety_checker = True
    with options_named(**SIZE):
        config = _config(options)
        batches = requests(config)
        # What is refused, is refused before anything is loaded.
        Request.resolve(bundle, capabilities(options.engine), batches[0])
    warn_of_idle(config, bundle)
    model = load_model(options, bundle)
    with progress("pictures", "picture", sum(batch.images for batch in batches)) as bar:
        scores = evaluate_emoji(model, config, bar.update)
    described: dict[str, Any] = {
        "model": bundle.path.resolve().name,
        "model_digest": bundle.digest(),
        "engine": options.engine,
        "precision": model.precision,
        "options": {k: v for k, v in config.to_dict().items() if k != "prompt"},
        "scores": scores.fields(),
    }
    if options.json:
        print(as_json(described))
        return 0
    how = f"{model.precision} on {options.engine}, {config.num_inference_steps} steps, "
    print(f"{described['model']}: {how}guidance {config.guidance_scale:g}, fast {config.fast}")
    for name, value in (
        ("objects recognised", f"{scores.recognised} of {scores.pictures}"),
        ("backgrounds as asked", f"{scores.backgrounds} of {scores.pictures}"),
        ("lead of the right label", f"{scores.margin:.3f}"),
        ("seeds apart, of objects apart", f"{scores.diversity:.1%}"),
        ("distance from the reference", f"{scores.fid:.5f}"),
    ):
        print(f"  {name:<32}{value}")
    return 0


def _config(options: argparse.Namespace) -> GenerationConfig:
    given = shared_options(options)
    if given["guidance_scale"] is None:
        given["guidance_scale"] = GUIDANCE
    if not isinstance(given["seed"], int | None):
        raise RequestError("--seed takes one number here, from which those of the pictures follow")
    return GenerationConfig("", **given)
