"""CLIP's byte-pair tokenizer (Radford et al. 2021) on the ``tokenizers`` library."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import BundleError, RequestError
from bksdm.runtime.tokenizer_files import TokenizerFiles

T = TypeVar("T")


class TruncationWarning(UserWarning):
    """Part of a prompt lies beyond the text encoder's context and was cut."""


class Tokens(NamedTuple):
    """Prompts as a text encoder takes them.

    Attributes
    ----------
    ids : ndarray, int64, shape [rows, length]
        Each row: start token, text, end token, padding.
    mask : ndarray, int64, shape [rows, length]
        1 where a token stands, 0 where there is padding.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


class Tokenizer:
    """Prompts to token ids; equal to ``transformers.CLIPTokenizer`` on any text.

    A token of textual inversion with several vectors, ``<cat>`` beside ``<cat>_1``, ``<cat>_2`` …,
    stands for all of them, as ``maybe_convert_prompt`` of diffusers' pipelines has it.

    Parameters
    ----------
    files : TokenizerFiles
        What a folder holds.
    embeddings : int, optional
        How many tokens the text encoder knows.
    """

    def __init__(self, files: TokenizerFiles, embeddings: int | None = None) -> None:
        self._files = files
        self._backend = files.backend
        self._embeddings = embeddings
        self._room = files.length - 2
        self._vectors = _multi_vector_tokens(files)
        self.length = files.length

    @classmethod
    def load(cls, folder: Path, embeddings: int | None = None) -> Tokenizer:
        """Read a folder as transformers does.

        Raises
        ------
        BundleError
            A file is missing or damaged, or every prompt would have a token that the text encoder
            does not know; names it.
        """
        files = TokenizerFiles.read(folder)
        last = max(files.pad_id, *files.backend.encode("").ids)
        if embeddings is not None and last >= embeddings:
            raise BundleError(
                f"{folder}: {files.backend.id_to_token(last)!r} is token number {last}, but the "
                f"text encoder knows only {embeddings}"
            )
        return cls(files, embeddings)

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Return the ids of :meth:`rows`."""
        return self.rows(prompts).ids

    def rows(self, prompts: Sequence[str]) -> Tokens:
        """Tokenize prompts, one row each.

        Text that does not fit is cut and reported in a :class:`TruncationWarning`.

        Raises
        ------
        RequestError
            A prompt holds a lone surrogate, which is no Unicode text, or a token that the text
            encoder does not know.
        """
        texts = []
        for prompt in prompts:
            start, *text, end = self._encode(prompt)[0].ids
            kept = self._cut(text, self._room)
            if len(kept) < len(text):
                left = self._files.cuts_left
                beyond = text[: -self._room] if left else text[self._room :]
                cut = self._backend.decode(beyond).replace("</w>", " ")
                warnings.warn(
                    f"cut from the prompt, which is beyond {self.length} tokens: {cut.strip()!r}",
                    TruncationWarning,
                    stacklevel=3,
                )
            texts.append([start, *kept, end])
        return self._filled(texts)

    def parts(self, prompt: str) -> Tokens:
        """Tokenize a prompt of any length into as many rows as it needs.

        Raises
        ------
        RequestError
            As for :meth:`rows`.
        """
        start, *text, end = self._encode(prompt)[0].ids
        return self._filled([[start, *piece, end] for piece in self._pieces(text)])

    def weights(self, prompt: str, weights: Sequence[float], parts: int) -> NDArray[np.float64]:
        """Return a weight per token, [parts * length], from one per character of a prompt.

        A token has the weight of its first character; start, end and padding have 1.
        """
        encoding, origins = self._encode(prompt)
        text = zip(encoding.offsets[1:-1], encoding.special_tokens_mask[1:-1], strict=True)
        by_token = [1.0 if special else weights[origins[start]] for (start, _), special in text]
        found = np.ones((parts, self.length))
        pieces = self._pieces(self._cut(by_token, parts * self._room))
        for row, piece in zip(found, pieces, strict=False):
            row[self._place(len(piece) + 2)] = [1, *piece, 1]
        return found.ravel()

    def _cut(self, text: list[T], room: int) -> list[T]:
        return text[-room:] if self._files.cuts_left else text[:room]

    def _pieces(self, text: list[T]) -> list[list[T]]:
        """Divide a text into what fits a row, one row at least."""
        room = self._room
        return [text[first : first + room] for first in range(0, max(len(text), 1), room)]

    def _place(self, count: int) -> slice:
        """Return where in a row so many tokens stand."""
        return slice(-count, None) if self._files.pads_left else slice(count)

    def _filled(self, texts: list[list[int]]) -> Tokens:
        ids = np.full((len(texts), self.length), self._files.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, present, text in zip(ids, mask, texts, strict=True):
            row[self._place(len(text))] = text
            present[self._place(len(text))] = 1
        return Tokens(ids, mask)

    def _encode(self, prompt: str) -> tuple[Any, Sequence[int]]:
        """Return the library's encoding, and where in the prompt each of its characters was."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"prompt is not valid Unicode ({error.reason})") from error
        origins: Sequence[int] = range(len(prompt))
        if self._vectors:
            found = self._backend.encode(prompt, add_special_tokens=False).tokens
            for token in dict.fromkeys(found):
                if token in self._vectors:
                    prompt, origins = _replaced(prompt, origins, token, self._vectors[token])
        encoding = self._backend.encode(prompt)
        known = self._embeddings
        if known is not None and (unknown := [i for i in encoding.ids if i >= known]):
            raise RequestError(
                f"prompt has the token {self._backend.id_to_token(unknown[0])!r}, number "
                f"{unknown[0]}, but the text encoder knows only {known}"
            )
        return encoding, origins


def _multi_vector_tokens(files: TokenizerFiles) -> dict[str, str]:
    """Return what stands for each added token that has numbered ones beside it."""
    added = {token.content for token in files.backend.get_added_tokens_decoder().values()}
    found = {}
    for token in added:
        numbered = takewhile(added.__contains__, (f"{token}_{i}" for i in count(1)))
        vectors = [token, *numbered]
        if len(vectors) > 1:
            found[token] = " ".join(vectors)
    return found


def _replaced(text: str, origins: Sequence[int], old: str, new: str) -> tuple[str, Sequence[int]]:
    """Replace all of ``old``; what is longer in ``new`` comes from where ``old`` began."""
    first, *others = text.split(old)
    found = list(origins[: len(first)])
    position = len(first)
    for other in others:
        found += origins[position : position + len(old)]
        found += [origins[position]] * (len(new) - len(old))
        position += len(old)
        found += origins[position : position + len(other)]
        position += len(other)
    return text.replace(old, new), found


__all__ = ["Tokenizer", "Tokens", "TruncationWarning"]
