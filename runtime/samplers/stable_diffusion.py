"""The schedule of Stable Diffusion 1.x and BK-SDM, for what has no bundle at hand."""

from __future__ import annotations

SCHEDULE: dict[str, object] = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
"""As in ``scheduler/scheduler_config.json`` of CompVis/stable-diffusion-v1-4."""
