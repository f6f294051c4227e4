"""Prompt to image."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import BundleError, EngineError, RequestError
from bksdm.engines.protocol import Engine
from bksdm.engines.registry import DEFAULT, capabilities, chosen_engine, open_engine
from bksdm.engines.variants import DEEP, SHALLOW, skipping
from bksdm.models import EMOJI
from bksdm.runtime.bundle import COMPONENTS, Bundle
from bksdm.runtime.executor import Executor
from bksdm.runtime.generation_config import OPTIONS, GenerationConfig
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.images import to_pil
from bksdm.runtime.initial_latents import begin
from bksdm.runtime.network_tensors import require_tensors
from bksdm.runtime.noise import BatchNoise, Seeded
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.preview import Preview
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.request import Request
from bksdm.runtime.safety_checker import SafetyChecker
from bksdm.runtime.sampling import Cancelled, StepCallback
from bksdm.runtime.tokenizer import Tokenizer
from bksdm.runtime.vae_encoder import VaeEncoder
from bksdm.runtime.validation import MAX_THREADS, flag, folder, shown, whole

if TYPE_CHECKING:
    from PIL.Image import Image

ON_HOST = capabilities(DEFAULT)


@dataclass
class Result:
    """The pictures of one call.

    Attributes
    ----------
    pixels : ndarray, uint8, shape [images, height, width, 3]
        Prompt-major: all images of the first prompt come first.
    config : GenerationConfig
        The options as they were carried out: with the size, seed and strength that were chosen.
    nsfw_content_detected : list of bool or None
        Of each image, whether the safety checker found it unfit; such an image is black, as in
        diffusers. None where nothing was checked: the bundle has no checker, or it is off.
    seconds : dict
        Wall time by stage that ran: tokenize, text_encoder, unet, loop (between UNet calls),
        vae_decoder, to_uint8; vae_encoder where a picture is started from, and safety_checker.
    steps : int
        Number of UNet evaluations.
    engines : dict
        The engine that ran each network.
    """

    pixels: NDArray[np.uint8]
    config: GenerationConfig
    steps: int
    nsfw_content_detected: list[bool] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int | list[int] | None:
        """The seed of the noise, chosen at random where none was given.

        None where no noise was drawn.
        """
        seed = self.config.seed
        return list(seed) if isinstance(seed, tuple) else seed

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
    engine : Capabilities
        What the executor can do.
    engines : mapping, optional
        The engine of each network, where they differ.
    """

    def __init__(
        self,
        bundle: Bundle,
        executor: Executor,
        encoder: VaeEncoder | None = None,
        checker: SafetyChecker | None = None,
        engine: Capabilities = ON_HOST,
        engines: Mapping[str, str] | None = None,
    ) -> None:
        self.bundle = bundle
        self.engines = dict(engines or dict.fromkeys(COMPONENTS, engine.name))
        self._capabilities = engine
        self._executor = executor
        self._encoder = encoder
        self._checker = checker

    @classmethod
    def load(
        cls,
        path: str | Path | Bundle = EMOJI,
        engine: str = "onnxruntime",
        threads: int | None = None,
        engine_cache: str | Path | None = None,
        safety_checker: bool = True,
    ) -> TextToImage:
        """Open a bundle and load its networks.

        Parameters
        ----------
        path : str, Path or Bundle
            The bundle's folder, or one that is open; by default the small model that comes with
            the package.
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
        able = capabilities(engine)
        threads = None if threads is None else whole("threads", threads, 1, MAX_THREADS)
        wanted = flag("safety_checker", safety_checker)
        bundle = path if isinstance(path, Bundle) else Bundle.open(folder("path", path))
        tokenizer = Tokenizer.load(bundle.path / "tokenizer", bundle.text_embeddings)
        cache = bundle.path / "engines"
        if engine_cache is not None:
            cache = folder("engine_cache", engine_cache)
        # The loop on a GPU leaves the rest to the CPU.
        on_host = partial(
            open_engine, DEFAULT if able.on_device else engine, threads=threads, cache=cache
        )
        latents, pixels = bundle.sample_size, bundle.sample_size * bundle.vae_scale
        encoder = VaeEncoder(
            partial(_open_network, partial(on_host, side=pixels), bundle.model("vae_encoder")),
            bundle.scaling_factor,
            bundle.latent_channels,
        )
        open_part = partial(on_host, side=latents)
        checker = None
        if wanted and bundle.has_safety_checker:
            graph = bundle.model("safety_checker")
            checker = SafetyChecker(_open_network(open_part, graph), graph.parent)
        encode = PromptEncoder(
            tokenizer, partial(_open_text_encoder, open_part, bundle), bundle.masks_padding
        )
        if bundle.masks_padding and not able.attention_mask:
            raise EngineError(
                f"{bundle.path}: use_attention_mask is not on the GPU's loop yet; use the "
                "engine onnxruntime"
            )
        if able.on_device:
            from bksdm.runtime.cuda.executor import CudaExecutor
            from bksdm.runtime.cuda.gpu import Gpu

            cuda = CudaExecutor(bundle, encode, engine, Gpu())
            return cls(bundle, cuda, encoder, checker, able)
        _validate_text_inputs(bundle, tokenizer, encode.load(0))
        # A second output would be copied from a GPU in every step.
        deep, graph = DEEP if able.feature_reuse else "", bundle.model("unet")
        predict = NoisePredictor(
            _open_network(open_part, graph, deep), partial(open_part, graph, variant=SHALLOW)
        )
        decoder = _open_network(open_part, bundle.model("vae_decoder"))
        executor = HostExecutor(encode, predict, decoder, bundle.scaling_factor)
        engines = {name: chosen_engine(engine, bundle.model(name), cache) for name in COMPONENTS}
        return cls(bundle, executor, encoder, checker, able, engines)

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
        guidance_interval: tuple[float, float] | None = None,
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

        Those that are text and numbers are described by
        :class:`~bksdm.runtime.generation_config.GenerationConfig` and in ``docs/options.md``. A
        height or a width that is not given is the model's, or the image's, each for itself:
        diffusers ignores one alone where a picture is made from noise, has neither for image to
        image, and takes the model's size in inpainting, whatever the image's is.

        Parameters
        ----------
        prompt : str or sequence of str
            What to draw; several are drawn in one batch.
        latents : ndarray, float32, shape [images, channels, height / 8, width / 8], optional
            Unit noise to start from, in place of a seed; a stochastic sampler takes both.
        image : PIL image or sequence of such, optional
            Pictures to start from, as diffusers' image-to-image pipeline does; they repeat until
            there is one for each of the batch. ``height`` and ``width`` are theirs by default.
        mask : PIL image or sequence of such, optional
            White is made anew, black stays, as diffusers' inpainting pipeline does with an
            ordinary UNet.
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
        # A test proves that the names and defaults above are those of the options.
        given = locals()
        config = GenerationConfig(**{name: given[name] for name in OPTIONS})
        return self.generate(self.request(config, image, mask, latents), callback_on_step_end)

    def request(
        self,
        config: GenerationConfig,
        image: Image | Sequence[Image] | None = None,
        mask: Image | Sequence[Image] | None = None,
        latents: NDArray[np.float32] | None = None,
    ) -> Request:
        """Return options and inputs as :meth:`generate` takes them; see :meth:`__call__`.

        Raises
        ------
        RequestError, SamplerError
            The bundle or the engine cannot do what is asked for.
        """
        return Request.resolve(self.bundle, self._capabilities, config, image, mask, latents)

    def generate(
        self,
        request: Request,
        callback: StepCallback | None = None,
        noise: Seeded = BatchNoise,
    ) -> Result:
        """Make the images of a request.

        Parameters
        ----------
        request : Request
            Resolved for this bundle and engine.
        callback : callable, optional
            As of :meth:`__call__`.
        noise : callable
            Returns the source of noise for a seed; by default torch's on the CPU.

        Raises
        ------
        RequestError, NonFiniteError, Cancelled
            As of :meth:`__call__`.
        """
        if callback is not None and not callable(callback):
            raise RequestError(f"callback_on_step_end must be a function, not {shown(callback)}")
        images, _, *side = request.shape
        height, width = (pixels * self.bundle.vae_scale for pixels in side)
        self._executor.validate_size(height, width, images)
        if request.image is not None and self._encoder is None:
            raise EngineError("made without a VAE encoder, which an image needs")
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        job = begin(request, self._encoder, noise)
        if request.image is not None:
            seconds["vae_encoder"] = time.perf_counter() - start
        pixels = self._executor(job, callback, seconds)
        unfit = None
        if self._checker is not None:
            start = time.perf_counter()
            unfit = self._checker(pixels)
            pixels[unfit] = 0
            seconds["safety_checker"] = time.perf_counter() - start
        return Result(
            pixels, request.config, len(request.table), unfit, seconds, dict(self.engines)
        )

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


def _validate_text_inputs(bundle: Bundle, tokenizer: Tokenizer, encoder: Engine) -> None:
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
    return _open_network(open_part, bundle.model("text_encoder"), skipping(skipped))


def _open_network(open_part: Callable[..., Engine], model: Path, variant: str = "") -> Engine:
    return require_tensors(open_part(model, variant=variant), model)


__all__ = ["Cancelled", "Result", "TextToImage"]
