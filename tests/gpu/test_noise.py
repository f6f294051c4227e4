"""The numpy copy of torch's CUDA noise, against torch on this GPU; not run on one yet."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.runtime.noise import TorchCudaGenerator

pytestmark = pytest.mark.gpu
SEEDS = (0, 7, 2**31, 2**32 + 5, 2**63 - 1, 2**64 - 1)


@pytest.fixture(scope="module")
def torch(target):
    found = pytest.importorskip("torch", reason="torch is not installed")
    if not found.cuda.is_available():
        pytest.skip(f"torch {found.__version__} has no GPU here")
    return found


@pytest.fixture(scope="module")
def resident(torch):
    """Threads that the GPU holds at once."""
    gpu = torch.cuda.get_device_properties(0)
    return gpu.multi_processor_count * gpu.max_threads_per_multi_processor


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_that_of_torch_on_this_gpu(torch, resident, seed):
    """One draw after the other, smaller and larger than what the GPU holds at once."""
    signed = seed if seed < 2**63 else seed - 2**64
    theirs = torch.Generator("cuda").manual_seed(signed)
    ours = TorchCudaGenerator(seed, resident)
    around = [resident + n for n in (0, 1)] + [4 * resident + 3]
    for shape in (1, 255, 256, 257, (3, 4, 96, 72), (4, 128, 128), *around, (5, 4, 64, 64)):
        shape = (shape,) if isinstance(shape, int) else shape
        wanted = torch.randn(shape, generator=theirs, device="cuda").cpu().numpy()
        # CUDA's logarithm and sine differ from numpy's in the last bits of values below 7.
        np.testing.assert_allclose(ours.randn(shape), wanted, rtol=0, atol=1e-5)


def test_noise_of_a_picture_needs_no_knowledge_of_the_gpu(torch, resident):
    shape = (1, 4, 64, 64)
    assert np.prod(shape) <= resident
    theirs = torch.Generator("cuda").manual_seed(3)
    wanted = torch.randn(shape, generator=theirs, device="cuda").cpu().numpy()
    np.testing.assert_allclose(TorchCudaGenerator(3).randn(shape), wanted, rtol=0, atol=1e-5)
