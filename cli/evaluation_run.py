"""Measure the pictures of a file of prompts, and score them when all are there."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bksdm.cli.arguments import SIZE, options_named
from bksdm.cli.drawing import load_model, warn_of_unknown
from bksdm.cli.idle_options import warn_of_idle
from bksdm.cli.outputs import check_folder
from bksdm.cli.picture_options import shared_options
from bksdm.cli.progress import Progress, progress
from bksdm.cli.prompt_file import LineErrors, read_prompts
from bksdm.cli.run_scores import require_extra, score_run
from bksdm.cli.text import printable
from bksdm.engines.errors import RequestError
from bksdm.engines.registry import capabilities
from bksdm.evaluate.evaluation import (
    TIMED,
    Cost,
    Done,
    measure_missing,
    part_of,
    require_one_picture,
)
from bksdm.evaluate.gaussians import Gaussian
from bksdm.evaluate.protocol import FEATURES, GUIDANCE, SPLITS, as_scored
from bksdm.evaluate.run_folder import COUNT, RunFolder
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.generation_config import OPTIONS, GenerationConfig
from bksdm.runtime.precision_choice import precision_for
from bksdm.runtime.request import Request
from bksdm.runtime.samplers.names import meaning
from bksdm.storage.graph_file import GraphFile

if TYPE_CHECKING:
    from bksdm.evaluate.measures import Measures
    from bksdm.evaluate.networks import Networks, Weights
    from bksdm.runtime.pipeline import TextToImage

ESTIMATES = 10
"""Of the scores, while pictures are measured."""
ROUGH = 4
"""Resamples of such an estimate."""
DRAWING = ("unet", "text_encoder", "vae_decoder")
"""The networks whose parameters the card counts."""


def measure_prompts(options: argparse.Namespace) -> int:
    """Measure what is missing, and print the scores if nothing is missing then."""
    require_extra()
    if options.output is None or options.reference is None:
        raise RequestError("--prompts needs --reference FILE.npz and -o DIR")
    check_folder(options.output)
    reference = Gaussian.read(options.reference, FEATURES)
    options.no_safety_checker = True
    bundle = Bundle.open(options.bundle)
    options.engine = engine_for(bundle, options.engine)
    shared = shared_options(options)
    if shared["guidance_scale"] is None:
        shared["guidance_scale"] = GUIDANCE
    prompts = _prompts(options, bundle, shared)
    weights = _weights(options)
    run = RunFolder.begin(options.output, _settings(options, bundle, shared, prompts, weights))
    part = part_of(len(prompts), *(options.shard or (1, 1)))
    there = set(run.there())
    missing = [index for index in part if index not in there]
    if missing:
        warn_of_unknown(bundle, [prompts[index].prompts[0] for index in missing])
        networks = weights.load(options.threads)
        model = load_model(options, bundle)
        with progress(f"{len(missing)} pictures", "picture", len(missing)) as bar:
            done = measure_missing(run, prompts, part, partial(_measure, model, networks))
            _follow(run, reference, done, len(missing), bar)
    left = run.count - len(run.there())
    if left:
        print(
            f"{len(part)} of {run.count} pictures are measured in {run.path}; {left} are missing, "
            "of other shards; --merge puts them together",
            file=sys.stderr,
        )
        return 0
    return score_run(run, reference, options)


def _weights(options: argparse.Namespace) -> Weights:
    from bksdm.evaluate.networks import Weights
    from bksdm.evaluate.protocol import CLIP_MODEL

    return Weights(options.inception, options.clip, options.clip_model or CLIP_MODEL)


def _prompts(
    options: argparse.Namespace, bundle: Bundle, shared: dict[str, Any]
) -> list[GenerationConfig]:
    """Return what is drawn, as it will be carried out."""
    errors = LineErrors(options.prompts)
    able = capabilities(options.engine)
    prompts = []
    with options_named(**SIZE):
        for line in read_prompts(options.prompts, shared, errors):
            with errors.of(line.number):
                require_one_picture(line.config)
                prompts.append(Request.resolve(bundle, able, line.config).config)
    errors.refuse()
    if len(prompts) < SPLITS:
        raise RequestError(
            f"{options.prompts}: {len(prompts)} prompts; the inception score is a mean of "
            f"{SPLITS} parts, which needs as many at least"
        )
    return prompts


def _settings(
    options: argparse.Namespace,
    bundle: Bundle,
    shared: dict[str, Any],
    prompts: Sequence[GenerationConfig],
    weights: Weights,
) -> dict[str, Any]:
    """Return all that the measures depend on."""
    able = capabilities(options.engine)
    config = GenerationConfig("", **{**shared, "seed": shared["seed"] or 0})
    warn_of_idle(config, bundle)
    carried_out = config.resolve(bundle, able).to_dict()
    lines = json.dumps([prompt.to_dict() for prompt in prompts])
    counts = [GraphFile.read(bundle.model(name)).parameters for name in DRAWING]
    own = bundle.scheduler.get("_class_name")
    return {
        "model": bundle.path.resolve().name,
        "model_digest": bundle.digest(),
        "engine": options.engine,
        "precision": precision_for(bundle, options.precision, able),
        "scheduler": meaning(config.sampler)[0] if config.sampler else own,
        **{name: carried_out[name] for name in OPTIONS if name != "prompt"},
        COUNT: len(prompts),
        "prompts_digest": hashlib.sha256(lines.encode()).hexdigest(),
        **weights.described(),
        "version": version("bksdm-runtime"),
        "unet_parameters": counts[0],
        "parameters": sum(counts),
    }


def _measure(model: TextToImage, networks: Networks, config: GenerationConfig) -> Measures:
    pixels = model.generate(model.request(config)).pixels[0]
    return networks(as_scored(pixels), config.prompts[0])


def _follow(
    run: RunFolder,
    reference: Gaussian,
    done: Iterable[Done],
    pictures: int,
    bar: Progress,
) -> None:
    """Show how far it is, what the rest will cost, and what the scores are so far."""
    timed: list[Done] = []
    part = 0
    for number, each in enumerate(done, 1):
        bar.update(1)
        left = pictures - number
        if number <= TIMED:
            timed.append(each)
            if left and number == TIMED:
                cost = Cost.of(timed, left)
                cost.require_disk(run)
                _tell(bar, f"{run.path}: {cost.shown()}")
        # An interval needs some pictures.
        if left and number >= TIMED and number * ESTIMATES // pictures > part:
            part = number * ESTIMATES // pictures
            _tell(bar, _so_far(run, reference))


def _so_far(run: RunFolder, reference: Gaussian) -> str:
    from bksdm.evaluate.scores import clip_score, scores

    there = run.there()
    measures = run.read(there)
    told = f"{len(there)} of {run.count} pictures: "
    if len(there) <= len(reference.mu):
        return f"{told}CLIP score {clip_score(measures.similarity).shown(4)}"
    fid, inception, clip = scores(measures, reference, ROUGH).shown()
    return f"{told}FID {fid}, IS {inception}, CLIP score {clip}"


def _tell(bar: Progress, line: str) -> None:
    bar.clear()
    print(printable(line), file=sys.stderr, flush=True)
