"""Prompts to embeddings."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.once import once
from bksdm.engines.protocol import Engine
from bksdm.runtime.finite import require_finite
from bksdm.runtime.prompt_weights import apply_weights, parse_weights
from bksdm.runtime.tokenizer import Tokenizer, Tokens

if TYPE_CHECKING:
    from bksdm.runtime.job import DenoisingJob

MAX_CACHED_PROMPTS = 256


@dataclass(frozen=True)
class PromptOptions:
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
    """

    weighted: bool = False
    long: bool = False
    clip_skip: int = 0


PLAIN_PROMPT = PromptOptions()


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
        self._known: OrderedDict[tuple[str, PromptOptions], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def batch(self, job: DenoisingJob, seconds: dict[str, float]) -> NDArray[np.float32]:
        """Return the embeddings of a job's UNet batch, [rows, tokens, width], float32.

        With guidance the rows of the negative prompts come first.
        """
        embeddings = self(job.texts, job.prompt_options, seconds)
        return np.repeat(embeddings, job.images_per_prompt, axis=0)

    def ids(self, job: DenoisingJob) -> NDArray[np.int64]:
        """Return the token ids of a job's UNet batch, [rows, 77], if its prompts are plain."""
        return np.repeat(self.tokenizer(job.texts), job.images_per_prompt, axis=0)

    def __call__(
        self, texts: Sequence[str], options: PromptOptions, seconds: dict[str, float]
    ) -> NDArray[np.float32]:
        """Return embeddings [texts, tokens, width], float32; equal texts are encoded once.

        Long prompts are encoded in parts of 77 tokens, each with its own start and end, that stand
        one after the other; shorter ones beside them are followed by empty parts.

        Parameters
        ----------
        texts : sequence of str
            Prompts.
        options : PromptOptions
            How they are read.
        seconds : dict
            Where the wall time of ``tokenize`` and ``text_encoder`` is added.

        Raises
        ------
        NonFiniteError
            The network produced NaN or infinity.
        """
        wanted = list(dict.fromkeys((*texts, "") if options.long else texts))
        # All of them, so that what is cut off is said each time.
        parts = self._tokenize(wanted, options, seconds)
        with self._lock:
            known = {text: self._known.get((text, options)) for text in wanted}
        embeddings = {text: found for text, found in known.items() if found is not None}
        if new := {text: parts[text] for text in wanted if text not in embeddings}:
            embeddings |= self._encode(new, options, seconds)
        self._remember(embeddings, options)
        found = [embeddings[text] for text in texts]
        longest = max(map(len, found))
        if any(len(embedding) < longest for embedding in found):
            empty = np.tile(embeddings[""], (longest // self.tokenizer.length, 1))
            found = [np.concatenate([part, empty[len(part) :]]) for part in found]
        return np.stack(found)

    def _remember(self, embeddings: dict[str, NDArray[np.float32]], options: PromptOptions) -> None:
        """Keep embeddings, those of the latest call the longest."""
        with self._lock:
            for text, embedding in embeddings.items():
                self._known[text, options] = embedding
                self._known.move_to_end((text, options))
            while len(self._known) > MAX_CACHED_PROMPTS:
                self._known.popitem(last=False)

    def _tokenize(
        self, texts: list[str], options: PromptOptions, seconds: dict[str, float]
    ) -> dict[str, Tokens]:
        """Return the tokens by text, [parts, 77] each."""
        start = time.perf_counter()
        plain = [_plain(text, options) for text in texts]
        if options.long:
            rows = [self.tokenizer.parts(text) for text in plain]
        else:
            ids, mask = self.tokenizer.rows(plain)
            rows = [Tokens(*pair) for pair in zip(ids[:, None], mask[:, None], strict=True)]
        seconds["tokenize"] = time.perf_counter() - start
        return dict(zip(texts, rows, strict=True))

    def _encode(
        self, parts: dict[str, Tokens], options: PromptOptions, seconds: dict[str, float]
    ) -> dict[str, NDArray[np.float32]]:
        """Return embeddings by text, [parts * 77, width] each."""
        encoder = self.load(options.clip_skip)
        start = time.perf_counter()
        ids, mask = (np.concatenate(rows) for rows in zip(*parts.values(), strict=True))
        given = {"input_ids": ids, "attention_mask": mask if self.masked else np.ones_like(mask)}
        feeds = {
            name: given[name].astype(spec.dtype, copy=False)
            for name, spec in encoder.inputs.items()
            if name in given
        }
        hidden = encoder(feeds)["last_hidden_state"].astype(np.float32, copy=False)
        require_finite(hidden, "embeddings of the text encoder")
        embeddings = {}
        ends = np.cumsum([len(rows.ids) for rows in parts.values()])
        for text, part in zip(parts, np.split(hidden, ends[:-1]), strict=True):
            embedding = part.reshape(-1, part.shape[-1])
            if options.weighted:
                plain, weights = parse_weights(text)
                by_token = self.tokenizer.weights(plain, weights, len(part))
                embedding = apply_weights(embedding, by_token)
            embeddings[text] = embedding
        seconds["text_encoder"] = time.perf_counter() - start
        return embeddings


def _plain(text: str, options: PromptOptions) -> str:
    """Return a prompt without its marks."""
    return parse_weights(text)[0] if options.weighted else text
