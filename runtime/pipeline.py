"""Prompt to image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import BundleError, EngineError, RequestError
from bksdm.engines.protocol import Engine, GraphEdit
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.checks import MAX_THREADS, flag, folder, shown, whole
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.images import to_pil
from bksdm.runtime.preview import Preview
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.request import Request
from bksdm.runtime.safety_checker import SafetyChecker
from bksdm.runtime.start import start_from_image, start_from_noise
from bksdm.runtime.tokenizer import Tokenizer
from bksdm.runtime.vae_encoder import VaeEncoder
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
    nsfw_content_detected : list of bool or None
        Of each image, whether the safety checker found it unfit; such an image is black, as in
        diffusers. None where nothing was checked: the bundle has no checker, or it is off.
    seconds : dict
        Wall time by stage that ran: tokenize, text_encoder, unet, loop (between UNet calls),
        vae_decoder, to_uint8; vae_encoder where a picture is started from, and safety_checker.
    steps : int
        Number of UNet evaluations.
    """

    pixels: NDArray[np.uint8]
    seed: int | list[int] | None
    steps: int
    nsfw_content_detected: list[bool] | None = None
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
    encoder : VaeEncoder, optional
        For pictures to start from.
    checker : SafetyChecker, optional
        For finished pictures.
    """

    def __init__(
        self,
        bundle: Bundle,
        executor: Executor,
        encoder: VaeEncoder | None = None,
        checker: SafetyChecker | None = None,
    ) -> None:
        self.bundle = bundle
        self._executor = executor
        self._encoder = encoder
        self._checker = checker

    @classmethod
    def load(
        cls,
        path: str | Path = EMOJI,
        engine: str = "onnxruntime",
        threads: int | None = None,
        engine_cache: str | Path | None = None,
        safety_checker: bool = True,
    ) -> TextToImage:
        """Open a bundle and load its networks.

        Parameters
        ----------
        path : str or Path
            The bundle's folder; by default the small model that comes with the package.
        engine : str
            ``onnxruntime`` or ``openvino`` (on the CPU), ``auto`` (the faster of these for each
            network, once ``bksdm build --tune`` has measured), ``onnxruntime:cuda`` or
            ``onnxruntime:tensorrt``, and ``tensorrt`` or ``tensorrt-rtx`` once ``bksdm build`` has
            made engines.
        threads : int, optional
            CPU threads, up to 1024; by default one per physical core.
        engine_cache : str or Path, optional
            Where optimised graphs are stored, for a bundle that cannot be written; by default its
            own ``engines`` folder.
        safety_checker : bool
            Whether pictures are checked, if the bundle has what it takes; the loop on the GPU
            leaves that to the CPU.

        Raises
        ------
        RequestError
            An argument has a wrong type, or ``threads`` is out of range.
        BundleError, EngineError
            The bundle is damaged, or the engine is not available.
        """
        from bksdm.engines.registry import AUTO, CPU_ENGINES, DEVICE_ENGINES, ENGINES, open_engine
        from bksdm.engines.rewrite.feature_reuse import keep_shallow, show_deep_features

        if not isinstance(engine, str) or engine not in (*ENGINES, *DEVICE_ENGINES):
            known = ", ".join((*ENGINES, *DEVICE_ENGINES))
            raise EngineError(f"unknown engine {shown(engine)}; known: {known}")
        threads = None if threads is None else whole("threads", threads, 1, MAX_THREADS)
        wanted = flag("safety_checker", safety_checker)
        bundle = Bundle.open(folder("path", path))
        tokenizer = Tokenizer.load(bundle.path / "tokenizer", bundle.text_embeddings)
        cache = bundle.path / "engines"
        if engine_cache is not None:
            cache = folder("engine_cache", engine_cache)
        on_host = partial(
            open_engine, engine if engine in ENGINES else ENGINES[0], threads=threads, cache=cache
        )
        latents, pixels = bundle.sample_size, bundle.sample_size * bundle.vae_scale
        encoder = VaeEncoder(
            partial(on_host, bundle.model("vae_encoder"), side=pixels),
            bundle.scaling_factor,
            bundle.latent_channels,
        )
        checker = None
        if wanted and bundle.has_safety_checker:
            graph = bundle.model("safety_checker")
            checker = SafetyChecker(on_host(graph, side=latents), graph.parent)
        open_part = partial(on_host, side=latents)
        encode = PromptEncoder(
            tokenizer, partial(_open_text_encoder, open_part, bundle), bundle.masks_padding
        )
        if engine in DEVICE_ENGINES:
            if bundle.masks_padding:
                raise EngineError(
                    f"{bundle.path}: use_attention_mask is not on the GPU's loop yet; use the "
                    "engine onnxruntime"
                )
            from bksdm.runtime.cuda.executor import CudaExecutor
            from bksdm.runtime.cuda.gpu import Gpu

            cuda = CudaExecutor(bundle, encode, engine, Gpu())
            return cls(bundle, cuda, encoder, checker)
        _check_text_inputs(bundle, tokenizer, encode.load(0))
        # A second output would be copied from a GPU in every step.
        deep = GraphEdit("deep", show_deep_features) if engine in (AUTO, *CPU_ENGINES) else None
        graph, shallow = bundle.model("unet"), GraphEdit("shallow", keep_shallow)
        executor = HostExecutor(
            encode, open_part(graph, edit=deep), open_part(bundle.model("vae_decoder")),
            bundle.scaling_factor, partial(open_part, graph, edit=shallow),
        )  # fmt: skip
        return cls(bundle, executor, encoder, checker)

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
        image: Image | Sequence[Image] | None = None,
        strength: float | None = None,
        mask: Image | Sequence[Image] | None = None,
        prompt_weights: bool = False,
        long_prompt: bool = False,
        clip_skip: int | None = None,
        fast: int = 0,
        callback_on_step_end: StepCallback | None = None,
    ) -> Result:
        """Make images; the arguments are those of diffusers' ``StableDiffusionPipeline``.

        Parameters
        ----------
        prompt, negative_prompt : str or sequence of str
            One negative prompt serves all prompts; several must be as many as the prompts.
        height, width : int, optional
            In pixels, a multiple of the VAE's factor (8). What is not given is the model's training
            size, or with an ``image`` that of the image, rounded down. Each stands for itself:
            diffusers ignores one alone where a picture is made from noise, has neither for
            image to image, and takes the model's size in inpainting, whatever the image's is.
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
        image : PIL image or sequence of such, optional
            Pictures to start from, as diffusers' image-to-image pipeline does; they repeat until
            there is one for each of the batch.
        strength : float, optional
            How much of the steps is run on ``image``: 0 leaves it as the VAE has it, 1 changes it
            most. By default 0.8, and 1 with a mask.
        mask : PIL image or sequence of such, optional
            White is painted anew, black stays, as diffusers' inpainting pipeline does with an
            ordinary UNet.
        prompt_weights : bool
            Whether ``(text:1.3)``, ``(text)`` and ``[text]`` in prompts weigh what they enclose.
        long_prompt : bool
            Whether what lies beyond 77 tokens is encoded in further parts of as many, rather than
            cut off with a warning.
        clip_skip : int, optional
            How many of the text encoder's last layers are left out for the prompt; the negative
            prompt is encoded by all of them, as in diffusers.
        fast : int
            Another picture, nearly the same, for less work: 1, 2 and 3 run the UNet as a whole in
            every second, fourth and fifth evaluation, 3 with guidance in the first 0.6 of them.
        callback_on_step_end : callable, optional
            Called with each :class:`~bksdm.runtime.sampling.Step`; returning False stops.

        Raises
        ------
        RequestError, SamplerError
            An argument is invalid, or the bundle has no VAE encoder for an image.
        NonFiniteError
            A network produced NaN or infinity.
        Cancelled
            The callback returned False.
        """
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise RequestError(
                f"callback_on_step_end must be a function, not {shown(callback_on_step_end)}"
            )
        request = Request.check(
            self.bundle,
            prompt,
            negative_prompt=negative_prompt,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            latents=latents,
            sampler=sampler,
            eta=eta,
            guidance_rescale=guidance_rescale,
            guidance_interval=guidance_interval,
            image=image,
            strength=strength,
            mask=mask,
            prompt_weights=prompt_weights,
            long_prompt=long_prompt,
            clip_skip=clip_skip,
            fast=fast,
        )
        images, _, height, width = request.shape
        scale = self.bundle.vae_scale
        self._executor.check(height * scale, width * scale, images)
        seconds: dict[str, float] = {}
        if request.image is None:
            start = start_from_noise(request)
        elif self._encoder is None:
            raise EngineError("made without a VAE encoder, which an image needs")
        else:
            begun = time.perf_counter()
            start = start_from_image(request, request.image, self._encoder)
            seconds["vae_encoder"] = time.perf_counter() - begun
        work = Work(
            request.texts,
            request.guidance,
            request.table,
            start.latents,
            start.noises,
            start.known,
            replace(request.wording, negatives=len(request.texts) - images),
            request.reuse,
            callback_on_step_end,
        )
        pixels = self._executor(work, seconds)
        unfit = None
        if self._checker is not None:
            begun = time.perf_counter()
            unfit = self._checker(pixels)
            pixels[unfit] = 0
            seconds["safety_checker"] = time.perf_counter() - begun
        kept = list(start.seed) if isinstance(start.seed, Sequence) else start.seed
        return Result(pixels, kept, len(request.table), unfit, seconds)

    @cached_property
    def preview(self) -> Preview:
        """Turns latents, as of :attr:`Step.denoised`, into small pictures at once.

        Raises
        ------
        BundleError
            The bundle has none.
        """
        return Preview.read(self.bundle.path, self.bundle.latent_channels)

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return pixels [images, height, width, 3] of latents, by the VAE decoder.

        Parameters
        ----------
        latents : ndarray, float32, shape [images, channels, height / 8, width / 8]
            As of :attr:`Step.denoised`; exact where :attr:`preview` is quick.

        Raises
        ------
        RequestError
            The latents are no array, or of another shape or a size that was not built.
        NonFiniteError
            The decoder produced NaN or infinity.
        """
        channels = self.bundle.latent_channels
        if not isinstance(latents, np.ndarray):
            raise RequestError(f"latents must be a numpy array of floats, not {shown(latents)}")
        if latents.ndim != 4 or latents.shape[1] != channels or not latents.size:
            raise RequestError(
                f"latents must be [images, {channels}, height, width], not {list(latents.shape)}"
            )
        return self._executor.decode(latents, {})


def _check_text_inputs(bundle: Bundle, tokenizer: Tokenizer, encoder: Engine) -> None:
    """Refuse a text encoder that was made for other tokens than the bundle's."""
    tokens = encoder.inputs["input_ids"].shape[1]
    if isinstance(tokens, int) and tokens != tokenizer.length:
        raise BundleError(
            f"{bundle.path / 'tokenizer'}: model_max_length is {tokenizer.length}, but "
            f"{bundle.model('text_encoder')} takes {tokens} tokens"
        )
    if bundle.masks_padding and "attention_mask" not in encoder.inputs:
        raise BundleError(
            f"{bundle.path / 'text_encoder' / 'config.json'}: use_attention_mask is set, but the "
            "graph has no input attention_mask; export the model with `bksdm export`"
        )


def _open_text_encoder(open_part: Callable[..., Engine], bundle: Bundle, skipped: int) -> Engine:
    from bksdm.engines.rewrite.clip_skip import skip_layers

    edit = GraphEdit(f"clip-skip-{skipped}", partial(skip_layers, count=skipped))
    return open_part(bundle.model("text_encoder"), edit=edit if skipped else None)


__all__ = ["Cancelled", "Result", "TextToImage"]
