"""Run a job between engines that take and return host arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.once import once
from bksdm.engines.protocol import Engine
from bksdm.runtime.bundle import FULL, TINY
from bksdm.runtime.finite import require_finite
from bksdm.runtime.guidance import GUIDANCE_INPUT
from bksdm.runtime.images import to_levels, to_unit
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.lora.factors import Adaptation
from bksdm.runtime.noise_predictor import HostDenoising, NoisePredictor
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.sampling import Watch


class Decoder(NamedTuple):
    """A network that makes pixels, loaded when it is first asked for.

    Attributes
    ----------
    load : callable
        Returns its engine; names and shapes of the tensors are Optimum's.
    scaling_factor : float
        Latents are divided by it before.
    """

    load: Callable[[], Engine]
    scaling_factor: float


class HostExecutor:
    """Engines on host arrays; implements :class:`~bksdm.runtime.executor.Executor`.

    Parameters
    ----------
    encode : PromptEncoder
        Prompts to embeddings.
    predict : NoisePredictor
        The UNet.
    vae_decoder : Engine
        Names and shapes of its tensors are Optimum's.
    scaling_factor : float
        Latents are divided by it before the VAE decoder.
    tiny : Decoder, optional
        The tiny VAE decoder, for pictures that ask for it.

    Attributes
    ----------
    predict : NoisePredictor
        As it was given; takes the jobs of :meth:`start`, one or many.
    """

    def __init__(
        self,
        encode: PromptEncoder,
        predict: NoisePredictor,
        vae_decoder: Engine,
        scaling_factor: float,
        tiny: Decoder | None = None,
    ) -> None:
        self._encode = encode
        self.predict = predict
        self._decoders = {FULL: Decoder(lambda: vae_decoder, scaling_factor)}
        if tiny is not None:
            self._decoders[TINY] = Decoder(once(tiny.load), tiny.scaling_factor)

    def validate_size(self, height: int, width: int, images: int) -> None:
        """Accept every size."""

    def keep_adapted(self, scopes: Mapping[str, Collection[str]]) -> None:
        """Let go of networks for LoRAs of other scopes."""
        for component, adapted in (
            ("unet", self.predict.adapted),
            ("text_encoder", self._encode.adapted),
        ):
            if adapted is not None:
                adapted.keep(scopes[component])

    def load_adapted(self, loras: Adaptation) -> None:
        """Load the networks that take these factors."""
        if loras.unet is not None:
            self.predict.load_adapted(loras.unet)
        if loras.text_encoder is not None:
            self._encode.load_adapted(loras.text_encoder)

    def __call__(
        self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]
    ) -> NDArray[np.uint8]:
        """Make the pictures.

        Stages: tokenize, text_encoder, controlnet, unet, loop, vae_decoder, to_uint8.
        """
        return self.decode(self.denoise(job, watch, seconds), seconds, job.vae)

    def denoise(self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]) -> Latents:
        """Return x_0; stages: tokenize, text_encoder, controlnet, unet, loop."""
        denoising = self.start(job, watch, seconds)
        seconds["unet"] = 0.0
        with _timed(seconds, "loop"):
            while not denoising.done:
                denoising.advance(*self.predict([denoising], seconds))
                if watch.progress is not None:
                    watch.progress(denoising.index, len(job.table))
        seconds["loop"] -= seconds["unet"] + seconds.get("controlnet", 0.0)
        return denoising.trajectory.latents

    def start(self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]) -> HostDenoising:
        """Return a job at its first evaluation; stages: tokenize, text_encoder.

        Raises
        ------
        RequestError, SamplerError, NonFiniteError
            As of :class:`PromptEncoder` and :meth:`NoisePredictor.start`.
        """
        conditioning = {"encoder_hidden_states": self._encode(job, seconds)}
        if job.guidance_embedding is not None:
            conditioning[GUIDANCE_INPUT] = np.tile(job.guidance_embedding, (job.images, 1))
        return self.predict.start(job, conditioning, watch)

    def decode(
        self, latents: Latents, seconds: dict[str, float], vae: str = FULL
    ) -> NDArray[np.uint8]:
        """Return pixels of 256 levels."""
        unit = self.decode_exactly(latents, seconds, vae)
        with _timed(seconds, "to_uint8"):
            return to_levels(unit)

    def decode_exactly(
        self, latents: Latents, seconds: dict[str, float], vae: str = FULL
    ) -> NDArray[np.float32]:
        """Decode one image at a time: the VAE's activations, not its weights, fill memory."""
        load, scaling_factor = self._decoders[vae]
        network = load()
        scaled = latents / np.float32(scaling_factor)
        scaled = scaled.astype(network.inputs["latent_sample"].dtype, copy=False)
        with _timed(seconds, "vae_decoder"):
            one_by_one = [
                network({"latent_sample": scaled[i : i + 1]})["sample"] for i in range(len(scaled))
            ]
            decoded = np.concatenate(one_by_one).astype(np.float32, copy=False)
        require_finite(decoded, "pixels of the VAE decoder")
        with _timed(seconds, "to_uint8"):
            return to_unit(decoded)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
