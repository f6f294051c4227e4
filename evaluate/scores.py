"""FID, inception score and CLIP score of a run, by the libraries' own arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from bksdm.engines.errors import RequestError
from bksdm.evaluate.estimate import Estimate, Scores
from bksdm.evaluate.gaussians import Gaussian
from bksdm.evaluate.measures import AllMeasures
from bksdm.evaluate.protocol import SPLITS

RESAMPLES = 20
"""Of the bootstrap."""
CONFIDENCE = 0.95


def scores(measures: AllMeasures, reference: Gaussian, resamples: int = RESAMPLES) -> Scores:
    """Score pictures.

    The interval of the CLIP score, a mean of independent values, is Student's. Those of the others
    take their standard error from resamples of the pictures (Efron 1979) and lie around the score
    itself: a resample repeats pictures, which by itself raises FID and lowers the inception score,
    so that percentiles of resamples would miss it. FID has an interval only where its covariance
    has full rank: with fewer pictures its bias is larger than any such interval.

    Parameters
    ----------
    measures : AllMeasures
        Of all pictures, in the order of the prompts: the inception score depends on it.
    reference : Gaussian
        Of the real pictures.
    resamples : int
        2 at least, or the intervals would have no width.

    Raises
    ------
    RequestError
        There are too few pictures for the inception score.
    """
    count = len(measures)
    if count < SPLITS:
        raise RequestError(
            f"the inception score is a mean of {SPLITS} parts, which {count} pictures do not fill"
        )
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, count, count) for _ in range(resamples)]
    return Scores(
        pictures=count,
        fid=_estimate(
            lambda rows: fid(measures.features[rows], reference),
            count,
            drawn if count > len(reference.mu) else [],
        ),
        inception_score=_estimate(
            lambda rows: inception_score(measures.logits[rows]), count, drawn
        ),
        clip_score=clip_score(measures.similarity),
    )


def interval(value: float, error: float, freedom: int) -> Estimate:
    """Return Student's interval around a value of some standard error."""
    return Estimate(value, float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error)


def fid(features: NDArray[np.float32], reference: Gaussian) -> float:
    """Return the Fréchet distance of features [pictures, features], as torch-fidelity has it."""
    ours = fid_features_to_statistics(torch.from_numpy(features.astype(np.float64)))
    theirs = {"mu": reference.mu, "sigma": reference.sigma}
    return float(fid_statistics_to_metric(ours, theirs, verbose=False)[KEY_METRIC_FID])


def inception_score(logits: NDArray[np.float32]) -> float:
    """Return the inception score of logits [pictures, classes], as ``fidelity --isc`` has it."""
    found = isc_features_to_metric(torch.from_numpy(np.ascontiguousarray(logits)), SPLITS)
    return float(found[KEY_METRIC_ISC_MEAN])


def clip_score(similarity: NDArray[np.float64]) -> Estimate:
    """Return the mean cosine of pictures and prompts, two at least."""
    error = float(similarity.std(ddof=1) / np.sqrt(len(similarity)))
    return interval(float(similarity.mean()), error, len(similarity) - 1)


def warn_of_few(count: int, dimensions: int) -> None:
    """Warn where the features' covariance has fewer pictures than it needs."""
    if count <= dimensions:
        warnings.warn(
            f"FID of {count} pictures: the covariance of {dimensions} features needs at least "
            f"{dimensions + 1}, and FID is far too high with fewer",
            stacklevel=1,
        )


def _estimate(
    score: Callable[[NDArray[np.int64]], float], count: int, drawn: Sequence[NDArray[np.int64]]
) -> Estimate:
    value = score(np.arange(count))
    if not drawn:
        return Estimate(value, None)
    return interval(value, float(np.std([score(rows) for rows in drawn], ddof=1)), len(drawn) - 1)
