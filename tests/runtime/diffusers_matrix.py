"""diffusers' own schedulers, run in float64 on basis vectors, beside our compiled tables."""

from __future__ import annotations

import inspect
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from unittest import mock

import diffusers
import numpy as np
import scipy.stats
import torch

from bksdm.engines.errors import SamplerError
from bksdm.runtime.samplers import step_table
from bksdm.runtime.samplers.root import float32_root
from bksdm.runtime.samplers.schedule import beta_quantile

POWER = torch.Tensor.__pow__
# diffusers makes arrays of tensors, and torch has not caught up with numpy 2 yet.
ARRAY = "ignore:__array_(_|wrap__).* accept:DeprecationWarning:(diffusers|numpy)"


@contextmanager
def same_levels():
    """Let torch take float32 roots as we do; where those are torch's own is a test of its own.

    A root that is off in the last place can alone make a timestep of 998.99999 and then 998 out of
    999. And let scipy take 1/2 for the middle of the beta distribution, not 1e-16 more: a level can
    lie between two float32 values.
    """

    def power(base, exponent):
        if exponent == 0.5 and base.dtype == torch.float32:
            return torch.from_numpy(float32_root(base.reshape(-1).numpy())).reshape(base.shape)
        return POWER(base, exponent)

    def quantile(p, a, b):
        assert (a, b) == (0.6, 0.6)
        return beta_quantile(np.array([p]))[0]

    with (
        mock.patch.object(torch.Tensor, "__pow__", power),
        mock.patch.object(scipy.stats.beta, "ppf", quantile),
    ):
        yield


def scheduler_of(class_name, config, steps, custom=None, **stated):
    """Make a scheduler as ``from_config`` does, with its timesteps."""
    kind = getattr(diffusers, class_name)
    set_timesteps = kind.set_timesteps
    with ExitStack() as stack:
        if "set_timesteps" in inspect.getsource(kind.__init__):
            # Some set a thousand in their constructor, which takes a while.
            short = partial(set_timesteps, num_inference_steps=1)
            stack.enter_context(
                mock.patch.object(kind, "set_timesteps", lambda self, *_: short(self))
            )
        scheduler = kind.from_config(config, **stated)
    scheduler.set_timesteps(**(custom or {"num_inference_steps": steps}))
    return scheduler


def matrix_of(scheduler, eta=None, first=0):
    """Return what diffusers computes, as the columns of the basis that it computes it from."""
    module = sys.modules[type(scheduler).__module__]
    begin = first * scheduler.order
    # The tables stay float32-rounded, as diffusers uses them; the arithmetic becomes float64.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    if hasattr(scheduler, "sigmas"):
        _double_levels(scheduler)
        # As the image-to-image pipeline has it.
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    count = len(timesteps)
    draws = count if "generator" in inspect.signature(scheduler.step).parameters else 0
    changes = 1 + count + draws
    width = changes + max(count - 1, 0)
    basis = torch.eye(width, dtype=torch.float64).reshape(width, 1, 1, width)
    picture = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 1, 2)
    one, drawn = torch.ones(1, dtype=torch.float64), []

    def randn(shape, **options):
        drawn.append(shape)
        return basis[count + len(drawn)].reshape(shape)

    names = SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    extra = {} if eta is None else {"eta": eta}
    rows, scales, levels, x = [], [], [], basis[0]
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(module, "torch", names),
            mock.patch.object(module, "randn_tensor", randn, create=True),
        ):
            for k, t in enumerate(timesteps):
                rows.append(x.flatten())
                if k > 0:
                    # As a callback that changes the latents.
                    x = x + basis[changes + k - 1]
                levels.append(scheduler.add_noise(*picture, t[None]).flatten())
                scales.append(float(scheduler.scale_model_input(one, t)))
                x = scheduler.step(basis[k + 1], t, x, **extra).prev_sample
            rows.append(x.flatten())
    finally:
        torch.set_default_dtype(torch.float32)
    whole = torch.stack(rows).numpy()
    return SimpleNamespace(
        timesteps=timesteps.numpy(),
        rows=whole[:, : 1 + count],
        noise=whole[:, 1 + count :][:, : len(drawn)],
        carried=whole[:, changes:],
        input_scale=np.array(scales),
        levels=np.array([*(level.tolist() for level in levels), (1, 0)]),
        init_noise_sigma=float(scheduler.init_noise_sigma),
    )


