"""Pictures of the steps in files, and in terminals of every kind."""

from __future__ import annotations

import base64
import io
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

from bksdm.cli import main
from bksdm.cli.terminal import (
    ROWS,
    TerminalPicture,
    as_blocks,
    as_iterm,
    as_kitty,
    as_sixel,
    choose_encoding,
)
from bksdm.engines.errors import RequestError


@pytest.fixture
def picture():
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    return Image.fromarray(colours).resize((96, 96), Image.Resampling.NEAREST)


def test_steps_and_an_animation_are_written(tmp_path, capsys):
    code = main(
        [
            "generate",
            "a red apple",
            "--steps",
            "4",
            "--sampler",
            "euler",
            "--count",
            "2",
            "--seed",
            "0",
            "-o",
            str(tmp_path / "a.png"),
            "--decode-steps",
            "--save-steps",
            str(tmp_path / "steps"),
            "--animate",
            str(tmp_path / "a.webp"),
        ]
    )
    assert code == 0
    names = {path.name for path in (tmp_path / "steps").iterdir()}
    assert names == {f"step-{k}{image}.png" for k in range(1, 5) for image in ("", "-2")}
    for image in ("", "-2"):
        last, final = (
            np.asarray(Image.open(tmp_path / name), int)
            for name in (f"steps/step-4{image}.png", f"a{image}.png")
        )
        # Euler's last step is x̂_0; a value between two levels may fall to either.
        assert np.abs(last - final).max() <= 1
        with Image.open(tmp_path / f"a{image}.webp") as animation:
            # Four steps; the picture itself is equal to the last of them, and one frame with it.
            assert animation.n_frames in (4, 5)
            animation.seek(animation.n_frames - 1)
            shown = np.asarray(animation.convert("RGB"), int)
        # WebP at this quality loses a little.
        assert np.abs(shown - final).mean() < 6
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / n) for n in ("a.png", "a-2.png", "a.webp", "a-2.webp")]


def test_the_quick_map_enlarges_to_the_picture(tmp_path):
    steps = tmp_path / "steps"
    code = main(
        [
            "generate",
            "a red apple",
            "--steps",
            "2",
            "--sampler",
            "ddim",
            "--seed",
            "0",
            "-o",
            str(tmp_path / "a.png"),
            "--save-steps",
            str(steps),
        ]
    )
    assert code == 0
    assert sorted(path.name for path in steps.iterdir()) == ["step-1.png", "step-2.png"]
    with Image.open(tmp_path / "a.png") as final:
        assert all(Image.open(path).size == final.size for path in steps.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--animate", "a.gif"], "ends in .webp"),
        (["--animate", "{file}/none/a.webp"], "no writable folder"),
        (["--preview"], "needs a terminal"),
        (["--save-steps", "{file}/x"], "cannot make"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, arguments, named):
    file = tmp_path / "file"
    file.touch()
    told = [argument.format(file=file) for argument in arguments]
    assert main(["generate", "a", "-o", str(tmp_path / "a.png"), *told]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_kitty_and_iterm_are_sent_the_picture(picture):
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", as_kitty(picture, 30))
    data = base64.b64decode("".join(piece for _, piece in pieces))
    np.testing.assert_array_equal(Image.open(io.BytesIO(data)), picture)
    assert all(len(piece) <= 4096 for _, piece in pieces)
    assert [keys[-3:] for keys, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
    found = re.fullmatch(r"\x1b]1337;File=([^:]*):([^\x07]*)\x07", as_iterm(picture, 30))
    np.testing.assert_array_equal(Image.open(io.BytesIO(base64.b64decode(found[2]))), picture)
    assert f"height={ROWS}" in found[1]


def decode_sixels(text):
    """Colours of a picture in sixels, in per cent, [height, width, 3]."""
    body = re.fullmatch(r'\x1bP[0-9;]*q"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    width, height = int(body[1]), int(body[2])
    pixels, palette = np.full((height + 6, width, 3), -1), {}
    top = left = colour = 0
    for found in re.finditer(
        r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])", body[3]
    ):
        if found[1]:
            palette[int(found[1])] = [int(found[i]) for i in (2, 3, 4)]
        elif found[5]:
            colour = int(found[5])
        elif found[9]:
            left, top = 0, top + 6 * (found[9] == "-")
        else:
            count, code = (int(found[6]), found[7]) if found[6] else (1, found[8])
            for row in range(6):
                if (ord(code) - 63) >> row & 1:
                    pixels[top + row, left : left + count] = palette[colour]
            left += count
    return pixels[:height]


def test_sixels_hold_the_picture(picture):
    decoded = decode_sixels(as_sixel(picture, 32))
    assert (decoded >= 0).all()
    height, width = decoded.shape[:2]
    expected = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) / 2.55
    # A palette of 256 colours, in whole per cent.
    assert np.abs(decoded - expected).max() < 8
    np.testing.assert_array_equal(decoded[0, 0], [100, 0, 0])
    np.testing.assert_array_equal(decoded[-1, -1], [100, 100, 100])


def test_blocks_hold_the_picture(picture):
    lines = as_blocks(picture, 8).split("\n")
    assert len(lines) == ROWS
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;255;0;0m▀")
    assert lines[-1].endswith("\x1b[38;2;255;255;255;48;2;255;255;255m▀\x1b[0m")


@pytest.mark.parametrize(
    ("variables", "encode"),
    [
        ({"TERM": "xterm-kitty"}, as_kitty),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, as_kitty),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, as_iterm),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, as_iterm),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, as_blocks),
        ({"TERM": "xterm-256color"}, as_blocks),
    ],
)
def test_the_terminal_says_what_it_is(monkeypatch, variables, encode):
    for name in ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose_encoding(io.StringIO()) is encode


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_terminal_is_asked_for_sixels_and_left_as_it_was(monkeypatch, picture):
    import pty
    import termios
    import threading

    monkeypatch.setenv("TERM", "xterm")
    for name in ("TERM_PROGRAM", "KITTY_WINDOW_ID"):
        monkeypatch.delenv(name, raising=False)
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    written = []

    def answer():
        asked = b""
        while b"\x1b[c" not in asked:
            asked += os.read(ours, 64)
        os.write(ours, b"\x1b[?62;4;22c")
        while b"\x1b[0m" not in b"".join(written[-2:]):
            written.append(os.read(ours, 65536))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with os.fdopen(theirs, "r+b", buffering=0) as raw:
        terminal = io.TextIOWrapper(raw, write_through=True)
        monkeypatch.setattr(sys, "stdin", terminal)
        shown = TerminalPicture(terminal)
        assert termios.tcgetattr(theirs) == before
        shown.show(picture)
        shown.show(picture)
        shown.close()
        thread.join(timeout=10)
        terminal.detach()
    text = b"".join(written).decode()
    assert text.count("\x1bP0;1;0q") == 2
    # Lines are reserved once, and every picture is drawn from the same place.
    assert text.count("\x1b[17A") == 1
    assert text.count("\x1b7") == text.count("\x1b8") == 2


def test_a_file_is_no_terminal():
    with pytest.raises(RequestError, match="needs a terminal"):
        TerminalPicture(io.StringIO())
