"""The kernels' own source, on the driver of the tests, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.compile import compile_kernels
from bksdm.runtime.cuda.device import as_array
from bksdm.runtime.cuda.evaluation import PARTS
from bksdm.runtime.cuda.slot import CONTROL
from bksdm.runtime.guidance import guide, rescale_deviation
from bksdm.runtime.images import to_uint8

from .simulated import TARGET, machine_code


class Run:
    """Arrays on the simulated device."""

    def __init__(self, device):
        self.device = device
        self.control = np.zeros(1, CONTROL)
        self._memory = {}

    def put(self, **arrays):
        for name, array in arrays.items():
            host = self.device.allocate_host(array.nbytes)
            as_array(host, array.dtype, array.shape)[:] = array
            self._memory[name] = self.device.allocate(array.nbytes)
            self.device.copy(self._memory[name], host, array.nbytes)
            self.device.synchronize()

    def address(self, name):
        return self._memory[name].address

    def get(self, name, dtype, shape):
        memory = self._memory[name]
        host = self.device.allocate_host(memory.size)
        self.device.copy(host, memory, memory.size)
        self.device.synchronize()
        values = as_array(host, np.uint8, (memory.size,)).view(dtype)
        return values.reshape(shape).copy()

    def kernel(self, name, count, *arguments):
        addresses = [self.address(a) if isinstance(a, str) else a for a in arguments]
        self.device.load(machine_code(TARGET), name)(count, *addresses)


@pytest.mark.parametrize("steps", [1, 2, 7, 26, 100])
@pytest.mark.parametrize(("images", "side"), [(1, 1), (1, 17), (3, 9)])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(("draws", "masked"), [(0, False), (5, True)])
def test_a_trajectory_is_that_of_float64(device, steps, images, side, guided, draws, masked):
    rng = np.random.default_rng(steps * 1000 + images * 100 + side + guided)
    size, halves = images * 4 * side, 2 if guided else 1
    before = 1 + draws
    rows = np.tril(rng.normal(size=(steps + 1, before + steps)), draws).astype(np.float32)
    timesteps = np.sort(rng.uniform(0, 999, steps))[::-1].astype(np.float32)
    input_scale = rng.uniform(0.1, 1, steps).astype(np.float32)
    start = rng.normal(size=size).astype(np.float32)
    run = Run(device)
    history = np.full((before + steps, size), np.nan, np.float32)
    history[0], history[1:before] = start, rng.normal(size=(draws, size))
    levels = rng.uniform(0, 1, (steps + 1, 2)).astype(np.float32)
    pictures, mask = rng.normal(size=(2, size)).astype(np.float32), rng.random(size) < 0.5
    run.put(pictures=pictures, mask=mask.astype(np.uint8), levels=levels)
    run.put(
        rows=rows,
        timesteps=timesteps,
        input_scale=input_scale,
        history=history,
        latents=start,
        sample=np.zeros(halves * size, np.float16),
        timestep=np.zeros(halves * images, np.float32),
    )
    run.control["total"] = run.control["first_bad_step"] = steps
    run.control["draws"], run.control["guidance"] = draws, 7.5
    of_mask = ("pictures", "mask") if masked else ()
    for name in ("timesteps", "input_scale", "rows", "levels", "history", *of_mask):
        run.control[name] = run.address(name)
    run.put(control=run.control)
    exact = list(history[:before].astype(np.float64))
    for k in range(steps):
        run.kernel(
            "feed",
            max(size, halves * images),
            "control",
            "latents",
            "sample",
            "timestep",
            size,
            halves,
            images,
        )
        latents = run.get("latents", np.float32, size)
        fed = run.get("sample", np.float16, (halves, size))
        assert (fed == (latents * input_scale[k]).astype(np.float16)).all()
        assert (run.get("timestep", np.float32, halves * images) == timesteps[k]).all()
        prediction = rng.normal(size=(halves, size)).astype(np.float16)
        run.put(prediction=prediction)
        run.kernel("step", size, "control", "prediction", "latents", 0, size, halves, images)
        noise = prediction[0].astype(np.float64)
        if guided:
            noise += 7.5 * (prediction[1] - noise)
        exact.append(noise)
        past = np.stack(exact)
        row = rows[k + 1, : len(past)].astype(np.float64)
        # A float32 sum of products: each addition rounds once, relative to the largest sum.
        bound = (len(past) + 2) * 2.0**-24 * (np.abs(row) @ np.abs(past))
        bound += 2.0**-22 * np.abs(past).max()
        found = run.get("latents", np.float32, size)
        made = mask if masked else np.full(size, True)
        assert (np.abs(found - row @ past) <= bound)[made].all()
        kept = levels[k + 1].astype(np.float64) @ pictures
        # Two products and a sum of float32 values below 8.
        np.testing.assert_allclose(found[~made], kept[~made], rtol=0, atol=2.0**-20)
    control = run.get("control", CONTROL, (1,))[0]
    assert control["first_bad_step"] == steps
    assert (control["step"], control["next"]) == (steps - 1, steps)


@pytest.mark.parametrize(("images", "inner"), [(1, (4, 1, 1)), (3, (4, 9, 7)), (2, (4, 64, 64))])
@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_guidance_is_rescaled_image_by_image(device, images, inner, amount):
    rng = np.random.default_rng(images)
    size = images * int(np.prod(inner))
    # Deviations of their own, about means that are not 0.
    spread = rng.uniform(0.5, 2, (2, images, 1, 1, 1))
    prediction = (rng.normal(size=(2, images, *inner)) * spread + 3 * spread).astype(np.float16)
    run = Run(device)
    run.put(
        prediction=prediction,
        latents=np.full(size, np.nan, np.float32),
        history=np.zeros((2, size), np.float32),
        rows=np.eye(2, dtype=np.float32),
        sums=np.full((images, PARTS, 4), np.nan),
        factors=np.full(images, np.nan, np.float32),
    )
    run.control["total"] = run.control["first_bad_step"] = 1
    run.control["guidance"], run.control["rescale"] = 7.5, amount
    run.control["rows"], run.control["history"] = run.address("rows"), run.address("history")
    run.put(control=run.control)
    run.kernel("sum_moments", images * PARTS, "control", "prediction", "sums", size, images, PARTS)
    run.kernel("rescale", images, "control", "sums", "factors", size, images, PARTS)
    run.kernel("step", size, "control", "prediction", "latents", "factors", size, 2, images)
    wanted = np.empty((images, *inner), np.float32)
    guide(prediction.reshape(-1, *inner).astype(np.float32), 7.5, wanted)
    rescale_deviation(wanted, prediction[1].astype(np.float32), amount)
    # The factor and the product round once each; moments are float64.
    np.testing.assert_allclose(run.get("latents", np.float32, wanted.shape), wanted, rtol=2.0**-22)


def test_every_half_becomes_the_pixel_that_diffusers_makes_of_it(device):
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    area = len(halves) // 3
    sample = halves[: 3 * area].reshape(1, 3, area)
    run = Run(device)
    run.put(control=run.control, sample=sample, pixels=np.zeros(3 * area, np.uint8))
    run.kernel("to_pixels", area, "control", "sample", "pixels", area, 1)
    found = run.get("pixels", np.uint8, (1, 1, area, 3))
    assert (found == to_uint8(sample.reshape(1, 3, 1, area))).all()
    assert run.get("control", CONTROL, (1,))[0]["bad_pixels"] == 0


def test_pixels_of_several_pictures_keep_their_places(device):
    sample = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 3, 5, 7)).astype(np.float16)
    run = Run(device)
    run.put(control=run.control, sample=sample, pixels=np.zeros(sample.size, np.uint8))
    run.kernel("to_pixels", 3 * 35, "control", "sample", "pixels", 35, 3)
    assert (run.get("pixels", np.uint8, (3, 5, 7, 3)) == to_uint8(sample)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 500, 999])
def test_one_bad_value_is_noted(device, bad, place):
    values = np.ones(1000, np.float16)
    run = Run(device)
    run.put(control=run.control, good=values)
    run.kernel("check_embeddings", 1000, "control", "good", 1000)
    assert run.get("control", CONTROL, (1,))[0]["bad_embeddings"] == 0
    values[place] = bad
    run.put(spoilt=values)
    run.kernel("check_embeddings", 1000, "control", "spoilt", 1000)
    assert run.get("control", CONTROL, (1,))[0]["bad_embeddings"] == 1


@pytest.mark.parametrize("target", ["sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120"])
def test_kernels_compile_for_every_gpu(target):
    assert compile_kernels(target).startswith(b"\x7fELF")


def test_an_unknown_target_is_an_error():
    with pytest.raises(EngineError, match="cannot be compiled for sm12345"):
        compile_kernels("sm12345")