def _double_levels(scheduler):
    levels = scheduler.sigmas = scheduler.sigmas.double()
    if not hasattr(scheduler, "sigmas_interpol"):
        return

    def spread(values):
        return torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]])

    # Those between two come from float32 logarithms; ours are the rounded roots of the products.
    sigmas = torch.cat([levels[:1], levels[1:-1:2]])
    if not hasattr(scheduler, "sigmas_up"):
        scheduler.sigmas_interpol = spread((sigmas * sigmas.roll(1)).sqrt().float().double())
        return
    following = torch.cat([sigmas[1:], torch.zeros(1, dtype=torch.float64)])
    up = (following**2 * (sigmas**2 - following**2) / sigmas**2) ** 0.5
    # What is left of σ'² − σ_up², which cancels.
    down = following**2 / sigmas
    down[-1] = 0
    middle = (sigmas * down).sqrt().float().double()
    middle[-2:] = 0
    scheduler.sigmas_interpol = spread(middle)
    scheduler.sigmas_up, scheduler.sigmas_down = spread(up), spread(down)


def compare(class_name, config, steps, sampler=None, stated=(), eta=None, first=0, custom=None):
    """Compare one table; return None, or why there is nothing to compare.

    ``custom`` is ``timesteps`` or ``sigmas`` of ``set_timesteps``.
    """
    fields = {
        "_class_name": class_name,
        **config,
        **({} if eta is None else {"eta": eta}),
        **(custom or {}),
    }
    table, refusal = None, ""
    try:
        table = step_table(fields, steps, sampler, first)
    except SamplerError as error:
        refusal = str(error)
    with same_levels():
        try:
            scheduler = scheduler_of(class_name, config, steps, custom, **dict(stated))
        except ValueError:
            assert refusal
            return refusal
    if table is None:
        levels = getattr(scheduler, "sigmas", torch.zeros(0))
        if "twice" in refusal:
            # A step of no length, by which diffusers divides.
            assert len(set(levels[:-1].tolist())) < len(levels) - 1
        elif "leads" in refusal:
            assert scheduler.timesteps[0] >= scheduler.config.num_train_timesteps
        elif "on the way up" in refusal or "must be below sigma_max" in refusal:
            assert (levels.diff() > 0).any()
        else:
            raise AssertionError(refusal)
        return refusal
    expected = matrix_of(scheduler, eta, first) if not _fails(scheduler) else None
    if expected is None or not np.isfinite(expected.rows).all():
        return "not finite in diffusers"
    _compare_timesteps(class_name, table, expected)
    # Coefficients reach 150 at σ_max, so 1e-9 leaves float64 a factor of 1e4 for the order of
    # operations and catches any float32 rounding (1e-5) or wrong index. A cosine schedule begins at
    # σ/α = 2e4, and what is left in the end is a difference of numbers so much larger.
    alpha, sigma = expected.levels[0]
    near = 1e-9 * max(1.0, sigma / alpha / 150)
    np.testing.assert_allclose(table.rows, expected.rows, rtol=near, atol=near)
    assert table.noise.shape == expected.noise.shape
    np.testing.assert_allclose(table.noise, expected.noise, rtol=near, atol=near)
    np.testing.assert_allclose(table.carried, expected.carried, rtol=near, atol=near)
    np.testing.assert_allclose(table.input_scale, expected.input_scale, rtol=1e-12)
    np.testing.assert_allclose(table.levels, expected.levels, rtol=1e-12)
    np.testing.assert_allclose(table.init_noise_sigma, expected.init_noise_sigma, rtol=1e-12)
    return None


def _compare_timesteps(class_name, table, expected):
    if not class_name.startswith("KDPM2"):
        np.testing.assert_array_equal(table.timesteps, expected.timesteps)
        return
    # Those between two levels are interpolated in float32: log σ to 2^-21, and a timestep can be
    # 3e-4 of it. The ancestral class takes the level between from σ_down² = σ'² − σ_up², which
    # cancels down to σ'⁴ / σ², and to nothing or less where the levels are 2^11 apart.
    away = np.full(len(table), 2**-21 / 3e-4)
    if "Ancestral" in class_name:
        sigma = expected.levels[:-1, 1]
        ratio = np.append(sigma[::2][:-1] / sigma[2::2], 1).repeat(2)[: len(away)]
        away = np.where(np.isfinite(expected.timesteps), away * (1 + ratio**2), np.inf)
    assert (np.abs(table.timesteps - np.nan_to_num(expected.timesteps)) <= away).all()


def _fails(scheduler):
    # Third order to the level 0, infinitely far away, is a singular system in diffusers' UniPC.
    config = scheduler.config
    return (
        type(scheduler).__name__ == "UniPCMultistepScheduler"
        and config.solver_order == 3
        and not config.lower_order_final
        and float(scheduler.sigmas[-1]) in (0.0, float(scheduler.sigmas[-2]))
        and len(scheduler.timesteps) > 2
    )
