"""Other networks of the same weights, by name; ``optimize/variants.py`` makes their graphs.

An engine opens a network as it was exported where the name is empty.
"""

from __future__ import annotations

DEEP = "deep"
"""A UNet that outputs its :data:`DEEP_FEATURES` too, if it joins any."""
SHALLOW = "shallow"
"""The layers of a UNet after its deep features, which it takes as an input."""
DEEP_FEATURES = "deep_features"
"""Name of the tensor [batch, channels, height, width]."""
CLIP_SKIP = "clip-skip-"


def skipping(layers: int) -> str:
    """Return the name of a text encoder without its last layers."""
    return f"{CLIP_SKIP}{layers}" if layers else ""
