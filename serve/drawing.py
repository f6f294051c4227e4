"""Pictures under way on an engine: a job that is driven step by step, then decoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import EngineError
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.sampling import Step, Watch
from bksdm.serve.ticket import Ticket

ON_HOST = "the server runs networks on the host: --engine onnxruntime, openvino or auto"


def host_executor(model: TextToImage) -> HostExecutor:
    """Return what runs a model's networks on host arrays.

    Raises
    ------
    EngineError
        The loop runs on a GPU, which this server does not drive yet.
    """
    executor = model.executor
    if not isinstance(executor, HostExecutor):
        raise EngineError(ON_HOST)
    return executor


class Drawing:
    """The pictures of one ticket.

    Parameters
    ----------
    ticket : Ticket
        Whose pictures.
    model : TextToImage
        Draws noise, encodes the prompts and the picture to start from.

    Attributes
    ----------
    denoising : HostDenoising
        Asked and told by whoever runs the UNet.
    turns : int
        Evaluations since it took its place.
    seconds : dict
        Wall time by stage.

    Raises
    ------
    BksdmError
        The request cannot be begun.
    """

    def __init__(self, ticket: Ticket, model: TextToImage) -> None:
        self.ticket = ticket
        self.turns = 0
        self.seconds: dict[str, float] = {}
        self._model = model
        self._pixels: list[NDArray[np.uint8]] = []
        watch = Watch(self._stepped, interrupted=lambda: ticket.interrupted)
        executor = host_executor(model)
        job = model.begin(ticket.request, self.seconds)
        self.denoising = executor.start(job, watch, self.seconds)

    @property
    def decoded(self) -> int:
        """Number of pictures that are decoded."""
        return len(self._pixels)

    def decode_one(self, model: TextToImage) -> float:
        """Decode the next picture, and return the seconds; the last one ends the ticket."""
        before = self.seconds.get("vae_decoder", 0.0)
        latents = self.denoising.trajectory.latents[self.decoded : self.decoded + 1]
        executor, vae = host_executor(model), self.denoising.job.vae
        self._pixels.append(executor.decode(latents, self.seconds, vae))
        seconds = self.seconds["vae_decoder"] - before
        if self.decoded == self.ticket.plan.images:
            pixels = np.concatenate(self._pixels)
            self.ticket.finish(
                model.finish(self.ticket.request, pixels, self.denoising.index, self.seconds)
            )
        return seconds

    def _stepped(self, step: Step) -> None:
        done = step.index + 1
        shown = self._model.preview(step.denoised) if done in self.ticket.shown_after else None
        self.ticket.stepped(done, shown)
