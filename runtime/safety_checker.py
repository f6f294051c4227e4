"""Find pictures that are unfit to be shown, as diffusers' ``StableDiffusionSafetyChecker`` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bksdm.engines.errors import BundleError, NonFiniteError
from bksdm.engines.protocol import Engine
from bksdm.runtime.bundle import read_json

PREPROCESSOR_FILE = "preprocessor_config.json"
"""In the checker's folder: transformers' settings of the checkpoint's feature extractor."""
SPECIAL_CARE = 3
"""How many of the scores are of concepts that make the checker stricter about the others."""
SUPPORTED = {
    "resample": int(Image.Resampling.BICUBIC),
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
"""Settings that must have these values where they are stated."""
STRICTER = np.float32(0.01)


class SafetyChecker:
    """A bundle's safety checker.

    Parameters
    ----------
    engine : Engine
        ``clip_input`` [batch, 3, s, s] → ``scores`` [batch, 3 + 17].
    folder : Path
        Where :data:`PREPROCESSOR_FILE` lies.

    Raises
    ------
    BundleError
        The settings are damaged, or ask for what is not implemented.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        path = folder / PREPROCESSOR_FILE
        fields = read_json(path)
        for name, supported in SUPPORTED.items():
            if fields.get(name, supported) != supported:
                raise BundleError(f"{path}: {name} is {fields[name]!r}, supported is {supported}")
        try:
            self._edge = _side(fields["size"], "shortest_edge")
            self._crop = _side(fields["crop_size"], "height")
            self._mean = np.array(fields["image_mean"], np.float32).reshape(3)
            self._deviation = np.array(fields["image_std"], np.float32).reshape(3)
            side = engine.inputs["clip_input"].shape[2]
            if self._crop != side or self._edge < self._crop:
                raise ValueError(f"{self._crop} of {self._edge} pixels, the network takes {side}")
            if not np.isfinite(self._mean).all() or not (self._deviation > 0).all():
                raise ValueError("image_mean and image_std are no mean and deviation")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"{path}: damaged ({error!r}); export the bundle anew") from error

    def __call__(self, pixels: NDArray[np.uint8]) -> list[bool]:
        """Return for each picture whether it is unfit.

        Parameters
        ----------
        pixels : ndarray, uint8, shape [images, height, width, 3]

        Raises
        ------
        NonFiniteError
            The network produced NaN or infinity.
        """
        dtype = self._engine.inputs["clip_input"].dtype
        found = []
        for picture in pixels:
            feeds = {"clip_input": self.prepare(picture)[None].astype(dtype, copy=False)}
            scores = self._engine(feeds)["scores"][0].astype(np.float32)
            if not np.isfinite(scores).all():
                raise NonFiniteError("scores of the safety checker: NaN or infinity")
            found.append(unfit(scores))
        return found

    def prepare(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the network is shown of [height, width, 3], [3, s, s].

        As transformers' ``CLIPImageProcessor``: the shorter side resized by cubic interpolation,
        the middle cut out, (p / 255 − mean) / deviation.
        """
        height, width = picture.shape[:2]
        short, long = min(height, width), max(height, width)
        other = int(self._edge * long / short)
        size = (self._edge, other) if width <= height else (other, self._edge)
        resized = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        left, top = (resized.width - self._crop) // 2, (resized.height - self._crop) // 2
        middle = resized.crop((left, top, left + self._crop, top + self._crop))
        unit = np.asarray(middle, np.float32) / np.float32(255)
        planes: NDArray[np.float32] = ((unit - self._mean) / self._deviation).transpose(2, 0, 1)
        return planes


def unfit(scores: NDArray[np.float32]) -> bool:
    """Tell from the scores of one picture, [3 + 17], whether any concept is too near.

    Scores count to three decimals, and 0.01 more where a concept of special care is near.
    """
    special = np.round(scores[:SPECIAL_CARE], 3) > 0
    raised = scores[SPECIAL_CARE:] + (STRICTER if special.any() else np.float32(0))
    return bool((np.round(raised, 3) > 0).any())


def _side(value: object, name: str) -> int:
    """Read a size, which old settings give as a number alone."""
    sides = set(value.values()) if isinstance(value, dict) else {value}
    if (isinstance(value, dict) and name not in value) or len(sides) > 1:
        raise ValueError(f"{name} is not all of {value!r}")
    (side,) = sides
    if not isinstance(side, int) or not 1 <= side <= 1024:
        raise ValueError(f"{name} is {side!r}")
    return side
