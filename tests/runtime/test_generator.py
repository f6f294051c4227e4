"""Random streams that go on, against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bksdm import Generator, RequestError
from bksdm.runtime.generator import TorchStream, streams

# Of fewer than 16 values each takes a pair, whose second is kept; 624 words are one turn.
SHAPES = [
    (3,),
    (2,),
    (1,),
    (20,),
    (5,),
    (1, 4, 8, 8),
    (604,),
    (624,),
    (7,),
    (1248,),
    (1,),
    (2, 700),
]


@pytest.mark.parametrize("seed", [0, 7, -5, 2**64 - 1])
def test_a_generator_of_torch_is_left_as_torch_leaves_it(seed):
    borrowed, own = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    stream = TorchStream(borrowed)
    assert stream.initial_seed() == own.initial_seed()
    assert stream.fresh
    for turn, shape in enumerate(SHAPES):
        found, expected = stream.randn(shape), torch.randn(shape, generator=own).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert not stream.fresh
        # torch draws between two of ours.
        if turn % 3 == 0:
            np.testing.assert_array_equal(
                torch.randn(9, generator=borrowed), torch.randn(9, generator=own)
            )
        parts = [g.get_state().numpy() for g in (borrowed, own)]
        # Words and counters; torch leaves what it does not use any more of a kept value.
        np.testing.assert_array_equal(parts[0][:5016], parts[1][:5016])
    assert torch.rand(1, generator=borrowed) == torch.rand(1, generator=own)


def test_our_generator_is_torchs_stream():
    ours, theirs = Generator("cpu"), torch.Generator("cpu")
    assert ours.initial_seed() == theirs.initial_seed()
    for _ in range(2):
        assert ours.manual_seed(12) is ours
        assert ours.fresh
        theirs.manual_seed(12)
        for shape in SHAPES:
            found = ours.randn(shape)
            np.testing.assert_allclose(found, torch.randn(shape, generator=theirs), atol=2e-6)
        assert not ours.fresh
    with pytest.raises(RequestError, match="seed must be a whole number"):
        Generator().manual_seed(1.5)


class OnCuda:
    """``torch.Generator("cuda")``: a seed, and four times the counters that were used."""

    def __init__(self, seed):
        self.state = np.array([seed, 0], np.uint64).view(np.uint8)

    def initial_seed(self):
        return int(self.state.view(np.uint64)[0])

    def get_state(self):
        return torch.from_numpy(self.state.copy())

    def set_state(self, state):
        self.state = state.numpy().copy()


class OnAnotherDevice(OnCuda):
    def get_state(self):
        return torch.zeros(44, dtype=torch.uint8)


def test_a_generator_on_a_gpu_goes_on():
    """The state is what torch's documentation of CUDA's generator calls seed and offset."""
    theirs, ours = OnCuda(12), Generator("cuda").manual_seed(12)
    (stream,) = streams(theirs, 1)
    assert (stream.noise, ours.noise) == ("cuda", "cuda")
    assert stream.initial_seed() == 12
    assert stream.fresh
    for shape in ((3, 4), (1, 4, 8, 8), (2000,)):
        np.testing.assert_array_equal(stream.randn(shape), ours.randn(shape))
        assert not stream.fresh
    # Every thread has made four values in each of the three draws.
    assert theirs.state.view(np.uint64).tolist() == [12, 12]
    few, many = (Generator(f"cuda{threads}").manual_seed(1) for threads in (":512", ""))
    assert not np.array_equal(few.randn((2048,)), many.randn((2048,)))
    for device in ("mps", "cuda:0", "cuda:255"):
        with pytest.raises(RequestError, match="noise must be cpu, cuda or cuda:THREADS"):
            Generator(device)
    assert np.isfinite(Generator("cuda:256").randn((1000,))).all()


@pytest.mark.parametrize(
    ("generator", "named"),
    [
        (OnAnotherDevice(1), "generator must be on the CPU or on a GPU of NVIDIA"),
        (7, "generator must be a torch.Generator or a bksdm.Generator, not 7"),
        (np.random.default_rng(0), "generator must be a torch.Generator"),
        ([Generator()], "generator has 1 entries, but the number of images is 2"),
        ([], "generator has 0 entries"),
        ([Generator(), None], "generator must be a torch.Generator"),
    ],
)
def test_what_draws_no_such_noise_is_refused(generator, named):
    with pytest.raises(RequestError, match=named):
        streams(generator, 2)
