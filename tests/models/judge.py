"""Judge the built-in model: a classifier for the object, corner pixels for the background."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime

from bksdm.models import EMOJI

CORNER = 8
CONCEPTS = json.loads((EMOJI / "concepts.json").read_text(encoding="utf-8"))


class Judge:
    """The committed classifier, which never saw a generated picture."""

    def __init__(self, folder):
        self.labels = json.loads((folder / "classifier.json").read_text())["labels"]
        self._session = onnxruntime.InferenceSession(folder / "classifier.onnx")

    def margins(self, pixels, concepts):
        """Return the lead of each right label's logit over the next best, negative where it trails.

        Unlike the probability it does not saturate. ``pixels``: uint8 [pictures, 128, 128, 3].
        """
        pictures = (pixels.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
        (logits,) = self._session.run(None, {"pictures": pictures})
        wanted = np.array([self.labels.index(concept) for concept in concepts])
        right = np.take_along_axis(logits, wanted[:, None], 1)[:, 0]
        np.put_along_axis(logits, wanted[:, None], -np.inf, 1)
        return right - logits.max(1)

    def recognised(self, pixels, concepts):
        """Return which pictures show their concept."""
        return self.margins(pixels, concepts) > 0


def background_names(pixels):
    """Return the background colour nearest to the corners of each picture."""
    c = CORNER
    corners = [
        pixels[:, rows, columns]
        for rows in (slice(c), slice(-c, None))
        for columns in (slice(c), slice(-c, None))
    ]
    found = np.stack(corners).reshape(4, len(pixels), -1, 3).mean((0, 2))
    names = list(CONCEPTS["backgrounds"])
    table = np.array([CONCEPTS["backgrounds"][name] for name in names], float)
    distances = np.linalg.norm(found[:, None] - table, axis=2)
    return [names[index] for index in distances.argmin(1)]
