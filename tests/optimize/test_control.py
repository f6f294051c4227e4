"""The networks that are made of a ControlNet and a UNet, beside the graphs they are made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel

from bksdm.engines.errors import EngineError
from bksdm.engines.registry import cpu_engines, open_engine
from bksdm.engines.variants import CONTROLLED, DEEP, HINT, HINTED, is_residual
from bksdm.optimize.variants import apply_variant

ROWS = np.array([0, 1, 1, 0])
NEAR = 3e-6
"""Of values around 1, in float32 with sums in another order."""


def inputs(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((2, 4, height, width)).astype(np.float32),
        np.array([3.0, 700.0], np.float32),
        rng.standard_normal((len(ROWS), 77, 32)).astype(np.float32),
        rng.random((2, 3, 8 * height, 8 * width)).astype(np.float32),
    )


@pytest.fixture(scope="module", params=cpu_engines())
def networks(request, controlled):
    bundle = controlled[2]

    def load(network, variant="", side=8):
        model = bundle / network / "model.onnx"
        return open_engine(request.param, model, 1, None, side, variant)

    return {
        "whole": load("controlnet_canny"),
        HINT: load("controlnet_canny", HINT, 64),
        HINTED: load("controlnet_canny", HINTED),
        DEEP: load("unet", DEEP),
        CONTROLLED: load("unet", CONTROLLED),
    }


@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
def test_a_hint_is_seen_once_and_rows_are_shared(networks, size):
    sample, timestep, text, picture = inputs(*size)
    expected = networks["whole"](
        {
            "sample": sample[ROWS],
            "timestep": timestep[ROWS],
            "encoder_hidden_states": text,
            "controlnet_cond": picture[ROWS],
        }
    )
    hint = networks[HINT]({"controlnet_cond": picture})
    once = {"sample": sample, "timestep": timestep, "sample_of_row": ROWS, **hint}
    found = networks[HINTED]({"encoder_hidden_states": text, **once})
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() < NEAR
        # Each row has its own picture and text, even where the latents are the same.
        assert array.std() > 0.05


@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
def test_residuals_are_added_as_diffusers_does(networks, controlled, size):
    sample, timestep, text, picture = inputs(*size)
    whole = {"sample": sample[ROWS], "timestep": timestep[ROWS], "encoder_hidden_states": text}
    made = networks["whole"]({**whole, "controlnet_cond": picture[ROWS]})
    assert set(made) == {name for name in networks[CONTROLLED].inputs if is_residual(name)}
    shared = {**whole, "sample": sample, "timestep": timestep, "sample_of_row": ROWS}
    plain = networks[DEEP](shared)["out_sample"]
    zeros = {name: np.zeros_like(array) for name, array in made.items()}
    assert np.array_equal(networks[CONTROLLED]({**shared, **zeros})["out_sample"], plain)
    unet = UNet2DConditionModel.from_pretrained(controlled[0] / "unet")
    # Of each by itself, so that two of one shape cannot be mistaken for each other.
    for name in made:
        one = {**zeros, name: made[name]}
        found = networks[CONTROLLED]({**shared, **one})["out_sample"]
        *down, mid = (torch.from_numpy(array) for array in one.values())
        with torch.no_grad():
            expected = unet(
                *map(torch.from_numpy, whole.values()),
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample.numpy()
        assert np.abs(found - expected).max() < NEAR
        assert np.abs(found - plain).max() > 1000 * NEAR


def test_a_unet_without_a_mid_block_takes_none(nano_bundle):
    proto = onnx.load(nano_bundle / "unet" / "model.onnx", load_external_data=False)
    with pytest.raises(EngineError, match="unet: has no mid block"):
        apply_variant(proto, CONTROLLED)


@pytest.mark.parametrize("variant", [HINT, HINTED])
def test_what_is_no_controlnet_has_no_hint(controlled, variant):
    proto = onnx.load(controlled[2] / "unet" / "model.onnx", load_external_data=False)
    with pytest.raises(EngineError, match="nowhere adds features of a picture"):
        apply_variant(proto, variant)
