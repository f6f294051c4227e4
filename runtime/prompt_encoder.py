"""Prompts to embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.engines.once import once
from bksdm.engines.protocol import Engine
from bksdm.engines.variants import skipping
from bksdm.runtime.finite import require_finite
from bksdm.runtime.lora.factors import Factors, Key
from bksdm.runtime.lora.networks import AdaptedNetworks
from bksdm.runtime.prompt_weights import apply_weights, parse_weights
from bksdm.runtime.recent import Recent
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
        How many of the text encoder's last layers are left out; never for negative prompts, as in
        diffusers.
    """

    weighted: bool = False
    long: bool = False
    clip_skip: int = 0


PLAIN_PROMPT = PromptOptions()


class Prompt(NamedTuple):
    """A text, how it is read, and the key of what LoRAs change of the text encoder."""

    text: str
    options: PromptOptions
    factors: Key = ()


class _Parsed(NamedTuple):
    """A text without its marks, the weights of its characters, and its tokens [parts, 77]."""

    plain: str
    weights: Sequence[float] | None
    tokens: Tokens


def _continued(
    encoded: Mapping[Prompt, NDArray[np.float32]], prompt: Prompt, length: int
) -> NDArray[np.float32]:
    """Return the embedding of a prompt, with those of empty parts until it is long enough."""
    row = [encoded[prompt]]
    while sum(map(len, row)) < length:
        row.append(encoded[prompt._replace(text="")])
    return row[0] if len(row) == 1 else np.concatenate(row)


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
    adapted : AdaptedNetworks, optional
        The text encoders of jobs with LoRAs.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        load: Callable[[int], Engine],
        masked: bool = True,
        adapted: AdaptedNetworks | None = None,
    ) -> None:
        self.adapted = adapted
        self.tokenizer = tokenizer
        self.masked = masked
        self.load = once(load)
        self._known: Recent[Prompt, NDArray[np.float32]] = Recent(MAX_CACHED_PROMPTS)

    def __call__(self, job: DenoisingJob, seconds: dict[str, float]) -> NDArray[np.float32]:
        """Return the embeddings of a job's UNet batch, [rows, tokens, width], float32.

        With guidance the rows of the negative prompts come first. Equal prompts are encoded once.
        Long ones are encoded in parts of 77 tokens, each with its own start and end, that stand one
        after the other; shorter ones beside them are followed by empty parts.

        Parameters
        ----------
        job : DenoisingJob
            Has the prompts.
        seconds : dict
            Where the wall time of ``tokenize`` and ``text_encoder`` is added.

        Raises
        ------
        NonFiniteError
            The network produced NaN or infinity.
        RequestError
            Embeddings that stand in for a text differ in length from the others.
        """
        halves = [(job.prompts, job.prompt_options, job.prompt_embeds)]
        if job.guidance is not None:
            whole = replace(job.prompt_options, clip_skip=0)
            halves.insert(0, (job.negative_prompts, whole, job.negative_prompt_embeds))
        factors = job.loras.text_encoder
        key = () if factors is None else factors.key
        prompts = [
            Prompt(text, options, key)
            for texts, options, given in halves
            if given is None
            for text in texts
        ]
        encoded = self._embeddings(prompts, seconds, factors) if prompts else {}
        longest = max(map(len, encoded.values()), default=0)
        rows: list[NDArray[np.float32]] = []
        for texts, options, given in halves:
            rows.extend(
                (_continued(encoded, Prompt(text, options, key), longest) for text in texts)
                if given is None
                else given
            )
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1:
            raise RequestError(
                f"prompt_embeds and negative_prompt_embeds must have as many tokens as each other, "
                f"not {lengths[0]} and {lengths[1]}; text has {self.tokenizer.length}"
            )
        return np.stack([row for row in rows for _ in range(job.images_per_prompt)])

    def load_adapted(self, factors: Factors, skipped: int = 0) -> Engine:
        """Return the text encoder that takes a job's factors; loads it first."""
        assert self.adapted is not None
        return self.adapted(skipping(skipped), factors.scope)

    def ids(self, job: DenoisingJob) -> NDArray[np.int64]:
        """Return the token ids of a job's UNet batch, [rows, 77], if its prompts are plain."""
        texts = (*job.negative_prompts, *job.prompts) if job.guidance else job.prompts
        return np.repeat(self.tokenizer(texts), job.images_per_prompt, axis=0)

    def _embeddings(
        self, prompts: Sequence[Prompt], seconds: dict[str, float], factors: Factors | None
    ) -> dict[Prompt, NDArray[np.float32]]:
        """Return embeddings [parts * 77, width] by prompt, with those of empty ones if needed."""
        empty = [prompt._replace(text="") for prompt in prompts if prompt.options.long]
        wanted = dict.fromkeys((*prompts, *empty))
        # All of them, so that what is cut off is said each time.
        start = time.perf_counter()
        parsed = self._parse(
            list(dict.fromkeys(prompt.text for prompt in wanted)), prompts[0].options
        )
        seconds["tokenize"] = time.perf_counter() - start
        found: dict[Prompt, NDArray[np.float32]] = {}
        for prompt in wanted:
            known = self._known.get(prompt)
            if known is not None:
                found[prompt] = known
        start = time.perf_counter()
        for options in dict.fromkeys(prompt.options for prompt in wanted if prompt not in found):
            new = [p for p in wanted if p.options == options and p not in found]
            texts = [parsed[prompt.text] for prompt in new]
            encoded = self._encode(texts, options.clip_skip, factors)
            for prompt, embedding in zip(new, encoded, strict=True):
                found[prompt] = embedding
                self._known.keep(prompt, embedding)
            seconds["text_encoder"] = time.perf_counter() - start
        return found

    def _parse(self, texts: list[str], options: PromptOptions) -> dict[str, _Parsed]:
        if options.weighted:
            plain, weights = zip(*map(parse_weights, texts), strict=True)
        else:
            plain, weights = tuple(texts), (None,) * len(texts)
        if options.long:
            tokens = [self.tokenizer.parts(text) for text in plain]
        else:
            ids, mask = self.tokenizer.rows(plain)
            tokens = [Tokens(*pair) for pair in zip(ids[:, None], mask[:, None], strict=True)]
        return dict(zip(texts, map(_Parsed, plain, weights, tokens), strict=True))

    def _encode(
        self, prompts: Sequence[_Parsed], skipped: int, factors: Factors | None
    ) -> list[NDArray[np.float32]]:
        """Return embeddings, [parts * 77, width] each, in one run of the text encoder."""
        encoder = self.load(skipped) if factors is None else self.load_adapted(factors, skipped)
        ids = np.concatenate([prompt.tokens.ids for prompt in prompts])
        mask = np.concatenate([prompt.tokens.mask for prompt in prompts])
        given = {"input_ids": ids, "attention_mask": mask if self.masked else np.ones_like(mask)}
        feeds = {
            name: given[name].astype(spec.dtype, copy=False)
            for name, spec in encoder.inputs.items()
            if name in given
        }
        if factors is not None:
            feeds |= factors.feeds(encoder.inputs)
        hidden = encoder(feeds)["last_hidden_state"].astype(np.float32, copy=False)
        require_finite(hidden, "embeddings of the text encoder")
        ends = np.cumsum([len(prompt.tokens.ids) for prompt in prompts])[:-1]
        embeddings = []
        for prompt, part in zip(prompts, np.split(hidden, ends), strict=True):
            embedding = part.reshape(-1, part.shape[-1])
            if prompt.weights is not None:
                by_token = self.tokenizer.weights(prompt.plain, prompt.weights, len(part))
                embedding = apply_weights(embedding, by_token)
            embeddings.append(embedding)
        return embeddings
