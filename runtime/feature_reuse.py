"""Less work for nearly the same picture: a UNet whose deep features serve several steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.protocol import Array, Engine
from bksdm.engines.rewrite.feature_reuse import DEEP_FEATURES


@dataclass(frozen=True)
class Level:
    """What ``fast`` stands for.

    Attributes
    ----------
    every : int
        The whole UNet runs in every n-th evaluation; 1 is always.
    guided : float
        Part of the evaluations that have guidance, from the first on.
    """

    every: int
    guided: float


LEVELS = (Level(1, 1.0), Level(2, 1.0), Level(4, 1.0), Level(5, 0.6))
"""By the number that is asked for; 0 is the exact picture."""


class ReusedFeatures:
    """The UNet of one picture (Ma et al. 2024, "DeepCache", arXiv 2312.00858).

    Parameters
    ----------
    whole : Engine
        Returns its deep features beside the noise prediction.
    shallow : Engine
        What follows them, which they are an input of.
    every : int
        The whole UNet runs in every n-th evaluation.
    """

    def __init__(self, whole: Engine, shallow: Engine, every: int) -> None:
        self._whole, self._shallow, self._every = whole, shallow, every
        self._features: NDArray[np.floating] | None = None

    def __call__(self, feeds: Mapping[str, Array], index: int) -> Array:
        """Return the noise predictions of evaluation ``index``.

        Rows may drop out at the front, as the unconditional half does without guidance; where
        there are more than before, the whole UNet runs.
        """
        rows = len(feeds["sample"])
        known = self._features
        if known is None or len(known) < rows or index % self._every == 0:
            outputs = self._whole(feeds)
            self._features = outputs[DEEP_FEATURES]
            return outputs["out_sample"]
        fed = {**feeds, DEEP_FEATURES: known[len(known) - rows :]}
        # The last layer need not attend to the text.
        return self._shallow({name: fed[name] for name in self._shallow.inputs})["out_sample"]
