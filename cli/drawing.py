"""What drawing one batch and drawing a file of prompts have in common."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bksdm.cli.arguments import SIZE, options_named
from bksdm.models import EMOJI
from bksdm.models.objects import known_objects, names_an_object
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.images import open_picture
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.validation import shown


def input_paths(options: argparse.Namespace) -> dict[str, Path | None]:
    """Return the files of the pictures to start from."""
    return {"image": options.image, "mask": options.mask}


def open_inputs(options: argparse.Namespace) -> dict[str, Any]:
    """Return the pictures to start from."""
    return {
        name: None if path is None else open_picture(path)
        for name, path in input_paths(options).items()
    }


def load_model(options: argparse.Namespace, bundle: Bundle) -> TextToImage:
    """Load the networks as the flags ask for."""
    with options_named():
        return TextToImage.load(
            bundle,
            options.engine,
            options.threads,
            engine_cache=options.engine_cache,
            safety_checker=not options.no_safety_checker,
            device=None if options.device is None else f"cuda:{options.device}",
            precision=options.precision,
        )


def flags_named(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Return what puts the flags that were given into messages, see :func:`options_named`."""
    return options_named(**({} if options.size is None else SIZE))


def warn_of_unknown(bundle: Bundle, prompts: Iterable[str]) -> None:
    """Warn of prompts that name nothing the built-in model knows."""
    if bundle.path.resolve() != EMOJI.resolve():
        return
    unknown = [prompt for prompt in prompts if not names_an_object(prompt)]
    if unknown:
        some = list(known_objects())[::4]
        more = f" and {len(unknown) - 1} more prompts name" if len(unknown) > 1 else " names"
        warnings.warn(
            f"{shown(unknown[0])}{more} nothing that the built-in model can draw; it knows "
            f"{len(known_objects())} objects, such as {', '.join(some)}; --model takes another",
            stacklevel=1,
        )
