"""Scores beside closed forms, and the intervals beside the spread of many runs."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.engines.errors import RequestError
from bksdm.evaluate.estimate import Estimate, Scores
from bksdm.evaluate.gaussians import Gaussian, frechet_distance
from bksdm.evaluate.measures import AllMeasures

pytest.importorskip("torch_fidelity")
pytest.importorskip("scipy")

from bksdm.evaluate.scores import (
    SPLITS,
    clip_score,
    fid,
    inception_score,
    scores,
    warn_of_few,
)


def measured(count, features=4, seed=0):
    drawn = np.random.default_rng(seed)
    return AllMeasures(
        drawn.normal(size=(count, features)).astype(np.float32),
        drawn.normal(size=(count, 5)).astype(np.float32),
        drawn.normal(0.27, 0.05, count),
    )


def test_fid_is_that_of_pytorch_fid_and_ours_without_torch():
    """torch-fidelity's takes eigenvalues, pytorch-fid's a matrix root, numpy's is symmetric."""
    features = measured(60, 8).features
    reference = Gaussian.of(np.random.default_rng(7).normal(1, 2, size=(90, 8)))
    found = fid(features, reference)
    ours = Gaussian.of(features)
    assert found == pytest.approx(frechet_distance(ours, reference), rel=1e-10)
    from scipy import linalg

    root = linalg.sqrtm(ours.sigma @ reference.sigma).real
    apart = ours.mu - reference.mu
    exact = apart @ apart + np.trace(ours.sigma + reference.sigma - 2 * root)
    assert found == pytest.approx(exact, rel=1e-10)


def test_fid_of_columns_that_are_known():
    # Mean 0 and variance 2 in each column, no covariance.
    features = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32) * np.sqrt(1.5)
    reference = Gaussian(np.array([3.0, 4.0]), np.diag([8.0, 2.0]))
    assert fid(features, reference) == pytest.approx(25 + (8**0.5 - 2**0.5) ** 2, rel=1e-6)


def test_the_inception_score_of_sure_answers_is_their_number():
    """Exp of the mutual information: all of the classes' entropy where every answer is sure."""
    count, classes = 400, 4
    sure = np.full((count, classes), -1e4, np.float32)
    sure[np.arange(count), np.arange(count) % classes] = 1e4
    # Parts do not hold exactly as many of each class.
    assert inception_score(sure) == pytest.approx(classes, rel=0.05)
    assert inception_score(np.zeros((count, classes), np.float32)) == pytest.approx(1, abs=1e-12)


def test_the_inception_score_of_uncertain_answers():
    """Answers p and 1 − p in halves: exp(log 2 − H(p)), in every part alike."""
    p = 0.9
    answer = np.log(np.array([[p, 1 - p], [1 - p, p]], np.float32))
    logits = np.tile(answer, (2000, 1))
    exact = 2 * p**p * (1 - p) ** (1 - p)
    assert inception_score(logits) == pytest.approx(exact, rel=2e-3)


def test_intervals_are_as_wide_as_runs_differ():
    """Beside the spread of sixty runs; the bootstrap knows its own to a fifth or so."""
    runs = [measured(300, 3, seed) for seed in range(60)]
    reference = Gaussian(np.zeros(3), np.eye(3))
    found = [scores(run, reference) for run in runs]
    spread = np.std([each.inception_score.value for each in found])
    widths = np.array([each.inception_score.reach for each in found]) / 2.09
    assert 0.6 < np.median(widths) / spread < 1.6
    spread = np.std([each.clip_score.value for each in found])
    assert np.median([each.clip_score.reach for each in found]) / 1.97 == pytest.approx(
        spread, rel=0.3
    )
    held = [abs(each.clip_score.value - 0.27) < each.clip_score.reach for each in found]
    assert np.mean(held) > 0.85
    assert all(each.fid.reach > 0 for each in found)


def test_the_clip_score_is_a_mean_with_students_interval():
    similar = np.array([0.1, 0.2, 0.3])
    found = clip_score(similar)
    assert found.value == pytest.approx(0.2)
    # Standard error 0.1 / √3, and 4.303 for two degrees of freedom in any table.
    assert found.reach == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-5)


def test_the_same_pictures_have_the_same_scores_to_the_last_bit():
    reference = Gaussian(np.zeros(4), np.eye(4))
    assert scores(measured(40), reference) == scores(measured(40), reference)
    assert scores(measured(40), reference) != scores(measured(40, seed=1), reference)


def test_fid_of_few_pictures_has_no_interval_and_is_warned_of():
    found = scores(measured(12, 20), Gaussian(np.zeros(20), np.eye(20)))
    assert found.fid.reach is None
    assert found.shown()[0] == f"{found.fid.value:.2f}"
    with pytest.warns(UserWarning, match="12 pictures: the covariance of 20 features needs at lea"):
        warn_of_few(12, 20)
    with pytest.raises(RequestError, match=f"mean of {SPLITS} parts, which 9 pictures do not"):
        scores(measured(9), Gaussian(np.zeros(4), np.eye(4)))


def test_scores_are_read_as_they_were_written():
    found = Scores(12, Estimate(1.5, None), Estimate(2.0, 0.25), Estimate(0.27, 0.001))
    assert Scores.from_fields(found.fields()) == found
    assert found.shown() == ("1.50", "2.00 ± 0.25", "0.2700 ± 0.0010")
