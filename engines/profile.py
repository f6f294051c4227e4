"""Which batches and picture sizes an engine is built for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bksdm.engines.errors import EngineError

PIXELS_PER_LATENT = 8
# Of one prompt; a range up to long ones would cost every short one speed.
PROMPT_TOKENS = 77


@dataclass(frozen=True)
class Range:
    """Smallest, typical and largest value."""

    low: int
    typical: int
    high: int

    @property
    def values(self) -> tuple[int, int, int]:
        """All three, rising."""
        return self.low, self.typical, self.high

    def times(self, low: int, typical: int, high: int) -> Range:
        """Return the range with each of its values multiplied."""
        return Range(self.low * low, self.typical * typical, self.high * high)


@dataclass(frozen=True)
class Profile:
    """Images per call and their height and width in pixels."""

    batch: Range
    height: Range
    width: Range

    @classmethod
    def parse(cls, batch: str, size: str) -> Profile:
        """Read ``1:1:4`` and ``384x384:512x512:768x768``; a single value is all three.

        Raises
        ------
        EngineError
            The text has another form, a side is no multiple of 8, or the values do not rise.
        """
        counts = [_integer("--batch", part, 1) for part in _three("--batch", batch)]
        sizes = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", part) for part in _three("--size", size)]
        if not all(sizes):
            raise EngineError(
                f"--size must look like 512x512 or 384x384:512x512:768x768, not {size!r}"
            )
        widths, heights = (
            [_integer("--size", found[axis], PIXELS_PER_LATENT) for found in sizes if found]
            for axis in (1, 2)
        )
        return cls(
            *(
                _rising(name, values)
                for name, values in (("--batch", counts), ("--size", heights), ("--size", widths))
            )
        )

    @classmethod
    def read(cls, name: str) -> Profile:
        """Read what :meth:`__str__` wrote.

        Raises
        ------
        EngineError
            The text has another form.
        """
        batch, _, size = name.removeprefix("b").replace(".", ":").partition("-")
        return cls.parse(batch, size)

    def covers(self, images: int, height: int, width: int) -> bool:
        """Whether a call with so many images of that size in pixels can run."""
        return all(
            limits.low <= value <= limits.high
            for limits, value in ((self.batch, images), (self.height, height), (self.width, width))
        )

    def axis(self, component: str, symbol: str) -> Range:
        """Return the values of one dynamic axis of a bundle's graph.

        The UNet and the text encoder see each image twice when guidance is on.

        Raises
        ------
        EngineError
            The axis is none that ``bksdm export`` writes.
        """
        if symbol == "batch":
            doubled = component in ("text_encoder", "unet")
            return self.batch.times(1, 2, 2) if doubled else self.batch
        if symbol == "tokens":
            return Range(PROMPT_TOKENS, PROMPT_TOKENS, PROMPT_TOKENS)
        side = {"height": self.height, "width": self.width}.get(symbol.rpartition("*")[2])
        if side is None:
            raise EngineError(
                f"{component}: axis {symbol!r} is unknown; export the bundle with `bksdm export`"
            )
        factor = int(symbol.rpartition("*")[0] or 1)
        latent = [
            value * factor // PIXELS_PER_LATENT for value in (side.low, side.typical, side.high)
        ]
        return Range(*latent)

    def __str__(self) -> str:
        """Return a short name that is fit for a folder."""
        batch = _short([str(value) for value in self.batch.values])
        sizes = zip(self.width.values, self.height.values, strict=True)
        return f"b{batch}-{_short([f'{w}x{h}' for w, h in sizes])}"


def _short(parts: list[str]) -> str:
    return parts[0] if len(set(parts)) == 1 else ".".join(parts)


def _three(name: str, text: str) -> list[str]:
    parts = text.split(":")
    if len(parts) not in (1, 3):
        raise EngineError(f"{name} must be one value or smallest:typical:largest, not {text!r}")
    return parts * 3 if len(parts) == 1 else parts


def _integer(name: str, text: str, multiple: int) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
    if value < 1 or value % multiple:
        wanted = f"a multiple of {multiple}" if multiple > 1 else "a whole number from 1 on"
        raise EngineError(f"{name} must be {wanted}, not {text!r}")
    return value


def _rising(name: str, values: list[int]) -> Range:
    if values != sorted(values):
        raise EngineError(f"{name} must not fall from smallest to largest: {values}")
    return Range(*values)
