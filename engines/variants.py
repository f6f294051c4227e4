"""Other networks of the same weights, by name; ``optimize/variants.py`` makes their graphs.

An engine opens a network as it was exported where the name is empty.
"""

from __future__ import annotations

DEEP = "deep"
"""A UNet that outputs its :data:`DEEP_FEATURES` too, if it joins any; shares rows, if it can."""
SHALLOW = "shallow"
"""The layers of a UNet after its deep features, which it takes as an input; shares rows, too."""
DEEP_FEATURES = "deep_features"
"""Name of the tensor [rows, channels, height, width]."""
SAMPLE_OF_ROW = "sample_of_row"
"""Name of the input, int64 [rows], that says which latents and timestep a row has.

Where a UNet has it, these are given once for all rows that share them.
"""
CLIP_SKIP = "clip-skip-"


def skipping(layers: int) -> str:
    """Return the name of a text encoder without its last layers."""
    return f"{CLIP_SKIP}{layers}" if layers else ""
