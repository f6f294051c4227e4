"""Judge pictures of the built-in model: a classifier for the object, corners for the background."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.onnxruntime_package import load_onnxruntime
from bksdm.models import EMOJI

CLASSIFIER = EMOJI / "classifier"
SIDE = 128
"""Of the pictures, in pixels."""
CORNER = 8
"""Side of the corners that are taken for background, in pixels."""


@dataclass(frozen=True)
class Wanted:
    """A prompt of the built-in model, and what its picture is to show.

    Attributes
    ----------
    prompt : str
        What is drawn.
    concept : str
        The object, one of :attr:`Judge.labels`.
    background : str
        Name of a colour, see :func:`background_names`.
    """

    prompt: str
    concept: str
    background: str


@cache
def concepts() -> dict[str, Any]:
    """Return the table of what the built-in model knows, ``concepts.json``."""
    found: dict[str, Any] = json.loads((EMOJI / "concepts.json").read_text(encoding="utf-8"))
    return found


def evaluation() -> tuple[Wanted, ...]:
    """Return the fifty prompts by which the built-in model is judged."""
    return tuple(
        Wanted(entry["prompt"], entry["concept"], entry["colour"] or "white")
        for entry in concepts()["evaluation"]
    )


class Judge:
    """The classifier of ``models/emoji/README.md``, which never saw a generated picture.

    Parameters
    ----------
    folder : Path
        Where ``classifier.onnx`` and ``classifier.json`` are.

    Attributes
    ----------
    labels : list of str
        The objects that it tells apart, in the order of its logits.

    Raises
    ------
    EngineError
        ONNX Runtime is not installed.
    """

    def __init__(self, folder: Path = CLASSIFIER) -> None:
        described = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        self.labels: list[str] = described["labels"]
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        # More would gain nothing on so small a network, and could round in another order.
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(folder / "classifier.onnx", options)

    def margins(self, pixels: NDArray[np.uint8], concepts: Sequence[str]) -> NDArray[np.float32]:
        """Return the lead of each right label's logit over the next best, negative where it trails.

        Unlike the probability it does not saturate.

        Parameters
        ----------
        pixels : ndarray, uint8, shape [pictures, 128, 128, 3]
            The pictures.
        concepts : sequence of str
            What each of them is to show.
        """
        logits = self._run("logits", pixels)
        wanted = np.array([self.labels.index(concept) for concept in concepts])
        right = np.take_along_axis(logits, wanted[:, None], 1)[:, 0]
        np.put_along_axis(logits, wanted[:, None], -np.inf, 1)
        lead: NDArray[np.float32] = right - logits.max(1)
        return lead

    def recognised(self, pixels: NDArray[np.uint8], concepts: Sequence[str]) -> NDArray[np.bool_]:
        """Return which pictures show their concept."""
        shown: NDArray[np.bool_] = self.margins(pixels, concepts) > 0
        return shown

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the logits are linear in, shape [pictures, 80]."""
        return self._run("features", pixels)

    def _run(self, output: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        pictures = (pixels.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
        (found,) = self._session.run([output], {"pictures": pictures})
        return np.asarray(found, np.float32)


def background_names(pixels: NDArray[np.uint8]) -> list[str]:
    """Return the background colour nearest to the corners of each picture."""
    c = CORNER
    corners = [
        pixels[:, rows, columns]
        for rows in (slice(c), slice(-c, None))
        for columns in (slice(c), slice(-c, None))
    ]
    found = np.stack(corners).reshape(4, len(pixels), -1, 3).mean((0, 2))
    names = list(concepts()["backgrounds"])
    table = np.array([concepts()["backgrounds"][name] for name in names], float)
    distances = np.linalg.norm(found[:, None] - table, axis=2)
    return [names[index] for index in distances.argmin(1)]
