"""What a server is told when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bksdm.serve.measure import Wanted


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for; more is refused.

    Attributes
    ----------
    body_bytes : int
        Of a request's body.
    pixels, sent_pixels : int
        Of a picture that is drawn, and of one that is sent, before anything of it is decoded.
    prompt_characters : int
        Of a prompt.
    images : int
        Pictures of one request.
    steps : int
        Denoising steps.
    body_seconds : float
        Between two parts of a body that is being sent.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 1024 * 1024
    sent_pixels: int = 4096 * 4096
    prompt_characters: int = 4000
    images: int = 8
    steps: int = 200
    body_seconds: float = 30.0


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Attributes
    ----------
    engine : str
        As of :meth:`~bksdm.runtime.pipeline.TextToImage.load`.
    engine_cache : Path, optional
        Where prepared graphs are stored.
    safety_checker : bool
        Whether pictures are checked, if the model has what it takes.
    wanted : Wanted
        Replicas, threads and batch, as far as they are not measured.
    queue_seconds : float
        Most work that waits for a model, in seconds.
    memory_bytes : int or None
        That all loaded models may take together; None for four fifths of the machine's.
    limits : Limits
        Of one request.
    grace_seconds : float
        For what is under way when the server is told to stop.
    kept_seconds : float
        How long finished pictures and jobs can be fetched.
    kept_bytes : int
        Most that these take in memory.
    log_prompts : bool
        Whether prompts are logged.
    cors : tuple of str
        Origins of web pages that may call the server.
    one_of_several : bool
        Whether others answer at the same address, which know nothing of the jobs, links and
        choices of this one: then there is only OpenAI's API, whose requests stand for themselves.
    loras : mapping
        Files of LoRAs, and their scales, by the names that requests ask for.
    """

    engine: str = "onnxruntime"
    engine_cache: Path | None = None
    safety_checker: bool = True
    wanted: Wanted = field(default_factory=Wanted)
    queue_seconds: float = 300.0
    memory_bytes: int | None = None
    limits: Limits = field(default_factory=Limits)
    grace_seconds: float = 30.0
    kept_seconds: float = 3600.0
    kept_bytes: int = 256 * 2**20
    log_prompts: bool = False
    cors: tuple[str, ...] = ()
    one_of_several: bool = False
    loras: Mapping[str, tuple[Path, float]] = field(default_factory=dict)
