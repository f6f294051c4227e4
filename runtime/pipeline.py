"""Prompt to image."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import NonFiniteError, SamplerError
from bksdm.engines.protocol import Array, Engine
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.guidance import guide
from bksdm.runtime.images import to_pil, to_uint8
from bksdm.runtime.noise import initial_noise
from bksdm.runtime.request import Request
from bksdm.runtime.samplers import step_table
from bksdm.runtime.sampling import Step, sample
from bksdm.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

MAX_CACHED_PROMPTS = 256

StepCallback = Callable[[Step], "bool | None"]


class Cancelled(Exception):
    """The step callback returned False; ``step`` is the last one that ran."""

    def __init__(self, step: Step) -> None:
        super().__init__(f"cancelled after step {step.index + 1} of {step.total}")
        self.step = step


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
    tokenizer : Tokenizer
        Its tokenizer.
    text_encoder, unet, vae_decoder : Engine
        Its networks; names and shapes of their tensors are Optimum's.
    """

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer,
        text_encoder: Engine,
        unet: Engine,
        vae_decoder: Engine,
    ) -> None:
        self.bundle = bundle
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._unet = unet
        self._vae_decoder = vae_decoder
        self._embeddings: dict[str, NDArray[np.float32]] = {}

    @classmethod
    def load(
        cls,
        path: str | Path = EMOJI,
        engine: str = "onnxruntime",
        threads: int | None = None,
    ) -> TextToImage:
        """Open a bundle and load its networks.

        Parameters
        ----------
        path : str or Path
            The bundle's folder; by default the small model that comes with the package.
        engine : str
            ``onnxruntime`` (on the CPU), ``onnxruntime:cuda`` or ``onnxruntime:tensorrt``.
        threads : int, optional
            CPU threads; by default one per physical core.

        Raises
        ------
        BundleError, EngineError
            The bundle is damaged, or the engine is not available.
        """
        from bksdm.engines.registry import open_engine

        bundle = Bundle.open(Path(path))
        tokenizer = Tokenizer.load(bundle.path / "tokenizer")
        networks = (
            open_engine(engine, bundle.model(name), threads, bundle.path / "engines")
            for name in ("text_encoder", "unet", "vae_decoder")
        )
        return cls(bundle, tokenizer, *networks)

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
            Unit noise to start from, in place of a seed.
        sampler : str, optional
            A name of :data:`bksdm.runtime.samplers.SAMPLERS`; by default the bundle's own.
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
        table = step_table(self.bundle.scheduler, request.steps, sampler)
        count = len(request.prompts) * request.images_per_prompt
        shape = (
            self.bundle.latent_channels,
            request.height // self.bundle.vae_scale,
            request.width // self.bundle.vae_scale,
        )
        if latents is None:
            seed = secrets.randbits(32) if seed is None else seed
            noise = initial_noise(shape, seed, count)
        else:
            noise = request.check_latents(latents, (count, *shape))
            seed = None

        seconds: dict[str, float] = {}
        embeddings = self._encode(request, seconds)
        guided = request.guidance_scale > 1

        def predict(x: NDArray[np.float32], timestep: float, index: int) -> NDArray[np.float32]:
            both = np.concatenate([x, x]) if guided else x
            with _timed(seconds, "unet"):
                output = self._denoise(both, timestep, embeddings)
            _require_finite(output, f"noise prediction of step {index + 1}")
            return guide(output, request.guidance_scale) if guided else output

        start = noise * np.float32(table.init_noise_sigma)
        with _timed(seconds, "loop"):
            for step in sample(table, start, predict):
                if callback_on_step_end is not None and callback_on_step_end(step) is False:
                    raise Cancelled(step)
        seconds["loop"] -= seconds["unet"]

        with _timed(seconds, "vae_decoder"):
            decoded = self._decode(step.latents)
        _require_finite(decoded, "pixels of the VAE decoder")
        with _timed(seconds, "to_uint8"):
            pixels = to_uint8(decoded)
        kept = list(seed) if isinstance(seed, Sequence) else seed
        return Result(pixels, kept, len(table), seconds)

    def _encode(self, request: Request, seconds: dict[str, float]) -> NDArray[np.float32]:
        """Return embeddings for the UNet's batch: unconditional half first, float32."""
        wanted = list(request.prompts)
        if request.guidance_scale > 1:
            wanted = [*request.negative_prompts, *wanted]
        texts = list(dict.fromkeys(wanted))
        if len(self._embeddings) + len(texts) > MAX_CACHED_PROMPTS:
            self._embeddings.clear()
        new = [text for text in texts if text not in self._embeddings]
        if new:
            with _timed(seconds, "tokenize"):
                ids = self._tokenizer(new)
            with _timed(seconds, "text_encoder"):
                hidden = _cast_call(self._text_encoder, {"input_ids": ids}, "last_hidden_state")
            _require_finite(hidden, "embeddings of the text encoder")
            self._embeddings.update(zip(new, hidden, strict=True))
        stacked = np.stack([self._embeddings[text] for text in wanted])
        return np.repeat(stacked, request.images_per_prompt, axis=0)

    def _denoise(
        self, sample: NDArray[np.float32], timestep: float, embeddings: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        spec = self._unet.inputs["timestep"]
        if np.issubdtype(spec.dtype, np.integer) and timestep != round(timestep):
            raise SamplerError(
                f"timestep {timestep:g} is fractional, but this bundle's UNet takes whole ones; "
                "use another timestep_spacing or export the bundle with `bksdm export`"
            )
        # One timestep per image where its axis is the batch's, else one for all: a scalar, or an
        # axis of its own as Optimum has it.
        per_image = spec.shape[:1] == self._unet.inputs["sample"].shape[:1]
        shape = () if not spec.shape else (len(sample),) if per_image else (1,)
        vector = np.full(shape, timestep)
        feeds = {"sample": sample, "timestep": vector, "encoder_hidden_states": embeddings}
        return _cast_call(self._unet, feeds, "out_sample")

    def _decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Decode one image at a time: the VAE's activations, not its weights, fill memory."""
        scaled = latents / np.float32(self.bundle.scaling_factor)
        one_by_one = (
            _cast_call(self._vae_decoder, {"latent_sample": scaled[i : i + 1]}, "sample")
            for i in range(len(scaled))
        )
        return np.concatenate(list(one_by_one))


def _cast_call(engine: Engine, feeds: dict[str, Array], output: str) -> NDArray[np.float32]:
    """Run an engine with its own dtypes; the runtime's arithmetic is float32."""
    cast = {name: array.astype(engine.inputs[name].dtype, copy=False)
            for name, array in feeds.items()}  # fmt: skip
    return engine(cast)[output].astype(np.float32, copy=False)


def _require_finite(array: NDArray[np.float32], stage: str) -> None:
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{stage}: NaN or infinity; a float32 bundle may not overflow")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
