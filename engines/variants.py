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

CONTROLLED = "controlled"
"""A UNet that takes what ControlNets add to it; shares rows, if it can."""
DOWN_RESIDUAL = "down_block_res_sample_"
"""Begins the names of what is added to features that the UNet's last half takes from its first.

The number of the feature follows, in the order in which they are made. A ControlNet outputs these,
and a UNet that is :data:`CONTROLLED` takes them: [rows, channels, height, width].
"""
MID_RESIDUAL = "mid_block_res_sample"
"""The same, added to what the UNet's mid block makes."""
CONTROL_IMAGE = "controlnet_cond"
"""Input of a ControlNet: pictures in 0 … 1, [images, 3, height, width]."""
HINT = "hint"
"""The layers of a ControlNet that see nothing but the picture: the same in every evaluation."""
HINT_FEATURES = "hint_features"
"""What they make, [images, channels, height / 8, width / 8]."""
HINTED = "hinted"
"""The layers of a ControlNet after these, whose result they take; shares rows, if it can."""


def is_residual(name: str) -> bool:
    """Return whether a tensor is what a ControlNet adds to a UNet."""
    return name == MID_RESIDUAL or name.startswith(DOWN_RESIDUAL)


def skipping(layers: int) -> str:
    """Return the name of a text encoder without its last layers."""
    return f"{CLIP_SKIP}{layers}" if layers else ""
