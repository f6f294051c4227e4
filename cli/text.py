"""Make text safe to print: no control characters, and encodable by every stream."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

ESCAPED = "bksdm.escaped"
"""Name of an error handler for streams; see :func:`_escape`."""
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, lone surrogates, line separators, and what turns the direction of text."""


def printable(text: str, kept: str = "") -> str:
    r"""Return text with control characters escaped, as ``\x1b``.

    Parameters
    ----------
    text : str
        May come from an untrusted file.
    kept : str
        Characters that are not escaped, such as the line ends of a report.
    """
    return UNSEEN.sub(lambda found: found[0] if found[0] in kept else ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return a message as a single line."""
    return printable(" ".join(text.split()))


def as_json(value: Any) -> str:
    """Return JSON in ASCII, without control characters except line ends."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write the original bytes of a file name, and escape characters outside the encoding."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if 0xDC80 <= code <= 0xDCFF:
        return bytes([code - 0xDC00]), error.start + 1
    return ascii(chr(code))[1:-1], error.start + 1


codecs.register_error(ESCAPED, _escape)
