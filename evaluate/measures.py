"""What the scores need of pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Measures:
    """What the scores need of one picture.

    Attributes
    ----------
    features : ndarray, float32, shape [features]
        Inception's, before its last layer; for FID.
    logits : ndarray, float32, shape [classes]
        Inception's; for the inception score.
    similarity : float
        Cosine of the angle between CLIP's embeddings of the picture and its prompt.
    """

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    similarity: float


@dataclass(frozen=True)
class AllMeasures:
    """The same of all pictures, each array with one more axis, in the order of the prompts."""

    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    similarity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.similarity)
