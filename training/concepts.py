"""What the model learns to draw: concepts, background colours, and captions for them."""

from __future__ import annotations

import json

from bksdm.models import EMOJI

_TABLE = json.loads((EMOJI / "concepts.json").read_text(encoding="utf-8"))

ICONS: dict[str, str] = _TABLE["icons"]
"""Concept to the name of its picture in Fluent Emoji."""

SYNONYMS: dict[str, list[str]] = _TABLE["synonyms"]
"""Other names that captions give to a concept."""

BACKGROUNDS: dict[str, list[int]] = _TABLE["backgrounds"]
"""Colour name to RGB, 0 to 255. White is what a caption without a colour means."""

HELD_OUT: set[tuple[str, str]] = {(concept, colour) for concept, colour in _TABLE["held_out"]}
"""Pairs that no training picture shows."""

CONCEPTS: list[str] = list(ICONS)
COLOURS: list[str] = list(BACKGROUNDS)

_OPENINGS = ("{}", "{a} {}", "an emoji of {a} {}", "a picture of {a} {}")
_ENDINGS = ("{} on a {colour} background", "{}, {colour} background", "{} on {colour}")


def training_pairs() -> list[tuple[str, str]]:
    """Return every pair of concept and colour that may be shown."""
    pairs = [(concept, colour) for concept in CONCEPTS for colour in COLOURS]
    return [pair for pair in pairs if pair not in HELD_OUT]


def captions(concept: str, colour: str) -> list[str]:
    """Return every caption of a picture; half of those of a white one name no colour."""
    texts = []
    for name in (concept, *SYNONYMS.get(concept, ())):
        article = "an" if name[0] in "aeiou" else "a"
        for opening in _OPENINGS:
            text = opening.format(name, a=article)
            texts += [ending.format(text, colour=colour) for ending in _ENDINGS]
            if colour == "white":
                texts += [text] * len(_ENDINGS)
    return texts
