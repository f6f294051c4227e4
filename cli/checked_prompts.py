"""Lines of a file of prompts, checked before the first is drawn."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from bksdm.batch.job import Job
from bksdm.cli.drawing import flags_named, input_paths, open_inputs
from bksdm.cli.idle_options import warn_of_idle
from bksdm.cli.lora_files import read_loras
from bksdm.cli.picture_options import shared_options
from bksdm.cli.prompt_file import LineErrors, PromptLine, read_prompts
from bksdm.cli.written_pictures import check_record
from bksdm.engines.errors import RequestError
from bksdm.engines.registry import capabilities
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.memory import require_memory
from bksdm.runtime.picture_formats import PictureFormat
from bksdm.runtime.recorded import Recorder
from bksdm.runtime.request import Request
from bksdm.runtime.user_files import STDIN


class CheckedPrompts:
    """Lines of ``--prompts`` that can be drawn, and what they are drawn with.

    Parameters
    ----------
    options : Namespace
        Of the command; ``engine`` becomes the one that ``auto`` stands for.
    chosen : PictureFormat
        Of the pictures.
    check : callable
        Checks a job further.

    Attributes
    ----------
    bundle : Bundle
        The model.
    inputs : dict
        The pictures that all lines start from.
    loras : Loras
        Those of the command.
    recorder : Recorder
        Says what pictures carry.
    jobs : list of Job
        In the order of the lines.

    Raises
    ------
    RequestError, SamplerError, BundleError, EngineError
        Something is refused; bad lines all at once.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        chosen: PictureFormat,
        check: Callable[[Job], None] = lambda job: None,
    ) -> None:
        pictures = [options.image, options.mask, *(path for _, path in options.control_image)]
        if options.prompts == STDIN and STDIN in pictures:
            raise RequestError("standard input cannot be both --prompts and a picture")
        self._options = options
        self._fitting: set[tuple[tuple[int, int, int, int], bool, tuple[str, ...]]] = set()
        errors = LineErrors(options.prompts)
        with flags_named(options):
            lines = read_prompts(options.prompts, shared_options(options), errors)
            self.inputs = open_inputs(options)
        self.bundle = Bundle.open(options.model)
        options.engine = engine_for(self.bundle, options.engine)
        self.loras = read_loras(options, self.bundle, capabilities(options.engine))
        self.recorder = Recorder(self.bundle, input_paths(options), self.inputs, chosen)
        self.jobs: list[Job] = []
        for line in lines:
            with errors.of(line.number):
                job = self._job(line)
                check_record(self.recorder, job.config, chosen)
                check(job)
                self.jobs.append(job)
        errors.refuse()
        for line in lines:
            warn_of_idle(line.config, self.bundle)

    def request(self, config: GenerationConfig) -> Request:
        """Return the request of a line."""
        engine = capabilities(self._options.engine)
        return Request.resolve(self.bundle, engine, config, loras=self.loras, **self.inputs)

    def _job(self, line: PromptLine) -> Job:
        request = self.request(line.config)
        names = tuple(control.name for control in request.controls)
        kind = request.shape, request.guidance is not None, names
        spared = self._options.force or capabilities(self._options.engine).on_device
        if not (spared or kind in self._fitting):
            shape, guided, _ = kind
            require_memory(self.bundle, shape, guided, self._options.engine, request.controls)
            # It reads all graphs, which for each of many lines would take long.
            self._fitting.add(kind)
        return Job(line.number, request.config, request.shape, len(request.table), names)
