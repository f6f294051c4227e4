"""Judge the built-in model, or a bundle made of it, by its own classifier; torch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.evaluate.gaussians import Gaussian, frechet_distance
from bksdm.evaluate.judge import CLASSIFIER, SIDE, Judge, Wanted, background_names, evaluation
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import TextToImage

STEPS, GUIDANCE = 25, 4.0
"""That the built-in model draws well with."""
SEEDS = 2
"""Pictures of each prompt."""
STRIDE = 1000
"""Between the seeds of two pictures of a prompt."""
TOGETHER = 10
"""Prompts of one batch."""
REFERENCE = CLASSIFIER / "reference.npz"
"""Statistics of the classifier's features, of what float32 draws in :data:`REFERENCE_STEPS`."""
REFERENCE_STEPS = 50


@dataclass(frozen=True)
class EmojiScores:
    """How well the pictures show what their prompts say.

    Attributes
    ----------
    pictures : int
        How many there are.
    recognised : int
        In how many the classifier sees the prompt's object before all others.
    backgrounds : int
        How many have the background that the prompt asks for.
    margin : float
        Mean lead of the right label's logit over the next best.
    diversity : float
        Distance between pictures of one prompt as a part of the distance between pictures of
        different objects, both as means of Euclidean distances of the classifier's features.
    fid : float
        Fréchet distance of the classifier's features from those of the pictures that float32 draws
        of the same prompts and seeds in 50 steps. 0 is those pictures. It is no FID of Inception
        features, and compares with nothing but itself.
    """

    pictures: int
    recognised: int
    backgrounds: int
    margin: float
    diversity: float
    fid: float

    def fields(self) -> dict[str, Any]:
        """Return the scores by name."""
        return asdict(self)


def check_bundle(bundle: Bundle) -> None:
    """Check that a bundle draws pictures of the size that the classifier knows.

    Raises
    ------
    RequestError
        It does not.
    """
    if bundle.default_size != (SIDE, SIDE):
        height, width = bundle.default_size
        raise RequestError(
            f"{bundle.path} draws {width}×{height}, and the classifier judges the built-in model's "
            f"{SIDE}×{SIDE}; for other models give --prompts FILE and --reference FILE"
        )


def requests(config: GenerationConfig, seeds: int = SEEDS) -> list[GenerationConfig]:
    """Return what is drawn: batches of prompts, all with the first seed, then with the next.

    Parameters
    ----------
    config : GenerationConfig
        The options; its seed, or 0, is where seeds begin, its prompt is ignored.
    seeds : int
        Pictures of each prompt.
    """
    first = config.seed if isinstance(config.seed, int) else 0
    prompts = [wanted.prompt for wanted in evaluation()]
    batches = []
    for seed in range(seeds):
        for start in range(0, len(prompts), TOGETHER):
            some = tuple(prompts[start : start + TOGETHER])
            own = tuple(first + STRIDE * seed + start + i for i in range(len(some)))
            batches.append(replace(config, prompt=some, seed=own))
    return batches


def draw(
    model: TextToImage,
    batches: Sequence[GenerationConfig],
    progress: Callable[[int], object] = lambda pictures: None,
) -> NDArray[np.uint8]:
    """Return the pictures of all batches, uint8 [pictures, 128, 128, 3].

    Parameters
    ----------
    model : TextToImage
        What is judged.
    batches : sequence of GenerationConfig
        Of :func:`requests`.
    progress : callable
        Told how many pictures were drawn, after every batch.
    """
    drawn = []
    for batch in batches:
        drawn.append(model.generate(model.request(batch)).pixels)
        progress(len(drawn[-1]))
    return np.concatenate(drawn)


def score(
    pixels: NDArray[np.uint8],
    wanted: Sequence[Wanted],
    judge: Judge,
    reference: Gaussian | None = None,
) -> EmojiScores:
    """Judge pictures.

    Parameters
    ----------
    pixels : ndarray, uint8, shape [pictures, 128, 128, 3]
        All of the first seed, in the order of ``wanted``, then all of the next.
    wanted : sequence of Wanted
        What those of a seed are to show.
    judge : Judge
        The classifier.
    reference : Gaussian, optional
        What the features are compared with; by default that of :data:`REFERENCE`.

    Raises
    ------
    RequestError
        There is one picture of each prompt only, which says nothing of diversity.
    """
    rounds = len(pixels) // len(wanted)
    if rounds < 2:
        raise RequestError("diversity needs two pictures of each prompt")
    names = [entry.concept for entry in wanted] * rounds
    margins, features = judge.margins(pixels, names), judge.features(pixels)
    backgrounds = [entry.background for entry in wanted] * rounds
    if reference is None:
        reference = Gaussian.read(REFERENCE, features.shape[1])
    return EmojiScores(
        pictures=len(pixels),
        recognised=int((margins > 0).sum()),
        backgrounds=sum(a == b for a, b in zip(background_names(pixels), backgrounds, strict=True)),
        margin=float(margins.mean()),
        diversity=_diversity(features, names, rounds),
        fid=frechet_distance(reference, Gaussian.of(features)),
    )


def _diversity(features: NDArray[np.float32], names: Sequence[str], rounds: int) -> float:
    by_seed = features.astype(np.float64).reshape(rounds, -1, features.shape[1])
    of_seeds = np.mean([np.linalg.norm(a - b, axis=1).mean() for a, b in combinations(by_seed, 2)])
    apart = np.linalg.norm(by_seed[:, :, None] - by_seed[:, None], axis=3)
    ours = np.asarray(names[: by_seed.shape[1]])
    return float(of_seeds / apart[:, ours[:, None] != ours].mean())


def evaluate_emoji(
    model: TextToImage,
    config: GenerationConfig,
    progress: Callable[[int], object] = lambda pictures: None,
) -> EmojiScores:
    """Draw the built-in model's fifty prompts with two seeds each, and judge the pictures.

    Parameters
    ----------
    model : TextToImage
        The built-in model, or a bundle made of it.
    config : GenerationConfig
        The options; see :func:`requests`.
    progress : callable
        Told how many pictures were drawn, after every batch.

    Raises
    ------
    RequestError
        The bundle draws pictures of another size, or an option is not for it.
    """
    check_bundle(model.bundle)
    judge = Judge()
    return score(draw(model, requests(config), progress), evaluation(), judge)
