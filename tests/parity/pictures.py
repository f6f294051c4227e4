"""Pictures of diffusers as 8-bit pixels, and how close ours have to be."""

from __future__ import annotations

import numpy as np
import torch


def pictures(reference, prompt, seed=0, **arguments):
    """Draw with a diffusers pipeline; a list of seeds is one generator per picture."""
    generator = (
        [torch.Generator("cpu").manual_seed(s) for s in seed]
        if isinstance(seed, list)
        else torch.Generator("cpu").manual_seed(seed)
    )
    images = reference(prompt, generator=generator, output_type="np", **arguments).images
    return (images * 255).round().astype(np.uint8)


def assert_same_pictures(ours, expected):
    """At most 1 level apart on 99.9 %, and 2 anywhere.

    Both sides compute in float32 with sums in another order; a value on the border between two
    levels may fall to either side, and that is one level.
    """
    assert ours.shape == expected.shape
    difference = np.abs(ours.astype(int) - expected.astype(int))
    assert difference.max() <= 2
    assert (difference <= 1).mean() >= 0.999
    assert expected.std() > 1, "the comparison needs a picture"
