"""A1111's text on how a picture was made, which other programs read: three parts, in lines.

The prompt; ``Negative prompt:`` and that; and ``Name: value`` with commas between, as in
``Steps: 25, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 1, Size: 512x512``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NEGATIVE = "Negative prompt:"
# A name, and a value that is quoted where it has a comma.
_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
# A last line with fewer is one of the prompt's.
_FEWEST = 3


@dataclass(frozen=True)
class A1111Text:
    """The parts of the text.

    Attributes
    ----------
    prompt, negative_prompt : str
        May have several lines.
    settings : mapping
        By A1111's names, in the order that they are written in.
    """

    prompt: str
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        negative = f"\n{NEGATIVE} {self.negative_prompt}" if self.negative_prompt else ""
        line = ", ".join(f"{name}: {_quoted(value)}" for name, value in self.settings.items())
        return f"{self.prompt}{negative}\n{line}".strip()

    @classmethod
    def read(cls, text: str) -> A1111Text:
        """Return the parts of a text, as A1111's WebUI takes it apart."""
        *lines, last = text.strip().split("\n")
        settings = _SETTING.findall(last)
        if len(settings) < _FEWEST:
            lines, settings = [*lines, last], []
        begins = next(
            (i for i, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines)
        )
        prompt = "\n".join(line.strip() for line in lines[:begins])
        negative = "\n".join(line.strip() for line in lines[begins:]).removeprefix(NEGATIVE)
        return cls(prompt, negative.strip(), {name: _unquoted(value) for name, value in settings})


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:  # a quotation mark of the value itself
        return value
