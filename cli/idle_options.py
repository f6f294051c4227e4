"""Options that would do nothing are refused, or named where they are harmless."""

from __future__ import annotations

import argparse
import warnings

from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.samplers.names import meaning

USES_ETA = ("DDIMScheduler", "TCDScheduler")


def refuse_idle(options: argparse.Namespace) -> None:
    """Check the flags of ``generate`` that go with others.

    Raises
    ------
    RequestError
        One of them is given without.
    """
    shows_steps = options.preview or options.save_steps or options.animate
    if options.decode_steps and not shows_steps:
        raise RequestError(
            "--decode-steps does nothing without --preview, --save-steps or "
            "--animate; add one of them"
        )
    if options.prompts is None and options.shard is not None:
        raise RequestError("--shard does nothing without --prompts FILE")
    if options.prompts is not None and shows_steps:
        raise RequestError(
            "--preview, --save-steps and --animate are for single pictures; leave "
            "them out of --prompts"
        )


def warn_of_idle(config: GenerationConfig, bundle: Bundle) -> None:
    """Warn of options that make no difference beside the others.

    Parameters
    ----------
    config : GenerationConfig
        What is asked for.
    bundle : Bundle
        The model; its own scheduler draws where no sampler is asked for.
    """
    own = str(bundle.scheduler.get("_class_name"))
    if config.eta and (meaning(config.sampler)[0] if config.sampler else own) not in USES_ETA:
        _warn("--eta does nothing with this sampler; ddim and tcd use it")
    why = f"without guidance; --guidance {config.guidance_scale:g} turns it off"
    if bundle.guidance_width is not None:
        why = "with this model, whose UNet takes the scale of guidance and has no second half"
    elif config.guidance_scale > 1:
        return
    given = {
        "--negative": config.negative_prompt,
        "--guidance-rescale": config.guidance_rescale,
        "--guidance-interval": config.guidance_interval,
    }
    for flag, value in given.items():
        if value:
            _warn(f"{flag} does nothing {why}")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=1)
