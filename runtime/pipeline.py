"""Prompt to image."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import EngineError
from bksdm.models import EMOJI
from bksdm.runtime.bundle import COMPONENTS, Bundle
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.images import to_pil
from bksdm.runtime.noise import BatchNoise
from bksdm.runtime.request import Request
from bksdm.runtime.samplers import step_table
from bksdm.runtime.tokenizer import Tokenizer
from bksdm.runtime.work import Cancelled, Executor, StepCallback, Work

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Result:
    """What one call made.

    Attributes
    ----------
    pixels : ndarray, uint8, shape [images, height, width, 3]
        Prompt-major: all images of the first prompt come first.
    seed : int or list of int
        What the noise was drawn with, chosen at random where none was given.
    seconds : dict
        Wall time by stage: tokenize, text_encoder, unet, loop (between UNet calls), vae_decoder,
        to_uint8.
    steps : int
        Number of UNet evaluations.
    """

    pixels: NDArray[np.uint8]
    seed: int | list[int] | None
    steps: int
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> list[Image]:
        """The images as PIL pictures."""
        return to_pil(self.pixels)


class TextToImage:
    """A bundle with its engines loaded; one instance makes any number of images.

    Parameters
    ----------
    bundle : Bundle
        The opened bundle.
    executor : Executor
        Runs its networks.
    """

    def __init__(self, bundle: Bundle, executor: Executor) -> None:
        self.bundle = bundle
        self._executor = executor

    @classmethod
    def load(
        cls,
        path: str | Path = EMOJI,
        engine: str = "onnxruntime",
        threads: int | None = None,
        winograd_budget: int | None = None,
        engine_cache: Path | None = None,
    ) -> TextToImage:
        """Open a bundle and load its networks.

        Parameters
        ----------
        path : str or Path
            The bundle's folder; by default the small model that comes with the package.
        engine : str
            ``onnxruntime`` (on the CPU), ``onnxruntime:cuda`` or ``onnxruntime:tensorrt``, and
            ``tensorrt`` or ``tensorrt-rtx`` once ``bksdm build`` has made engines.
        threads : int, optional
            CPU threads; by default one per physical core.
        winograd_budget : int, optional
            Bytes that each network may grow by for faster convolutions on the CPU; by default
            256 MiB. At 0 they are direct.
        engine_cache : Path, optional
            Where optimised graphs are stored, for a bundle that cannot be written; by default its
            own ``engines`` folder.

        Raises
        ------
        BundleError, EngineError
            The bundle is damaged, or the engine is not available.
        """
        from bksdm.engines.registry import DEVICE_ENGINES, ENGINES, open_engine

        if engine not in (*ENGINES, *DEVICE_ENGINES):
            known = ", ".join((*ENGINES, *DEVICE_ENGINES))
            raise EngineError(f"unknown engine {engine!r}; known: {known}")
        bundle = Bundle.open(Path(path))
        tokenizer = Tokenizer.load(bundle.path / "tokenizer")
        if engine in DEVICE_ENGINES:
            from bksdm.runtime.cuda.executor import CudaExecutor
            from bksdm.runtime.cuda.gpu import Gpu

            return cls(bundle, CudaExecutor(bundle, tokenizer, engine, Gpu()))
        text_encoder, unet, vae_decoder = (
            open_engine(
                engine,
                bundle.model(name),
                threads,
                bundle.path / "engines" if engine_cache is None else engine_cache,
                bundle.sample_size,
                winograd_budget,
            )
            for name in COMPONENTS
        )
        return cls(bundle, HostExecutor(
            tokenizer, text_encoder, unet, vae_decoder, bundle.scaling_factor
        ))  # fmt: skip

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        latents: NDArray[np.float32] | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        callback_on_step_end: StepCallback | None = None,
    ) -> Result:
        """Make images; the arguments are those of diffusers' ``StableDiffusionPipeline``.

        Parameters
        ----------
        prompt, negative_prompt : str or sequence of str
            One negative prompt serves all prompts; several must be as many as the prompts.
        height, width : int, optional
            In pixels, a multiple of the VAE's factor (8); by default the model's training size.
        num_inference_steps : int
            From 1 to the scheduler's training steps.
        guidance_scale : float
            At 1 or below the UNet runs without its unconditional half.
        num_images_per_prompt : int
            Images for each prompt.
        seed : int or sequence of int, optional
            One seed for the whole batch, or one per image; the noise is that of
            ``torch.Generator("cpu").manual_seed(seed)``.
        latents : ndarray, float32, shape [images, channels, height / 8, width / 8], optional
            Unit noise to start from, in place of a seed; a stochastic sampler takes both.
        sampler : str, optional
            A name of :data:`bksdm.runtime.samplers.SAMPLERS`; by default the bundle's own.
        eta : float
            How much of the noise DDIM and TCD draw anew in every step, 0 to 1.
        guidance_rescale : float
            How far the deviation of guided predictions is brought back, 0 to 1.
        guidance_interval : (float, float)
            Parts of the steps between which there is guidance; elsewhere the UNet runs without its
            unconditional half.
        callback_on_step_end : callable, optional
            Called with each :class:`~bksdm.runtime.sampling.Step`; returning False stops.

        Raises
        ------
        RequestError, SamplerError
            An argument is invalid.
        NonFiniteError
            A network produced NaN or infinity.
        Cancelled
            The callback returned False.
        """
        request = Request.check(
            self.bundle, prompt, negative_prompt, height, width,
            num_inference_steps, guidance_scale, num_images_per_prompt,
        )  # fmt: skip
        table = step_table({**self.bundle.scheduler, "eta": eta}, request.steps, sampler)
        count = len(request.prompts) * request.images_per_prompt
        self._executor.check(request.height, request.width, count)
        shape = (
            self.bundle.latent_channels,
            request.height // self.bundle.vae_scale,
            request.width // self.bundle.vae_scale,
        )
        if latents is None or table.draws:
            seed = secrets.randbits(32) if seed is None else seed
            source = BatchNoise(seed, count)
        if latents is None:
            noise = source.draw(shape)
        else:
            noise = request.check_latents(latents, (count, *shape))
            seed = seed if table.draws else None
        # In the order of torch's stream: what the sampler adds comes after the starting latents.
        added = [source.draw(shape) for _ in range(table.draws)]

        guidance = request.guidance(guidance_rescale, guidance_interval)
        texts = [*request.negative_prompts, *request.prompts] if guidance else request.prompts
        work = Work(
            [text for text in texts for _ in range(request.images_per_prompt)],
            guidance,
            table,
            noise * np.float32(table.init_noise_sigma),
            np.array(added, np.float32).reshape(table.draws, count, *shape),
            callback_on_step_end,
        )
        seconds: dict[str, float] = {}
        pixels = self._executor(work, seconds)
        kept = list(seed) if isinstance(seed, Sequence) else seed
        return Result(pixels, kept, len(table), seconds)


__all__ = ["Cancelled", "Result", "TextToImage"]
