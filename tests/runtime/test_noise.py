"""The noise against torch's generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bksdm.engines.errors import RequestError
from bksdm.runtime.noise import TorchCpuGenerator, initial_noise

# Values reach 5.7 and torch's vectorised logarithm and cosine differ from numpy's in the last bit.
TOLERANCE = 1e-6
SEEDS = st.integers(0, 2**64 - 1)
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def generator(seed):
    # torch takes seeds beyond 2^63 as their negative twin.
    return torch.Generator("cpu").manual_seed(seed if seed < 2**63 else seed - 2**64)


@settings(max_examples=300, deadline=None)
@given(SEEDS, st.lists(SHAPES, min_size=1, max_size=3))
@example(0, [[1], [15], [16], [17], [3]])
@example(2**64 - 1, [[1, 4, 64, 64]])
def test_consecutive_draws_equal_torch(seed, shapes):
    theirs, ours = generator(seed), TorchCpuGenerator(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=theirs).numpy()
        np.testing.assert_allclose(ours.randn(shape), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_batches_are_drawn_as_diffusers_draws_them(count):
    shape = (4, 8, 12)
    one = randn_tensor((count, *shape), generator=generator(3)).numpy()
    np.testing.assert_allclose(initial_noise(shape, 3, count), one, rtol=0, atol=TOLERANCE)
    seeds = list(range(count))
    each = randn_tensor((count, *shape), generator=[generator(s) for s in seeds]).numpy()
    np.testing.assert_allclose(initial_noise(shape, seeds, count), each, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7", None])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(RequestError, match="seed"):
        initial_noise((4, 8, 8), seed, 1)


def test_the_number_of_seeds_must_fit():
    with pytest.raises(RequestError, match="seed has 2"):
        initial_noise((4, 8, 8), [1, 2], 3)
