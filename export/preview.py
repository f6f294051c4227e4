"""Fit a preview of latents without the VAE: the linear map to colours closest to its decoder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.engines.protocol import Engine
from bksdm.optimize.rules import MadeFor
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.preview import PREVIEW_FILE
from bksdm.runtime.user_files import write_text

# Latents along each side of a picture, and how many pictures: 8 of them only measure the error.
SIDE, PICTURES, HELD_OUT = 8, 32, 8


@dataclass(frozen=True)
class Fit:
    """The map that `bksdm.runtime.preview` reads, and its error.

    Attributes
    ----------
    weights : list of list of float, [3][channels]
    bias : list of float, [3]
        RGB in −1 … 1 = weights · scaled latents + bias.
    rms_error : float
        Root mean square of the differences from what the decoder makes of latents that the fit has
        not seen, its pixels averaged over each latent; in levels of 255.
    explained : float
        Part of the variance of those pixels that the map explains.
    """

    weights: list[list[float]]
    bias: list[float]
    rms_error: float
    explained: float


def fit_preview(bundle: Path, channels: int, factor: int, scaling: float) -> Fit:
    """Fit by least squares on random pictures that went through the VAE of a bundle.

    Parameters
    ----------
    bundle : Path
        Folder with the graphs of both halves.
    channels, factor : int
        Of the latents, and pixels per latent along each side.
    scaling : float
        The VAE's scaling factor.
    """
    encode, decode = (
        OnnxRuntimeEngine(bundle / name / "model.onnx", made_for=MadeFor(side))
        for name, side in (("vae_encoder", SIDE * factor), ("vae_decoder", SIDE))
    )
    inputs, colours = [], []
    for picture in random_pictures(PICTURES, SIDE * factor):
        mean = _run(encode, "sample", picture[None])[:, :channels]
        decoded = _run(decode, "latent_sample", mean)[0].clip(-1, 1)
        blocks = decoded.reshape(3, SIDE, factor, SIDE, factor).mean(axis=(2, 4))
        inputs.append(mean[0].reshape(channels, -1).T * scaling)
        colours.append(blocks.reshape(3, -1).T)
    fitted = PICTURES - HELD_OUT
    affine = np.concatenate([np.concatenate(inputs), np.ones((PICTURES * SIDE**2, 1))], axis=1)
    wanted = np.concatenate(colours).astype(np.float64)
    cut = fitted * SIDE**2
    solution = np.linalg.lstsq(affine[:cut], wanted[:cut], rcond=None)[0]
    missed = wanted[cut:] - affine[cut:] @ solution
    variance = np.mean((wanted[cut:] - wanted[cut:].mean(axis=0)) ** 2)
    return Fit(
        np.round(solution[:channels].T, 6).tolist(),
        np.round(solution[channels], 6).tolist(),
        round(float(np.sqrt(np.mean(missed**2)) * 127.5), 2),
        round(float(1 - np.mean(missed**2) / max(variance, 1e-30)), 4),
    )


def write_preview(path: Path) -> Fit:
    """Fit the preview of a bundle, and write it there."""
    bundle = Bundle.open(path)
    fit = fit_preview(path, bundle.latent_channels, bundle.vae_scale, bundle.scaling_factor)
    write_text(path / "vae_decoder" / PREVIEW_FILE, json.dumps(asdict(fit), indent=2) + "\n")
    return fit


def random_pictures(count: int, side: int) -> NDArray[np.float32]:
    """Return coloured noise of every scale, as natural pictures have it; [count, 3, side, side]."""
    generator = np.random.default_rng(0)
    pictures = np.zeros((count, side, side, 3), np.float32)
    scales = [2**power for power in range(1, side.bit_length())]
    for picture in pictures:
        for scale in scales:
            grid = generator.standard_normal((scale, scale, 3)).astype(np.float32)
            for channel in range(3):
                larger = Image.fromarray(grid[..., channel]).resize((side, side))
                picture[..., channel] += np.asarray(larger) * (1.2 / scale)
    return np.ascontiguousarray(np.clip(pictures, -1, 1).transpose(0, 3, 1, 2))


def _run(engine: Engine, name: str, value: NDArray[np.floating]) -> NDArray[np.float32]:
    (output,) = engine({name: value.astype(engine.inputs[name].dtype)}).values()
    return output.astype(np.float32)
