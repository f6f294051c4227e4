"""Prompts to embeddings."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import NonFiniteError
from bksdm.engines.once import once
from bksdm.engines.protocol import Engine
from bksdm.runtime.prompt_weights import apply_weights, parse_weights
from bksdm.runtime.tokenizer import Tokenizer, Tokens

MAX_CACHED_PROMPTS = 256


@dataclass(frozen=True)
class Wording:
    """How prompts are read.

    Attributes
    ----------
    weighted : bool
        Whether they hold marks of :mod:`~bksdm.runtime.prompt_weights`.
    long : bool
        Whether what lies beyond the text encoder's context follows in further parts, rather than
        being cut off.
    clip_skip : int
        How many of the text encoder's last layers are left out.
    negatives : int
        How many of the texts, the first ones, are negative prompts. No layer is left out for them,
        as in diffusers.
    """

    weighted: bool = False
    long: bool = False
    clip_skip: int = 0
    negatives: int = 0

    @property
    def plain(self) -> bool:
        """Whether every text is read as it stands, in one part and by all layers."""
        return not (self.weighted or self.long or self.clip_skip)

    def of(self, index: int) -> Wording:
        """Return how one of the texts is read, wherever it stands."""
        skipped = 0 if index < self.negatives else self.clip_skip
        return replace(self, clip_skip=skipped, negatives=0)


PLAIN = Wording()
Reading = tuple[str, Wording]
"""A text, and how it is read."""


class PromptEncoder:
    """A bundle's tokenizer and text encoder; remembers what it has encoded. Threads may share it.

    Parameters
    ----------
    tokenizer : Tokenizer
        The bundle's tokenizer.
    load : callable
        Returns the text encoder without so many of its last layers.
    masked : bool
        Whether a text encoder that asks for it is told which tokens are padding, rather than that
        none is.
    """

    def __init__(
        self, tokenizer: Tokenizer, load: Callable[[int], Engine], masked: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.masked = masked
        self.load = once(load)
        self._known: OrderedDict[Reading, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(
        self, texts: Sequence[str], wording: Wording, seconds: dict[str, float]
    ) -> NDArray[np.float32]:
        """Return embeddings [texts, tokens, width], float32; equal texts are encoded once.

        Long prompts are encoded in parts of 77 tokens, each with its own start and end, that stand
        one after the other; shorter ones beside them are followed by empty parts.

        Parameters
        ----------
        texts : sequence of str
            Prompts.
        wording : Wording
            How they are read.
        seconds : dict
            Where the wall time of ``tokenize`` and ``text_encoder`` is added.

        Raises
        ------
        NonFiniteError
            The network produced NaN or infinity.
        """
        readings = [(text, wording.of(index)) for index, text in enumerate(texts)]
        filling = [("", how) for _, how in readings] if wording.long else []
        wanted = list(dict.fromkeys((*readings, *filling)))
        # All of them, so that what is cut off is said each time.
        parts = self._tokenize(list(dict.fromkeys(text for text, _ in wanted)), wording, seconds)
        with self._lock:
            known = {reading: self._known.get(reading) for reading in wanted}
        embeddings = {reading: found for reading, found in known.items() if found is not None}
        for how in dict.fromkeys(how for _, how in wanted):
            new = [text for text, its in wanted if its == how and (text, its) not in embeddings]
            if new:
                embeddings |= self._encode({text: parts[text] for text in new}, how, seconds)
        self._remember(embeddings)
        found = [embeddings[reading] for reading in readings]
        longest = max(map(len, found))
        if any(len(embedding) < longest for embedding in found):
            parts_needed = longest // self.tokenizer.length
            empty = [np.tile(embeddings[reading], (parts_needed, 1)) for reading in filling]
            pairs = zip(found, empty, strict=True)
            found = [np.concatenate([part, rest[len(part) :]]) for part, rest in pairs]
        return np.stack(found)

    def _remember(self, embeddings: dict[Reading, NDArray[np.float32]]) -> None:
        """Keep embeddings, those of the latest call the longest."""
        with self._lock:
            for reading, embedding in embeddings.items():
                self._known[reading] = embedding
                self._known.move_to_end(reading)
            while len(self._known) > MAX_CACHED_PROMPTS:
                self._known.popitem(last=False)

    def _tokenize(
        self, texts: list[str], wording: Wording, seconds: dict[str, float]
    ) -> dict[str, Tokens]:
        """Return the tokens by text, [parts, 77] each."""
        start = time.perf_counter()
        plain = [_plain(text, wording) for text in texts]
        if wording.long:
            rows = [self.tokenizer.parts(text) for text in plain]
        else:
            ids, mask = self.tokenizer.rows(plain)
            rows = [Tokens(*pair) for pair in zip(ids[:, None], mask[:, None], strict=True)]
        seconds["tokenize"] = time.perf_counter() - start
        return dict(zip(texts, rows, strict=True))

    def _encode(
        self, parts: dict[str, Tokens], wording: Wording, seconds: dict[str, float]
    ) -> dict[Reading, NDArray[np.float32]]:
        """Return embeddings, [parts * 77, width] each, of texts that are read in the same way."""
        encoder = self.load(wording.clip_skip)
        start = time.perf_counter()
        ids, mask = (np.concatenate(rows) for rows in zip(*parts.values(), strict=True))
        given = {"input_ids": ids, "attention_mask": mask if self.masked else np.ones_like(mask)}
        feeds = {
            name: given[name].astype(spec.dtype, copy=False)
            for name, spec in encoder.inputs.items()
            if name in given
        }
        hidden = encoder(feeds)["last_hidden_state"].astype(np.float32, copy=False)
        if not np.isfinite(hidden).all():
            raise NonFiniteError("embeddings of the text encoder: NaN or infinity")
        embeddings = {}
        ends = np.cumsum([len(rows.ids) for rows in parts.values()])
        for text, part in zip(parts, np.split(hidden, ends[:-1]), strict=True):
            embedding = part.reshape(-1, part.shape[-1])
            if wording.weighted:
                plain, weights = parse_weights(text)
                by_token = self.tokenizer.weights(plain, weights, len(part))
                embedding = apply_weights(embedding, by_token)
            embeddings[text, wording] = embedding
        taken = time.perf_counter() - start
        seconds["text_encoder"] = seconds.get("text_encoder", 0.0) + taken
        return embeddings


def _plain(text: str, wording: Wording) -> str:
    """Return a prompt without its marks."""
    return parse_weights(text)[0] if wording.weighted else text
