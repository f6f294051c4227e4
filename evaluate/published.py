"""The figures of BK-SDM's model card, and a table that puts runs beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bksdm.evaluate import protocol
from bksdm.evaluate.estimate import Scores
from bksdm.evaluate.run_folder import COUNT, RunFolder
from bksdm.runtime.bundle import read_json

CARD = Path(__file__).with_name("bk_sdm_card.json")
SCORES = "scores.json"
"""In the folder of a run that is complete: its scores."""
HEADER = ("model", "FID ↓", "IS ↑", "CLIP score ↑", "UNet", "in all", "differs from the card")
# What the card's scripts set, by the names of a run's settings.
CARDS_OWN: Mapping[str, Any] = {
    COUNT: protocol.PROMPTS,
    "precision": protocol.PRECISION,
    "num_inference_steps": protocol.STEPS,
    "guidance_scale": protocol.GUIDANCE,
    "scheduler": protocol.SCHEDULER,
    "height": protocol.SIDE,
    "width": protocol.SIDE,
    "clip_model": protocol.CLIP_MODEL,
    "fast": 0,
    "vae": "full",
}


@dataclass(frozen=True)
class Published:
    """A row of the card.

    Attributes
    ----------
    model : str
        By the card's name.
    fid, inception_score, clip_score : float
        Its scores.
    unet_parameters, parameters : float
        Of the UNet, and of all networks that draw.
    """

    model: str
    fid: float
    inception_score: float
    clip_score: float
    unet_parameters: float
    parameters: float


@cache
def card() -> tuple[Published, ...]:
    """Return the rows of the card, in its order."""
    rows = json.loads(CARD.read_text(encoding="utf-8"))["rows"]
    return tuple(Published(**row) for row in rows)


def card_source() -> str:
    """Return where the figures are from."""
    return str(json.loads(CARD.read_text(encoding="utf-8"))["source"])


def rows(runs: Sequence[RunFolder]) -> list[tuple[str, ...]]:
    """Return the rows of :data:`HEADER`: the card's, then one of each run.

    Parameters
    ----------
    runs : sequence of RunFolder
        Complete ones.

    Raises
    ------
    BundleError
        A run has no scores yet.
    """
    theirs = [
        (
            row.model,
            f"{row.fid:.2f}",
            f"{row.inception_score:.2f}",
            f"{row.clip_score:.4f}",
            _billions(row.unet_parameters),
            _billions(row.parameters),
            "",
        )
        for row in card()
    ]
    return [*theirs, *map(_row, runs)]


def _row(run: RunFolder) -> tuple[str, ...]:
    found = Scores.from_fields(read_json(run.path / SCORES)["scores"])
    return (
        str(run.settings["model"]),
        *found.shown(),
        _billions(run.settings["unet_parameters"]),
        _billions(run.settings["parameters"]),
        "; ".join(differences(run.settings)),
    )


def differences(settings: Mapping[str, Any]) -> list[str]:
    """Return what a run does otherwise than the card's scripts, one entry each.

    Its seeds always do: they draw all noise from one generator on a GPU, so that a picture depends
    on all those before it.
    """
    told = [
        f"{name} {settings[name]} (card: {own})"
        for name, own in CARDS_OWN.items()
        if settings[name] != own
    ]
    return [*told, f"engine {settings['engine']}", "a seed for each prompt"]


def _billions(parameters: float) -> str:
    return f"{parameters / 1e9:.2f}B"
