"""Parts of a prompt that count more or less than the rest, as ``a (red:1.3) apple`` writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError

# What parentheses without a number multiply by, and brackets divide by.
EMPHASIS = 1.1
_PARTS = re.compile(
    r"\\[()\[\]\\]"  # an escaped mark
    r"|:\s*([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)\s*\)"  # a number that closes
    r"|[()\[\]]|[^\\()\[\]:]+|.",
    re.DOTALL,
)


def parse_weights(prompt: str) -> tuple[str, list[float]]:
    r"""Return the text without its marks, and a weight for each of its characters.

    ``(text:1.3)`` multiplies by 1.3, ``(text)`` by 1.1, ``[text]`` by 1/1.1, nested ones by all of
    them; ``\(`` is a parenthesis of the text. A mark without its partner is text as well.

    Raises
    ------
    RequestError
        A number is below 0 or above 10.
    """
    text: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []

    def close(kind: str, factor: float) -> bool:
        if not opened or opened[-1][0] != kind:
            return False
        start = opened.pop()[1]
        weights[start:] = [weight * factor for weight in weights[start:]]
        return True

    def write(part: str) -> None:
        text.append(part)
        weights.extend([1.0] * len(part))

    for found in _PARTS.finditer(prompt):
        part = found[0]
        if found[1] is not None and opened and opened[-1][0] == "(":
            factor = float(found[1])
            if not 0 <= factor <= 10:
                raise RequestError(f"prompt: a weight must be from 0 to 10, not {found[1]}")
            close("(", factor)
        elif part in ("(", "["):
            opened.append((part, len(weights)))
        elif (part == ")" and close("(", EMPHASIS)) or (part == "]" and close("[", 1 / EMPHASIS)):
            continue
        else:
            write(part[1:] if len(part) == 2 and part[0] == "\\" else part)
    return "".join(text), weights


def apply_weights(
    embeddings: NDArray[np.float32], weights: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return z' = w z · mean(z) / mean(w z), so that the whole keeps its mean.

    As the long-prompt-weighting pipeline of diffusers' community has it.

    Parameters
    ----------
    embeddings : ndarray, float32, shape [tokens, width]
        z of one prompt.
    weights : sequence of float, shape [tokens]
        w, one per token.
    """
    weighted = embeddings.astype(np.float64) * np.asarray(weights)[:, None]
    scaled: NDArray[np.float32] = (
        weighted * (embeddings.mean(dtype=np.float64) / weighted.mean())
    ).astype(np.float32)
    return scaled
