"""The protocol of BK-SDM's model card, as its published scripts carry it out.

Sources are files of https://github.com/Nota-NetsPresso/BK-SDM; ``docs/evaluate.md`` has one for
every choice.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PROMPTS = 30_000
"""Captions of MS-COCO's validation split of 2014 (``data/mscoco_val2014_30k/metadata.csv``)."""
SIDE = 512
"""Of a picture as it is generated, in pixels (``src/generate.py``)."""
SCORED_SIDE = 256
"""Of a picture as it is scored, in pixels (``src/generate.py``)."""
STEPS = 25
GUIDANCE = 7.5
SCHEDULER = "PNDMScheduler"
FEATURES = 2048
"""Of Inception, of which FID is computed (``python -m pytorch_fid``)."""
SPLITS = 10
"""Parts of all pictures whose inception scores are averaged: torch-fidelity's default."""
CLIP_MODEL = "ViT-g-14"
CLIP_WEIGHTS = "laion2b_s34b_b88k"
"""Of open_clip (``src/eval_clip_score.py``)."""
PRECISION = "float16"
"""``src/utils/inference_pipeline.py``."""


def as_scored(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return a picture as the scores of the card saw it.

    Its scripts save pictures as JPEG, open the files, resize them by Pillow's default filter and
    save JPEG again (``src/generate.py``, ``src/utils/misc.py``), so both losses belong to it.

    Parameters
    ----------
    pixels : ndarray, uint8, shape [height, width, 3]
        As drawn.
    """
    drawn = _through_jpeg(Image.fromarray(pixels))
    return _through_jpeg(drawn.resize((SCORED_SIDE, SCORED_SIDE)))


def _through_jpeg(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG")
    with Image.open(stream) as image:
        return image.convert("RGB")
