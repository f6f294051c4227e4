"""Gaussians fitted to features, and how far two of them are apart."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.runtime.user_files import read_input


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features.

    Attributes
    ----------
    mu : ndarray, float64, shape [features]
        The mean.
    sigma : ndarray, float64, shape [features, features]
        The covariance.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]

    @classmethod
    def of(
        cls, features: NDArray[np.floating], counts: NDArray[np.int64] | None = None
    ) -> Gaussian:
        """Fit one to features [pictures, features], unbiased as ``numpy.cov``.

        Parameters
        ----------
        features : ndarray, shape [pictures, features]
            At least two rows.
        counts : ndarray, optional
            How often each row is taken.
        """
        exact = np.asarray(features, np.float64)
        mu = np.average(exact, axis=0, weights=counts)
        return cls(mu, np.cov(exact, rowvar=False, fweights=counts))

    @classmethod
    def read(cls, path: Path, dimensions: int) -> Gaussian:
        """Read statistics in the form of pytorch-fid: ``mu`` and ``sigma`` in a ``.npz``.

        Raises
        ------
        RequestError
            The file cannot be read, is none of these, or is of another number of features.
        """
        try:
            with np.load(io.BytesIO(read_input(path)), allow_pickle=False) as arrays:
                mu, sigma = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
        except KeyError as error:
            raise RequestError(f"{path}: has no array {error.args[0].split()[0]}") from error
        except Exception as error:
            if isinstance(error, RequestError):
                raise
            # numpy and zipfile raise a dozen kinds at what is no such file.
            raise RequestError(
                f"{path}: no statistics; a .npz file with the arrays mu and sigma is needed"
            ) from error
        if mu.shape != (dimensions,) or sigma.shape != (dimensions, dimensions):
            raise RequestError(
                f"{path}: statistics of shape {mu.shape} and {sigma.shape}, but the pictures have "
                f"{dimensions} features; take statistics of the same network"
            )
        return cls(mu, sigma)

    def save(self) -> bytes:
        """Return the ``.npz`` that :meth:`read` takes."""
        stream = io.BytesIO()
        np.savez_compressed(stream, mu=self.mu, sigma=self.sigma)
        return stream.getvalue()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 √(Σ₁Σ₂)) (Dowson and Landau 1982), by numpy alone.

    For features whose score must not need torch-fidelity, which computes the same for FID.
    √(Σ₁Σ₂) has the trace of the symmetric √(√Σ₁ Σ₂ √Σ₁), whose eigenvalues are real.
    """
    values, vectors = np.linalg.eigh(a.sigma)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    common = np.sqrt(np.linalg.eigvalsh(root @ b.sigma @ root).clip(0)).sum()
    apart = a.mu - b.mu
    return float(apart @ apart + np.trace(a.sigma) + np.trace(b.sigma) - 2 * common)
