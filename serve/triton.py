"""The server as a model of Triton's Python backend; ``bksdm triton`` writes the repository.

A request's parameters are options of a picture, and so are the keys of the JSON object in the
tensor ``options``. Its answers are decoupled: pictures on the way, and the finished ones at
the end. Requests join between steps, as in ``bksdm serve``.

Triton completes ``triton_python_backend_utils`` when this is imported: what it has is used in
functions only.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as backend

from bksdm.engines.errors import BksdmError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import OPTIONS
from bksdm.serve.admission import ticket_of
from bksdm.serve.errors import FieldError, ServeError
from bksdm.serve.measure import Wanted
from bksdm.serve.order import (
    MAX_PREVIEWS,
    Order,
    config_of,
    count_of,
    refuse_unknown,
    timeout_of,
)
from bksdm.serve.settings import Limits, Settings
from bksdm.serve.starting import start_scheduler
from bksdm.serve.ticket import Ticket
from bksdm.serve.triton_repository import BUNDLE
from bksdm.serve.triton_tensors import bytes_of, tensor_of, text_tensor
from bksdm.serve.uploads import picture

CODES = {
    404: "NOT_FOUND",
    413: "INVALID_ARG",
    422: "INVALID_ARG",
    429: "UNAVAILABLE",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
"""Triton's codes by those of HTTP."""


class Answer:
    """What is told of a ticket to who sent its request.

    Parameters
    ----------
    ticket : Ticket
        Its way through the scheduler.
    sender : InferenceResponseSender
        Takes the answers.
    """

    def __init__(self, ticket: Ticket, sender: Any) -> None:
        self.ticket, self.sender = ticket, sender
        self._shown, self._ended = 0, False

    def tell(self) -> None:
        """Send what is new."""
        if self._ended:
            return
        self._ended = self.ticket.ended
        steps = self.ticket.plan.evaluations
        for shown in self.ticket.previews[self._shown :]:
            self._shown += 1
            self.sender.send(_pictures(shown.pixels, {"step": shown.step, "steps": steps}))
        if self._ended:
            end(self.sender, self._last())

    def _last(self) -> Any:
        result = self.ticket.result
        if result is None:
            assert self.ticket.error is not None
            return refusal(self.ticket.error)
        told = {
            "step": result.steps,
            "steps": result.steps,
            "options": result.config.to_dict(),
            "nsfw_content_detected": result.nsfw_content_detected,
        }
        return _pictures(result.pixels, told)


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model, and measure how it runs fastest, as far as that is not settled."""
        stated = json.loads(args["model_config"])["parameters"]
        told = {name: value["string_value"] for name, value in stated.items()}
        replicas, threads, batch = (
            int(told[name]) or None for name in ("replicas", "threads", "max_batch")
        )
        settings = Settings(
            engine=told["engine"],
            wanted=Wanted(replicas, threads, batch),
            queue_seconds=float(told["queue"]),
        )
        self._limits = settings.limits
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        self._scheduler = start_scheduler(Bundle.open(folder), settings)
        self._news: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._teller = threading.Thread(target=self._tell, name="bksdm-answers", daemon=True)
        self._teller.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Let requests wait for their turn."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                order = order_of(request, self._limits)
                ticket = ticket_of(self._scheduler, order, self._limits)
                answer = Answer(ticket, sender)
                ticket.listen(partial(self._news.put, answer))
                self._scheduler.submit(ticket)
            except BksdmError as error:
                end(sender, refusal(error))

    def finalize(self) -> None:
        """End: what is under way is not drawn."""
        self._scheduler.close()
        self._news.put(None)
        self._teller.join()

    def _tell(self) -> None:
        """Send answers, outside of the engine's thread, which does not wait for them."""
        while (answer := self._news.get()) is not None:
            if answer.sender.is_cancelled():
                self._scheduler.cancel(answer.ticket)
            answer.tell()


def order_of(request: Any, limits: Limits) -> Order:
    """Return what a request asks for.

    Raises
    ------
    FieldError
        A parameter is wrong, or unknown.
    """
    fields = json.loads(request.parameters() or "{}")
    given = bytes_of(request, "options")
    if given is not None:
        fields |= _object(given)
    refuse_unknown(fields, {*OPTIONS, "timeout", "previews"})
    sent = {
        name: picture(name, content, limits.sent_pixels)
        for name in ("image", "mask")
        if (content := bytes_of(request, name)) is not None
    }
    if "image" in sent:
        sent["image"] = sent["image"].convert("RGB")
    previews = count_of("previews", fields.get("previews", 0), 0, MAX_PREVIEWS)
    return Order(
        config_of({name: fields.get(name) for name in OPTIONS}, limits),
        image=sent.get("image"),
        mask=sent.get("mask"),
        timeout=timeout_of(fields.get("timeout")),
        previews=previews,
    )


def end(sender: Any, answer: Any) -> None:
    """Send the last answer to a request."""
    sender.send(answer, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def refusal(error: Exception) -> Any:
    """Return the answer to a request that is not drawn."""
    status = error.status if isinstance(error, ServeError) else 500
    code = getattr(backend.TritonError, CODES.get(status, "INTERNAL"))
    return backend.InferenceResponse(error=backend.TritonError(str(error), code))


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FieldError("options", f"options: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise FieldError("options", "options must be a JSON object")
    return found


def _pictures(pixels: np.ndarray[Any, Any], told: dict[str, Any]) -> Any:
    about = text_tensor("about", json.dumps(told))
    return backend.InferenceResponse([tensor_of("pixels", pixels), about])
