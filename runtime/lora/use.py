"""What a request says of LoRAs: names of those that are loaded, and how strong each is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bksdm.engines.errors import RequestError
from bksdm.runtime.validation import number, plain, several, shown

# What separates names, scales and A1111's marks.
_SEPARATORS = ",:<>"
_LONGEST_NAME = 100
MAX_LORAS = 32
"""Of one request."""


@dataclass(frozen=True)
class LoraUse:
    """One LoRA of a request.

    Attributes
    ----------
    name : str
        By which it was loaded.
    scale : float or None
        Strength; 1 is what it was trained for. None, in a request, is the scale that it was loaded
        with.
    sha256 : str
        Of its file; empty, in a request, for whichever file has the name.
    """

    name: str
    scale: float | None = None
    sha256: str = ""

    def __str__(self) -> str:
        stated = "" if self.scale is None else repr(self.scale)
        return ":".join(filter(None, (self.name, stated, self.sha256)))


def lora_uses(name: str, value: Any) -> tuple[LoraUse, ...]:
    """Return what an option says of LoRAs.

    Parameters
    ----------
    name : str
        The option's, for messages.
    value : mapping or sequence
        Scales by name; or names, pairs of name and scale, or mappings with ``name`` and ``scale``.

    Raises
    ------
    RequestError
        It is neither, a scale is not finite, or a name comes twice.
    """
    if isinstance(value, Mapping):
        found = [_use(name, pair) for pair in value.items()]
    elif (entries := several(value)) is not None:
        found = [_use(name, entry) for entry in entries]
    else:
        raise RequestError(
            f"{name} must be names and scales as {{'style': 0.8}}, not {shown(value)}"
        )
    if len(found) > MAX_LORAS:
        raise RequestError(f"{name} may have {MAX_LORAS} entries, not {len(found)}")
    names = [use.name for use in found]
    if twice := [each for each in names if names.count(each) > 1]:
        raise RequestError(f"{name} has {shown(twice[0])} twice; give the sum of the scales")
    return tuple(found)


def lora_name(name: str, value: Any) -> str:
    """Return a LoRA's name.

    Raises
    ------
    RequestError
        It is no text, or none that options and prompts can spell.
    """
    found = plain(value)
    if not isinstance(found, str) or not found.isprintable() or not found.strip():
        raise RequestError(f"{name} must be the name of a LoRA, not {shown(value)}")
    if len(found) > _LONGEST_NAME or any(mark in found for mark in _SEPARATORS):
        raise RequestError(
            f"{name} must be a name of at most {_LONGEST_NAME} characters without "
            f"{' '.join(_SEPARATORS)}, not {shown(found)}"
        )
    return found


def spellable(text: str) -> str:
    """Return a file's name as the name of a LoRA."""
    kept = "".join("_" if c in _SEPARATORS or not c.isprintable() else c for c in text)
    return kept.strip()[:_LONGEST_NAME] or "lora"


def _use(name: str, entry: Any) -> LoraUse:
    if isinstance(entry, LoraUse):
        entry = (entry.name, entry.scale, entry.sha256)
    if isinstance(entry, Mapping):
        if unknown := [key for key in entry if key not in ("name", "scale", "sha256")]:
            raise RequestError(f"{name}: an entry has name and scale, not {shown(unknown[0])}")
        entry = (entry.get("name"), entry.get("scale"), entry.get("sha256"))
    parts = [plain(entry)] if isinstance(plain(entry), str) else several(entry)
    if parts is None or not 1 <= len(parts) <= 3:
        raise RequestError(f"{name}: an entry must be a name and a scale, not {shown(entry)}")
    called, scale, sha256 = (*parts, None, None)[:3]
    if sha256 is not None and not isinstance(sha256, str):
        raise RequestError(f"{name}: sha256 must be a text, not {shown(sha256)}")
    return LoraUse(
        lora_name(name, called), None if scale is None else number(name, scale), sha256 or ""
    )
