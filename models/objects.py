"""What the built-in model can draw, for those who ask it for something else."""

from __future__ import annotations

import json
import re
from functools import cache

from bksdm.models import EMOJI


@cache
def known_objects() -> dict[str, tuple[str, ...]]:
    """Return the objects that the emoji model draws, and every name of each."""
    table = json.loads((EMOJI / "concepts.json").read_text(encoding="utf-8"))
    return {name: (name, *table["synonyms"].get(name, ())) for name in table["icons"]}


def names_an_object(prompt: str) -> bool:
    """Return whether a prompt names an object that the emoji model draws."""
    words = f" {' '.join(re.findall(r'[a-z]+', prompt.lower()))} "
    return any(f" {name} " in words for names in known_objects().values() for name in names)
