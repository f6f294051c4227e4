"""Fréchet distances beside closed forms and beside other programs' arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.engines.errors import RequestError
from bksdm.evaluate.gaussians import Gaussian, frechet_distance


def diagonal(mu, variances):
    return Gaussian(np.array(mu, float), np.diag(np.array(variances, float)))


def test_the_distance_of_independent_features_is_that_of_each():
    """‖μ₁ − μ₂‖² + Σ (σ₁ − σ₂)², exact for diagonal covariances."""
    a, b = diagonal([0, 1, 2], [1, 4, 9]), diagonal([3, 1, 0], [16, 4, 1])
    assert frechet_distance(a, b) == pytest.approx(9 + 4 + (1 - 4) ** 2 + (3 - 1) ** 2, rel=1e-14)


def test_turning_both_changes_nothing_and_order_neither():
    generator = np.random.default_rng(0)
    turn, _ = np.linalg.qr(generator.normal(size=(4, 4)))
    a, b = diagonal([0, 1, 2, 3], [1, 4, 9, 0]), diagonal([1, 1, 1, 1], [2, 2, 5, 1])
    turned = [Gaussian(turn @ g.mu, turn @ g.sigma @ turn.T) for g in (a, b)]
    exact = 1 + 0 + 1 + 4 + (1 - 2**0.5) ** 2 + (2 - 2**0.5) ** 2 + (3 - 5**0.5) ** 2 + 1
    assert frechet_distance(*turned) == pytest.approx(exact, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(exact, rel=1e-7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_statistics_are_read_as_pytorch_fid_writes_them(tmp_path):
    features = np.random.default_rng(0).normal(size=(30, 4))
    # By its own code: mean over the rows, numpy.cov.
    np.savez(tmp_path / "a.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    read = Gaussian.read(tmp_path / "a.npz", 4)
    ours = Gaussian.of(features)
    np.testing.assert_array_equal(read.mu, ours.mu)
    np.testing.assert_array_equal(read.sigma, ours.sigma)
    (tmp_path / "b.npz").write_bytes(ours.save())
    np.testing.assert_array_equal(Gaussian.read(tmp_path / "b.npz", 4).sigma, ours.sigma)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"PK\x03\x04nothing"), r"a .npz file with the arrays mu"),
        (lambda path: np.savez(path, mu=np.zeros(3)), "has no array sigma"),
        (
            lambda path: np.savez(path, mu=np.zeros(3), sigma=np.eye(3)),
            r"shape \(3,\) and \(3, 3\), but the pictures have 4 features",
        ),
        (lambda path: np.savez(path, mu=np.zeros(4), sigma=np.eye(3)), "same network"),
    ],
)
def test_other_files_are_refused(tmp_path, write, told):
    write(tmp_path / "a.npz")
    with pytest.raises(RequestError, match=told) as found:
        Gaussian.read(tmp_path / "a.npz", 4)
    assert "\n" not in str(found.value)
