"""TensorRT's plans on a GPU: what is recorded is what it records, and takes no second copy."""

from __future__ import annotations

import pytest

from bksdm.runtime.pipeline import TextToImage

from ..cuda.conftest import unrecorded

pytestmark = pytest.mark.gpu


@pytest.fixture
def model(plans):
    return TextToImage.load(*plans)


def test_the_graph_draws_what_its_parts_draw(model):
    arguments = {"num_inference_steps": 10, "seed": 4}
    recorded = model("a lighthouse", **arguments).pixels
    session = list(model.executor._sessions.values())[-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session._evaluations, "steps", unrecorded(session._evaluations))
        assert (model("a lighthouse", **arguments).pixels == recorded).all()


def test_memory_of_a_picture_is_buffers_and_scratch(plans, model, record_property):
    """What one more size takes must not hold another copy of the weights."""
    from cuda.bindings import driver

    model("a", num_inference_steps=2, seed=0)
    # CUDA's pool keeps what it is given back: what the loop takes does not count from here on.
    device = model.executor._device
    device.allocate(1 << 27)
    device.synchronize()
    before = driver.cuMemGetInfo()[1]
    model("a", num_inference_steps=2, seed=0, width=96, height=96)
    taken = before - driver.cuMemGetInfo()[1]
    record_property("bytes of a second size", taken)
    print(f"\n{taken / 1e6:.1f} MB for a second size")
    built = (plans[0] / "engines").rglob("unet.plan")
    # TensorRT's own allocations come in blocks of 2 MB.
    assert taken < max(path.stat().st_size for path in built) + 2**22
