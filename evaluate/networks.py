"""The networks that measure a picture: Inception of torch-fidelity, CLIP of open_clip."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.nn import functional
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from bksdm.engines.errors import RequestError
from bksdm.evaluate.measures import Measures
from bksdm.evaluate.protocol import CLIP_MODEL, CLIP_WEIGHTS
from bksdm.storage.digest import sha256_of

LOGITS = "logits_unbiased"
"""Inception's, without the bias of its last layer, as the inception score is defined."""
INPUT_SIDE = 299
"""Of what Inception looks at, in pixels."""
PACKAGES = ("torch", "torch-fidelity", "open_clip_torch", "pillow")
# Of a file that is no checkpoint, or one of another network.
UNFIT = (
    *(RuntimeError, ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, StopIteration, pickle.UnpicklingError),
)


class Networks(Protocol):
    """Measures pictures one by one, so that none depends on those beside it."""

    def __call__(self, picture: Image.Image, prompt: str) -> Measures:
        """Return the measures of a picture, RGB of 256×256."""


@dataclass(frozen=True)
class Weights:
    """Which weights measure, and where they come from.

    Attributes
    ----------
    inception : Path, optional
        File of Inception's weights; by default torch-fidelity downloads them.
    clip : Path, optional
        File of CLIP's weights; by default open_clip downloads :data:`CLIP_WEIGHTS`.
    clip_model : str
        By open_clip's name.
    """

    inception: Path | None = None
    clip: Path | None = None
    clip_model: str = CLIP_MODEL

    def described(self) -> dict[str, str]:
        """Return what the measures depend on, by name.

        Raises
        ------
        RequestError
            A file cannot be read, or the model is unknown.
        """
        known = open_clip.list_models()
        if self.clip_model not in known:
            raise RequestError(f"open_clip has no model {self.clip_model!r:.60}")
        if self.clip is None and self.clip_model != CLIP_MODEL:
            raise RequestError(f"--clip-model {self.clip_model} needs its weights: --clip FILE")
        return {
            "inception": "torch-fidelity's" if self.inception is None else _digest(self.inception),
            "clip_model": self.clip_model,
            "clip_weights": CLIP_WEIGHTS if self.clip is None else _digest(self.clip),
            "measured_on": _device().type,
            **{package: version(package) for package in PACKAGES},
        }

    def load(self, threads: int | None = None) -> Networks:
        """Load the networks, onto a GPU if torch has one.

        Parameters
        ----------
        threads : int, optional
            CPU threads of torch; by default its own choice.

        Raises
        ------
        RequestError
            A file holds other weights, or weights cannot be downloaded.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        return _Loaded(self)


class _Loaded:
    """Both networks on one device."""

    def __init__(self, weights: Weights) -> None:
        self._device = _device()
        self._logits = _inception(weights.inception).to(self._device)
        # In the order of use; what follows is the classifier, which the logits take alone.
        self._pool = nn.Sequential(*list(self._logits.children())[:-1]).eval()
        self._clip, self._view = _clip(weights)
        self._clip.to(self._device)
        self._tokenize = open_clip.get_tokenizer(weights.clip_model)

    @torch.inference_mode()
    def __call__(self, picture: Image.Image, prompt: str) -> Measures:
        levels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(self._device)
        (logits,) = self._logits(levels)
        # As pytorch-fid does, which made the card's figures and its reference: torch-fidelity
        # resizes as TensorFlow 1 did, half a pixel beside.
        wide = functional.interpolate(
            levels / 255, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False
        )
        features = self._pool(2 * wide - 1).flatten(1)
        image = self._clip.encode_image(self._view(picture)[None].to(self._device), normalize=True)
        text = self._clip.encode_text(self._tokenize([prompt]).to(self._device), normalize=True)
        return Measures(_array(features), _array(logits), float((image * text).sum()))


def _array(row: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = row[0].float().cpu().numpy()
    return found


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _digest(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise RequestError(f"{file}: cannot be read ({error.strerror})") from error


def _inception(file: Path | None) -> FeatureExtractorInceptionV3:
    try:
        if file is not None:
            # Reads nothing but tensors; the library would run what else a file asks for.
            torch.load(file, weights_only=True)
        path = None if file is None else str(file)
        return FeatureExtractorInceptionV3("inception", [LOGITS], path, verbose=False)
    except OSError as error:
        raise RequestError(
            f"Inception's weights cannot be had ({error}); give them as --inception FILE"
        ) from error
    except UNFIT as error:
        raise RequestError(f"{file}: not Inception's weights as torch-fidelity has them") from error


def _clip(weights: Weights) -> tuple[Any, Callable[[Image.Image], torch.Tensor]]:
    source = CLIP_WEIGHTS if weights.clip is None else str(weights.clip)
    try:
        # The second is the view for training.
        model, _, view = open_clip.create_model_and_transforms(weights.clip_model, source)
    except UNFIT as error:
        if weights.clip is None:
            raise RequestError(
                f"CLIP's weights cannot be had ({error}); give them as --clip FILE"
            ) from error
        raise RequestError(f"{weights.clip}: not the weights of {weights.clip_model}") from error
    return model.eval(), view
