"""A byte-level CLIP vocabulary made by rule, so that dummy checkpoints need no download."""

from __future__ import annotations

import json
from pathlib import Path

from bksdm.engines.errors import ExportError

START = "<|startoftext|>"
END = "<|endoftext|>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYMBOLS = 512
_SPECIALS = 2


def byte_symbols() -> list[str]:
    """Return the 256 printable characters that stand for bytes in byte-level BPE.

    Returns
    -------
    list of str
        In the order of OpenAI's ``bytes_to_unicode``: printable Latin-1 first, then the rest moved
        to code points from 256 on.

    Notes
    -----
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _pairs() -> list[tuple[str, str]]:
    """Every merge the vocabulary may hold, the short and common-looking ones first.

    Two letters ending a word, two letters inside one, then three- and four-letter pieces: 26² +
    26² + 26³ and more, enough to fill CLIP's 48,894 places with reachable tokens.
    """
    inside = [(a, b) for a in _LETTERS for b in _LETTERS]
    ending = [(a, b + "</w>") for a, b in inside]
    three = [(a + b, c) for a, b in inside for c in _LETTERS]
    three_ending = [(a + b, c + "</w>") for a, b in inside for c in _LETTERS]
    four = [(a + b, c + d) for a, b in inside for c, d in inside]
    return ending + inside + three_ending + three + four


def build_vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Build a byte-level BPE vocabulary with contiguous ids, the special tokens last.

    Parameters
    ----------
    size
        Number of tokens: 256 byte symbols, 256 that end a word, merges, start and end of text.

    Returns
    -------
    (dict, list)
        Token to id, and the merges in order of priority.

    Raises
    ------
    ExportError
        The size is below the 514 that the bytes and the special tokens take.
    """
    if size < _SYMBOLS + _SPECIALS:
        raise ExportError(f"a byte-level vocabulary takes 514 tokens or more, not {size}")
    merges = _pairs()[: size - _SYMBOLS - _SPECIALS]
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != size:
        raise ExportError(f"no byte-level vocabulary of {size} tokens; the largest is CLIP's 49408")
    return vocabulary, merges


def write_tokenizer(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], length: int
) -> None:
    """Write the four files that Stable Diffusion repositories carry for their tokenizer.

    Parameters
    ----------
    folder
        Created; receives ``vocab.json``, ``merges.txt``, ``tokenizer_config.json`` and
        ``special_tokens_map.json``. There is no ``tokenizer.json``, as on the hub.
    vocabulary, merges
        As `build_vocabulary` returns them.
    length
        ``model_max_length``, 77 for CLIP.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    folder.mkdir(parents=True)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    # newline="\n": the same bytes on every system.
    with (folder / "merges.txt").open("w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(lines) + "\n")
    specials = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        **specials,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    }
    for name, content in (
        ("vocab.json", vocabulary),
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", specials),
    ):
        text = json.dumps(content, indent=None if name == "vocab.json" else 2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")
