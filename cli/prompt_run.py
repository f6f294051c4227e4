"""Draw every line of a file of prompts that is not drawn yet."""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from bksdm.cli.drawing import flags_named, input_paths, load_model, open_inputs, warn_of_unknown
from bksdm.cli.idle_options import warn_of_idle
from bksdm.cli.lora_files import read_loras
from bksdm.cli.manifest import Entry, Manifest
from bksdm.cli.output_pattern import OutputPattern
from bksdm.cli.outputs import check_folder, check_outputs, numbered, print_path
from bksdm.cli.picture_options import shared_options
from bksdm.cli.progress import Progress, counted, progress
from bksdm.cli.prompt_file import LineErrors, PromptLine, read_prompts
from bksdm.cli.written_pictures import check_record, chosen_format, write_pictures
from bksdm.engines.errors import RequestError
from bksdm.engines.registry import capabilities
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.images import UNREADABLE
from bksdm.runtime.memory import require_memory
from bksdm.runtime.picture_record import record_of
from bksdm.runtime.recorded import DRAWN, Recorder
from bksdm.runtime.request import Request
from bksdm.runtime.user_files import STDIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bksdm.runtime.pipeline import TextToImage


@dataclass(frozen=True)
class Job:
    """A line, as it will be carried out.

    Attributes
    ----------
    line : int
        Its number.
    config : GenerationConfig
        With every default filled in.
    path : Path
        Of its first picture.
    steps : int
        Evaluations of the UNet.
    """

    line: int
    config: GenerationConfig
    path: Path
    steps: int


class PromptRun:
    """Lines of a file that are checked, and where their pictures go.

    Parameters
    ----------
    options : Namespace
        Of ``bksdm generate``.

    Raises
    ------
    RequestError, SamplerError, BundleError, EngineError
        Something is refused; nothing has been written.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pattern = OutputPattern.read(options.output)
        self.manifest = Manifest(self.pattern.folder)
        self.chosen = chosen_format(self.pattern.path(1), options.quality, options.lossless)
        check_folder(self.pattern.folder)
        errors = LineErrors(options.prompts)
        with flags_named(options):
            lines = read_prompts(options.prompts, shared_options(options), errors)
            self.inputs = open_inputs(options)
        self.bundle = Bundle.open(options.model)
        options.engine = engine_for(self.bundle, options.engine)
        self.loras = read_loras(options, self.bundle, capabilities(options.engine))
        self.recorder = Recorder(self.bundle, input_paths(options), self.inputs, self.chosen)
        jobs: list[Job] = []
        for line in lines:
            with errors.of(line.number):
                jobs.append(self._job(line))
        errors.refuse()
        self.manifest.entries()
        for line in lines:
            warn_of_idle(line.config, self.bundle)
        self.images = {job.line: job.config.images for job in jobs}
        part, parts = options.shard or (1, 1)
        self.jobs = jobs[part - 1 :: parts]

    def request(self, config: GenerationConfig) -> Request:
        """Return the request of a line."""
        engine = capabilities(self.options.engine)
        return Request.resolve(self.bundle, engine, config, loras=self.loras, **self.inputs)

    def _job(self, line: PromptLine) -> Job:
        request = self.request(line.config)
        if not (self.options.force or capabilities(self.options.engine).on_device):
            guided = request.guidance is not None
            require_memory(self.bundle, request.shape, guided, self.options.engine)
        config, path = request.config, self.pattern.path(line.number)
        check_record(self.recorder, config, self.chosen)
        if self.pattern.folder.is_dir():
            check_outputs([numbered(path, config.images - 1)])
        return Job(line.number, config, path, len(request.table))

    def entry(self, job: Job, index: int, content: bytes) -> Entry:
        """Return how a picture of a line is listed."""
        own = self.recorder.record(job.config, index).own
        return Entry(
            numbered(job.path, index).name,
            hashlib.sha256(content).hexdigest(),
            job.line,
            index,
            job.config.to_dict(),
            own["model"],
            own["model_digest"],
        )

    def there(self, job: Job, listed: Mapping[str, Entry]) -> list[Entry] | None:
        """Return the pictures of a line if all of them are there, whole and with equal options."""
        entries = []
        for index in range(job.config.images):
            file = numbered(job.path, index)
            content = file.read_bytes() if file.is_file() else b""
            wanted = self.recorder.record(job.config, index).own
            entry = self.entry(job, index, content)
            changed = file.name in listed and listed[file.name].sha256 != entry.sha256
            if changed or not _carries(content, wanted):
                return None
            entries.append(entry)
        return entries

    def draw(self, job: Job, model: TextToImage, bar: Progress) -> list[Path]:
        """Draw a line, and return the pictures that are written."""
        result = model.generate(self.request(job.config), progress=counted(bar))
        files = list(write_pictures(result, self.recorder, job.path, self.chosen))
        places = {numbered(job.path, index): index for index in range(job.config.images)}
        self.manifest.add(self.entry(job, places[file], file.read_bytes()) for file in files)
        return files


def draw_prompts(options: argparse.Namespace) -> int:
    """Draw what is missing, and print the paths of the pictures."""
    _refuse_both(options)
    run = PromptRun(options)
    run.pattern.folder.mkdir(parents=True, exist_ok=True)
    check_outputs([run.manifest.path], text=True)
    listed = run.manifest.entries()
    found = [run.there(job, listed) for job in run.jobs]
    warn_of_left_over(run, listed.values())
    kept = [entry for entries in found for entry in entries or ()]
    missing = [job for job, entries in zip(run.jobs, found, strict=True) if entries is None]
    run.manifest.add(kept)
    drawn = 0
    if missing:
        warn_of_unknown(run.bundle, [text for job in missing for text in job.config.prompts])
        model = load_model(options, run.bundle)
        total = sum(job.steps for job in missing)
        with progress(f"{len(missing)} prompts", "step", total) as bar:
            for job in missing:
                files = run.draw(job, model, bar)
                drawn += len(files)
                bar.clear()
                for file in files:
                    print_path(file, sys.stdout)
                # For whoever follows a pipe.
                sys.stdout.flush()
    print(f"{drawn} drawn, {len(kept)} already there", file=sys.stderr)
    return 0 if drawn or not missing else 1


def warn_of_left_over(run: PromptRun, listed: Iterable[Entry]) -> None:
    """Warn of pictures that were drawn for lines, or images of lines, that are gone."""
    left = [
        entry.file
        for entry in listed
        if entry.index >= run.images.get(entry.line, 0)
        # Another file of prompts may draw into the same folder by other names.
        and entry.file == numbered(run.pattern.path(entry.line), entry.index).name
    ]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        warnings.warn(
            f"{run.pattern.folder}: {left[0]}{more} of an earlier run are of no line of "
            f"{run.options.prompts}; they are left there",
            stacklevel=1,
        )


def _refuse_both(options: argparse.Namespace) -> None:
    if options.prompt or options.more_prompts:
        raise RequestError("prompts come from the command or from --prompts, not from both")
    if options.output is None:
        raise RequestError("--prompts needs -o FOLDER, or a pattern as -o pictures/{line}.jpg")
    if options.prompts == STDIN and STDIN in input_paths(options).values():
        raise RequestError("standard input cannot be both --prompts and a picture")


def _carries(content: bytes, wanted: Mapping[str, str]) -> bool:
    """Return whether a file is a whole picture that was drawn with the wanted options."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            own = record_of(image).own
            image.load()
    except UNREADABLE:
        return False
    return {k: v for k, v in own.items() if k not in DRAWN} == {
        k: v for k, v in wanted.items() if k not in DRAWN
    }
