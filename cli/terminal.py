"""Pictures in a terminal: by kitty's or iTerm2's protocol, as sixels, or as coloured blocks."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import shutil
import sys
from collections.abc import Callable
from typing import TextIO

import numpy as np
from PIL import Image

from bksdm.engines.errors import RequestError

ROWS = 16
"""Height of a picture in lines."""
# A character is about twice as high as it is wide, and at least this high in pixels.
CELL = (6, 12)
# What a terminal's answer takes, over a slow line too.
ANSWER_SECONDS = 0.3

Encode = Callable[[Image.Image, int], str]
"""Encodes a picture of a width in characters, to be written at the cursor."""


class TerminalPicture:
    """An area below the cursor in which each picture replaces the last.

    Parameters
    ----------
    stream : TextIO
        The terminal.

    Raises
    ------
    RequestError
        The stream is no terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        if not stream.isatty():
            raise RequestError("--preview needs a terminal to draw in; use --save-steps instead")
        self._stream = stream
        self._encode = choose_encoding(stream)
        self._reserved = False

    def show(self, picture: Image.Image) -> None:
        """Draw a picture; the cursor stays where it is."""
        if not self._reserved:
            # Lines first: a terminal that scrolls while it draws loses the place to come back to.
            self._stream.write("\n" * (ROWS + 1) + f"\x1b[{ROWS + 1}A")
            self._reserved = True
        columns = shutil.get_terminal_size().columns - 1
        width = max(1, min(round(2 * ROWS * picture.width / picture.height), columns))
        self._stream.write(f"\x1b7\x1b[1B\r{self._encode(picture, width)}\x1b8")
        self._stream.flush()

    def close(self) -> None:
        """Leave the last picture behind, with the cursor below it."""
        if self._reserved:
            self._stream.write(f"\x1b[{ROWS + 1}B\r\x1b[0m")
            self._stream.flush()


def choose_encoding(stream: TextIO) -> Encode:
    """Return the best encoding that a terminal claims to support."""
    kind, program = os.environ.get("TERM", ""), os.environ.get("TERM_PROGRAM", "")
    if kind.startswith(("screen", "tmux")):
        # A multiplexer in between answers for itself, and drops pictures.
        return as_blocks
    if "kitty" in kind or "KITTY_WINDOW_ID" in os.environ or program == "ghostty":
        return as_kitty
    if program in ("iTerm.app", "WezTerm"):
        return as_iterm
    return as_sixel if "4" in _attributes(stream) else as_blocks


def as_kitty(picture: Image.Image, width: int) -> str:
    """Encode by kitty's graphics protocol; the same id and place replace the last picture."""
    data = base64.b64encode(_png(picture)).decode()
    pieces = [data[i : i + 4096] for i in range(0, len(data), 4096)]
    keys = f"a=T,f=100,i=1,p=1,q=2,C=1,c={width},r={ROWS},"
    return "".join(
        f"\x1b_G{keys if i == 0 else ''}m={int(i < len(pieces) - 1)};{piece}\x1b\\"
        for i, piece in enumerate(pieces)
    )


def as_iterm(picture: Image.Image, width: int) -> str:
    """Encode by iTerm2's protocol for inline images."""
    data = base64.b64encode(_png(picture)).decode()
    return f"\x1b]1337;File=inline=1;width={width};height={ROWS}:{data}\x07"


def as_sixel(picture: Image.Image, width: int) -> str:
    """Encode as sixels (DEC VT340): six rows of pixels at a time, colour by colour."""
    small = picture.resize((width * CELL[0], ROWS * CELL[1]), Image.Resampling.BICUBIC)
    indexed = small.quantize(256, dither=Image.Dither.NONE)
    pixels = np.asarray(indexed)
    palette = np.asarray(indexed.getpalette(), int).reshape(-1, 3)
    used = np.unique(pixels)
    written = [f'\x1bP0;1;0q"1;1;{small.width};{small.height}']
    for colour in used:
        red, green, blue = (round(level * 100 / 255) for level in palette[colour])
        written.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, small.height, 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        for colour in np.unique(band):
            codes = ((band == colour) * bits).sum(axis=0) + 63
            # The same code many times is its number and the code once.
            runs = re.sub(
                r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", bytes(codes.tolist()).decode()
            )
            written.append(f"#{colour}{runs}$")
        written.append("-")
    return "".join(written) + "\x1b\\"


def as_blocks(picture: Image.Image, width: int) -> str:
    """Encode as half blocks, two pixels in each character: one is its colour, one its ground."""
    pixels = np.asarray(picture.resize((width, 2 * ROWS), Image.Resampling.BICUBIC))
    lines = []
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{';'.join(map(str, u))};48;2;{';'.join(map(str, v))}m▀"
            for u, v in zip(upper.tolist(), lower.tolist(), strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _attributes(stream: TextIO) -> set[str]:
    """Ask a terminal what it is (primary device attributes); 4 among the answer is sixels."""
    if not sys.stdin.isatty() or sys.platform == "win32":
        return set()
    import termios
    import tty

    source = sys.stdin.fileno()
    before = termios.tcgetattr(source)
    answer = b""
    try:
        tty.setcbreak(source)
        stream.write("\x1b[c")
        stream.flush()
        while not answer.endswith(b"c") and select.select([source], [], [], ANSWER_SECONDS)[0]:
            answer += os.read(source, 64)
    finally:
        termios.tcsetattr(source, termios.TCSANOW, before)
    found = re.search(rb"\x1b\[\?([0-9;]*)c", answer)
    return set() if found is None else set(found[1].decode().split(";"))
