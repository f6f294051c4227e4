"""Draw a file of prompts with workers, follow them, and list what they have drawn."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bksdm.batch.drawer import Outcome, Setup
from bksdm.batch.places import Bucket, Folder, Place, open_place
from bksdm.batch.processes import draw_with_processes
from bksdm.batch.throughput import throughput
from bksdm.cli.arguments import options_named
from bksdm.cli.checked_prompts import CheckedPrompts
from bksdm.cli.drawing import loading, warn_of_unknown
from bksdm.cli.lora_files import lora_files
from bksdm.cli.manifest import Entry, listing
from bksdm.cli.outputs import check_folder
from bksdm.cli.progress import progress
from bksdm.engines.registry import capabilities
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.memory import free_bytes, needed_bytes
from bksdm.runtime.picture_formats import PictureFormat
from bksdm.runtime.processors import usable_processors
from bksdm.runtime.recorded import Recorder
from bksdm.runtime.user_files import STDIN


def draw_batch(options: argparse.Namespace) -> int:
    """Draw what is missing, print the paths of all pictures, and list them."""
    place = open_place(options.output)
    if isinstance(place, Folder):
        check_folder(Path(options.output))
    with options_named(quality="--quality", lossless="--lossless"):
        chosen = PictureFormat(options.format.upper(), options.quality, options.lossless)
    target = options.output
    if options.ray is not None:
        # Workers may have another working directory.
        options.model = options.model.absolute()
        target = target if isinstance(place, Bucket) else str(Path(target).absolute())
    checked = CheckedPrompts(options, chosen)
    warn_of_unknown(checked.bundle, [text for job in checked.jobs for text in job.config.prompts])
    files = {name: (path.absolute(), scale) for name, (path, scale) in lora_files(options).items()}
    with options_named():
        setup = Setup(
            *(target, checked.bundle, checked.recorder, chosen, loading(options)),
            inputs=checked.inputs,
            loras=files,
        )
    draw = _with_processes if options.ray is None else _with_ray
    start = time.perf_counter()
    try:
        with closing(draw(options, setup, checked)) as drawing:
            outcomes = list(_followed(drawing, checked, place))
    finally:
        place.clear()
    name = "prompts" if options.prompts == STDIN else options.prompts.stem
    configs = {job.line: job.config for job in checked.jobs}
    entries = [
        entry
        for outcome in outcomes
        for entry in _entries(outcome, configs[outcome.line], checked.recorder)
    ]
    place.publish(f"{name}.manifest.jsonl", listing(entries).encode())
    for line in throughput(outcomes, time.perf_counter() - start):
        print(line, file=sys.stderr)
    drawn = sum(outcome.drawn for outcome in outcomes)
    print(f"{drawn} drawn, {len(entries) - drawn} already there", file=sys.stderr)
    return 0 if entries else 1


def _with_processes(
    options: argparse.Namespace, setup: Setup, checked: CheckedPrompts
) -> Generator[Outcome]:
    count = options.processes or _processes(options, checked)
    threads = options.threads or max(1, usable_processors() // count)
    setup = replace(setup, loading={**setup.loading, "threads": threads})
    return draw_with_processes(setup, checked.jobs, count)


def _processes(options: argparse.Namespace, checked: CheckedPrompts) -> int:
    """Return how many there are processors and memory for."""
    if capabilities(options.engine).on_device:
        return 1
    count = usable_processors() // (options.threads or 1)
    free = free_bytes()
    if free is not None:
        kinds = {(job.shape, job.controlnets) for job in checked.jobs}
        needed = (
            needed_bytes(checked.bundle, shape, True, controlnets=nets, alone=False)
            for shape, nets in kinds
        )
        count = min(count, free // max(needed))
    return max(1, min(count, len(checked.jobs)))


def _with_ray(
    options: argparse.Namespace, setup: Setup, checked: CheckedPrompts
) -> Generator[Outcome]:
    import ray

    from bksdm.batch.ray import draw_with_ray

    threads = options.threads or 1
    setup = replace(setup, loading={**setup.loading, "threads": threads})
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.init(
        options.ray, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
    )
    try:
        count = options.processes or max(1, int(ray.cluster_resources()["CPU"]) // threads)
        yield from draw_with_ray(setup, checked.jobs, count, threads)
    finally:
        ray.shutdown()


def _followed(
    drawing: Iterator[Outcome], checked: CheckedPrompts, place: Place
) -> Iterator[Outcome]:
    """Print the paths of pictures as they are there, and warn of those that are not."""
    total = sum(job.config.images for job in checked.jobs)
    with progress(f"{len(checked.jobs)} prompts", "picture", total) as bar:
        for outcome in drawing:
            bar.update(len(outcome.files))
            bar.clear()
            for file, digest in zip(outcome.files, outcome.sha256, strict=True):
                if digest:
                    print(place.path(file), flush=True)
                else:
                    warnings.warn(
                        f"line {outcome.line}: a picture is not written: the safety checker found "
                        "it unfit; take another seed or prompt, or --no-safety-checker",
                        stacklevel=1,
                    )
            yield outcome


def _entries(outcome: Outcome, config: GenerationConfig, recorder: Recorder) -> Iterator[Entry]:
    for index, (file, digest) in enumerate(zip(outcome.files, outcome.sha256, strict=True)):
        own = recorder.record(config, index).own
        if digest:
            options, model = config.to_dict(), own["model"]
            yield Entry(file, digest, outcome.line, index, options, model, own["model_digest"])
