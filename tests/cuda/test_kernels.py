"""The kernels' own source, on the driver of the tests, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.engines.errors import EngineError
from bksdm.runtime.cuda.compile import LOOP, STEPS, compile_kernels
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
        self._memory, self._hosts = {}, {}

    def put(self, **arrays):
        for name, array in arrays.items():
            host = self._host(array.nbytes)
            as_array(host, array.dtype, array.shape)[:] = array
            if name not in self._memory:
                self._memory[name] = self.device.allocate(array.nbytes)
            self.device.copy(self._memory[name], host, array.nbytes)
            self.device.synchronize()

    def _host(self, size):
        """Return memory to copy so many bytes by: every wait checks the fences of all there is."""
        if size not in self._hosts:
            self._hosts[size] = self.device.allocate_host(size)
        return self._hosts[size]

    def address(self, name):
        return self._memory[name].address

    def get(self, name, dtype, shape):
        memory = self._memory[name]
        host = self._host(memory.size)
        self.device.copy(host, memory, memory.size)
        self.device.synchronize()
        values = as_array(host, np.uint8, (memory.size,)).view(dtype)
        return values.reshape(shape).copy()

    def kernel(self, name, count, *arguments):
        addresses = [self.address(a) if isinstance(a, str) else a for a in arguments]
        self.device.load(machine_code(TARGET), name)(count, *addresses)


class SlotOfFloat64:
    """One slot of a batch: its control block and what that points to, and float64 beside it."""

    def __init__(self, run, name, rng, steps, draws, count, masked):
        self.steps, self.before = steps, 1 + draws
        self.rows = np.tril(rng.normal(size=(steps + 1, self.before + steps)), draws)
        self.rows = self.rows.astype(np.float32)
        self.timesteps = np.sort(rng.uniform(0, 999, steps))[::-1].astype(np.float32)
        self.input_scale = rng.uniform(0.1, 1, steps).astype(np.float32)
        self.start = rng.normal(size=count).astype(np.float32)
        history = np.full((self.before + steps, count), np.nan, np.float32)
        history[0], history[1 : self.before] = self.start, rng.normal(size=(draws, count))
        self.exact = list(history[: self.before].astype(np.float64))
        self.levels = rng.uniform(0, 1, (steps + 1, 2)).astype(np.float32)
        self.pictures, self.made = rng.normal(size=(2, count)).astype(np.float32), np.full(count, 1)
        arrays = {
            "rows": self.rows,
            "timesteps": self.timesteps,
            "input_scale": self.input_scale,
            "history": history,
            "levels": self.levels,
        }
        if masked:
            self.made = (rng.random(count) < 0.5).astype(np.uint8)
            arrays |= {"pictures": self.pictures, "mask": self.made}
        run.put(**{f"{array} {name}": values for array, values in arrays.items()})
        self.control = np.zeros(1, CONTROL)
        self.control["total"] = self.control["first_bad_step"] = steps
        self.control["draws"] = draws
        self.guidance = rng.uniform(1, 9)
        self.control["guidance"] = self.guidance
        # Some are guided in the middle only; the others take the conditional half.
        self.guided = range(steps // 3, steps - steps // 4)
        self.control["guided_from"], self.control["guided_until"] = (
            self.guided.start,
            self.guided.stop,
        )
        for array in arrays:
            self.control[array] = run.address(f"{array} {name}")

    def fed(self, k, latents):
        """Return what the UNet is to be given in step k."""
        if k >= self.steps:
            return np.zeros_like(latents, np.float16), 0
        return (latents * self.input_scale[k]).astype(np.float16), self.timesteps[k]

    def validate(self, k, prediction, before, after):
        """Compare the latents after step k."""
        if k >= self.steps:
            np.testing.assert_array_equal(after, before)
            return
        noise = prediction[-1].astype(np.float64)
        if k in self.guided and len(prediction) == 2:
            first = prediction[0].astype(np.float64)
            noise = first + np.float32(self.guidance).astype(np.float64) * (noise - first)
        self.exact.append(noise)
        past = np.stack(self.exact)
        row = self.rows[k + 1, : len(past)].astype(np.float64)
        # A float32 sum of products: each addition rounds once, relative to the largest sum.
        bound = (len(past) + 2) * 2.0**-24 * (np.abs(row) @ np.abs(past))
        bound += 2.0**-22 * np.abs(past).max()
        made = self.made.astype(bool)
        assert (np.abs(after - row @ past) <= bound)[made].all()
        kept = self.levels[k + 1].astype(np.float64) @ self.pictures
        # Two products and a sum of float32 values below 8.
        np.testing.assert_allclose(after[~made], kept[~made], rtol=0, atol=2.0**-20)


@pytest.mark.parametrize("steps", [1, 2, 7, 26, 100])
@pytest.mark.parametrize(("images", "count"), [(1, 4), (1, 68), (3, 36)])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(("draws", "masked"), [(0, False), (5, True)])
def test_every_slot_has_a_trajectory_of_its_own(
    device, steps, images, count, guided, draws, masked
):
    """Slots after the first have fewer steps, other draws and no mask; the last one is free."""
    rng = np.random.default_rng(steps * 1000 + images * 100 + count + guided)
    run = Run(device)
    slots = [
        SlotOfFloat64(run, n, rng, max(1, steps - 2 * n), draws if n == 0 else n, count, masked)
        for n in range(images)
    ]
    if not guided:
        for slot in slots:
            slot.control["guided_from"] = slot.control["guided_until"] = 0
    batch, halves = images + 1, 2 if guided else 1
    size = batch * count
    latents = np.stack([*(slot.start for slot in slots), np.full(count, np.nan, np.float32)])
    run.put(
        latents=latents,
        sample=np.zeros((halves, size), np.float16),
        timestep=np.full((halves, batch), np.nan, np.float32),
        controls=np.concatenate([*(slot.control for slot in slots), np.zeros(1, CONTROL)]),
    )
    shape = count, halves, batch
    for k in range(steps):
        run.kernel("feed", size, "controls", "latents", "sample", "timestep", *shape)
        fed = run.get("sample", np.float16, (halves, batch, count))
        times = run.get("timestep", np.float32, (halves, batch))
        assert (fed[:, -1] == 0).all()
        assert (times[:, -1] == 0).all()
        prediction = rng.normal(size=(halves, batch, count)).astype(np.float16)
        prediction[:, -1] = np.nan
        run.put(prediction=prediction)
        run.kernel("step", size, "controls", "prediction", "latents", 0, *shape)
        found = run.get("latents", np.float32, (batch, count))
        for n, slot in enumerate(slots):
            sample, timestep = slot.fed(k, latents[n])
            assert (fed[:, n] == sample).all()
            assert (times[:, n] == timestep).all()
            slot.validate(k, prediction[:, n], latents[n], found[n])
        assert np.isnan(found[-1]).all()
        latents = found
    for control, slot in zip(run.get("controls", CONTROL, (batch,)), slots, strict=False):
        assert control["first_bad_step"] == control["next"] == slot.steps


@pytest.mark.parametrize(("images", "inner"), [(2, (4, 1, 1)), (4, (4, 9, 7)), (3, (4, 64, 64))])
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
        history=np.zeros((images, 2, size // images), np.float32),
        rows=np.eye(2, dtype=np.float32),
        sums=np.full((images, PARTS, 4), np.nan),
        factors=np.full(images, np.nan, np.float32),
    )
    controls = np.zeros(images, CONTROL)
    controls["total"] = controls["first_bad_step"] = controls["guided_until"] = 1
    controls["guidance"], controls["rescale"] = 7.5, amount
    # The last picture is not rescaled.
    controls["rescale"][-1] = 0
    count = size // images
    controls["rows"] = run.address("rows")
    controls["history"] = run.address("history") + 8 * count * np.arange(images)
    run.put(controls=controls)
    shape = count, images, PARTS
    run.kernel("sum_moments", images * PARTS, "controls", "prediction", "sums", *shape)
    run.kernel("rescale", images, "controls", "sums", "factors", *shape)
    run.kernel("step", size, "controls", "prediction", "latents", "factors", count, 2, images)
    wanted = np.empty((images, *inner), np.float32)
    guide(prediction.reshape(-1, *inner).astype(np.float32), 7.5, wanted)
    rescale_deviation(wanted[:-1], prediction[1, :-1].astype(np.float32), amount)
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
    for name in (STEPS, LOOP):
        assert compile_kernels(target, name).startswith(b"\x7fELF")
    # A driver that does not know conditional nodes could not load what every picture takes.
    assert b"cudaGraphSetConditional" not in compile_kernels(target)


def test_an_unknown_target_is_an_error():
    with pytest.raises(EngineError, match="cannot be compiled for sm12345"):
        compile_kernels("sm12345")
