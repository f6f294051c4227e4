"""CLIP's byte-pair tokenizer (Radford et al. 2021) on the ``tokenizers`` library."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from bksdm.engines.errors import BundleError, RequestError
from bksdm.runtime.bundle import read_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
CONTEXT = 77


class TruncationWarning(UserWarning):
    """Part of a prompt lies beyond the text encoder's context and was cut."""


class Tokenizer:
    """Prompts to token ids; equal to ``transformers.CLIPTokenizer`` on any text.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        Adds the start and end tokens by itself.
    pad_id : int
        What fills a row behind the end token.
    length : int
        Tokens in a row, start and end included.
    """

    def __init__(self, backend: Backend, pad_id: int, length: int) -> None:
        self._backend = backend
        self._pad_id = pad_id
        self.length = length

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` where it is absent.

        Raises
        ------
        BundleError
            A file is missing or damaged; names it.
        """
        whole = folder / "tokenizer.json"
        source = whole if whole.is_file() else folder / "vocab.json"
        try:
            backend = Backend.from_file(str(whole)) if source == whole else _build(folder)
        except BundleError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{source}: not a CLIP tokenizer ({error})") from error
        backend.no_padding()
        backend.no_truncation()
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                config |= read_json(folder / name)
        pad = config.get("pad_token", END)
        pad = pad.get("content") if isinstance(pad, dict) else pad
        pad_id = backend.token_to_id(pad) if isinstance(pad, str) else None
        if pad_id is None:
            raise BundleError(
                f"{folder / 'tokenizer_config.json'}: pad_token {pad!r} is not in the vocabulary"
            )
        length = config.get("model_max_length", CONTEXT)
        valid = isinstance(length, int) and not isinstance(length, bool) and 2 < length <= 4096
        return cls(backend, pad_id, length if valid else CONTEXT)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Tokenize prompts.

        Returns
        -------
        ndarray, int64, shape [prompts, length]
            Start token, text, end token, padding. Text that does not fit is cut and reported in a
            :class:`TruncationWarning`.

        Raises
        ------
        RequestError
            A prompt holds a lone surrogate, which is no Unicode text.
        """
        ids = np.full((len(prompts), self.length), self._pad_id, np.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            found = self._encoding(prompt).ids
            if len(found) > self.length:
                cut = self._backend.decode(found[self.length - 1 : -1]).replace("</w>", " ")
                warnings.warn(
                    f"cut from the prompt, which is beyond {self.length} tokens: {cut.strip()!r}",
                    TruncationWarning,
                    stacklevel=2,
                )
                found = [*found[: self.length - 1], found[-1]]
            row[: len(found)] = found
        return ids

    def parts(self, prompt: str) -> NDArray[np.int64]:
        """Tokenize a prompt of any length into as many rows as it needs.

        Returns
        -------
        ndarray, int64, shape [parts, length]
            Each row: start token, text, end token, padding.

        Raises
        ------
        RequestError
            The prompt holds a lone surrogate, which is no Unicode text.
        """
        start, *text, end = self._encoding(prompt).ids
        room = self.length - 2
        pieces = [text[first : first + room] for first in range(0, max(len(text), 1), room)]
        ids = np.full((len(pieces), self.length), self._pad_id, np.int64)
        for row, piece in zip(ids, pieces, strict=True):
            row[: len(piece) + 2] = [start, *piece, end]
        return ids

    def weights(self, prompt: str, weights: Sequence[float], parts: int) -> NDArray[np.float64]:
        """Return a weight per token, [parts * length], from one per character of a prompt.

        A token has the weight of its first character; start, end and padding have 1.
        """
        room = self.length - 2
        found = np.ones((parts, self.length))
        encoding = self._encoding(prompt)
        text = zip(encoding.offsets[1:-1], encoding.special_tokens_mask[1:-1], strict=True)
        for position, ((start, _), special) in enumerate(text):
            if position < parts * room and not special:
                found[position // room, 1 + position % room] = weights[start]
        return found.ravel()

    def _encoding(self, prompt: str) -> Any:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"prompt is not valid Unicode ({error.reason})") from error
        return self._backend.encode(prompt)


def _build(folder: Path) -> Backend:
    vocabulary = read_json(folder / "vocab.json")
    path = folder / "merges.txt"
    if not all(isinstance(value, int) for value in vocabulary.values()):
        raise BundleError(f"{folder / 'vocab.json'}: every token must map to an integer")
    for token in (START, END):
        if token not in vocabulary:
            raise BundleError(f"{folder / 'vocab.json'}: {token} is missing")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
    words = [line.split() for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in words):
        raise BundleError(f"{path}: every line must hold two tokens")
    merges = [(first, second) for first, second in words]
    backend = Backend(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=END,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), False, False
    )
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (START, END)]
    )
    return backend


__all__ = ["Tokenizer", "TruncationWarning"]
