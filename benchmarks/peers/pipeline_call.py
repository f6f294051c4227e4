"""The call that diffusers' pipelines and Optimum's share."""

from __future__ import annotations

from typing import Any

import numpy as np

from serve import Feeds


def draw(pipeline: Any, feeds: Feeds, dtype: str = "float32") -> Any:
    """Return the pixels of one picture from given noise, 0 … 255; networks take that type."""
    import torch

    drawn = pipeline(
        str(feeds["prompt"]),
        height=int(feeds["height"]),
        width=int(feeds["width"]),
        num_inference_steps=int(feeds["steps"]),
        latents=torch.from_numpy(feeds["latents"]).to(getattr(torch, dtype)),
        output_type="np",
    )
    return np.rint(255 * drawn.images)
