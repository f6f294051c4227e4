"""Run a bundle's networks on the GPU, the loop included."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bksdm.runtime.bundle import DECODERS, FULL, Bundle
from bksdm.runtime.cuda.device import Device
from bksdm.runtime.cuda.networks import Networks
from bksdm.runtime.cuda.picture_encoder import NAME as ENCODER
from bksdm.runtime.cuda.picture_encoder import DeviceVaeEncoder
from bksdm.runtime.cuda.progress import told
from bksdm.runtime.cuda.session import Session, Shape
from bksdm.runtime.cuda.trajectory import DeviceTrajectory
from bksdm.runtime.finite import require_finite
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.lora.factors import Adaptation
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.sampling import Denoising, Watch
from bksdm.storage.graph_file import GraphFile

KEPT_SESSIONS = 4
Made = TypeVar("Made", bound=np.generic)


class CudaExecutor:
    """Networks on one GPU; implements :class:`~bksdm.runtime.executor.Executor`.

    Threads may share it; the GPU makes their pictures one after the other.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    encode : PromptEncoder
        Prompts to embeddings on the host, for those that are not plain.
    networks : Networks
        Where its networks come from.
    device : Device
        The GPU.
    in_loops : bool
        Whether the GPU goes through all steps of a picture that nobody watches by itself, the VAE
        decoder included: one launch in place of one for each step. Whoever interrupts it then
        comes too late.
    """

    def __init__(
        self,
        bundle: Bundle,
        encode: PromptEncoder,
        networks: Networks,
        device: Device,
        in_loops: bool = False,
    ) -> None:
        self._bundle = bundle
        self._encode = encode
        self._networks = networks
        self._device = device
        self._in_loops = in_loops
        self._sessions: OrderedDict[tuple[Shape, str], Session] = OrderedDict()

    def validate_size(self, height: int, width: int, images: int) -> None:
        """Refuse what the networks do not take."""
        self._networks.validate_size(images, height, width)

    def load_adapted(self, loras: Adaptation) -> None:
        """Load nothing: networks on a GPU take no factors, so no LoRA is ever loaded for them."""

    def keep_adapted(self, scopes: Mapping[str, Collection[str]]) -> None:
        """Keep nothing, for the same reason."""

    def __call__(
        self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]
    ) -> NDArray[np.uint8]:
        """Make the pictures; stages: tokenize, enqueue (host work) and wait (for the GPU)."""
        return self._draw(job, watch, seconds, DeviceTrajectory.end)

    def denoise(self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]) -> Latents:
        """Return x_0; the same stages."""
        latents = self._draw(job, watch, seconds, DeviceTrajectory.latents)
        require_finite(latents, "latents of the last step")
        return latents

    def _draw(
        self,
        job: DenoisingJob,
        watch: Watch,
        seconds: dict[str, float],
        finish: Callable[[DeviceTrajectory], NDArray[Made]],
    ) -> NDArray[Made]:
        with self._device.alone():
            text = self.text(job, seconds)
            images, _, *side = job.latents.shape
            session = self.session(images, job.guidance is not None, side, job.vae)
            start = time.perf_counter()
            watched, counted = watch.callback is not None, watch.progress is not None
            trajectory = session.join(text, job, watched=watched, counted=counted)
            most = len(job.table) if self._in_loops else 1
            decode = finish is DeviceTrajectory.end
            try:
                denoising = Denoising(job, trajectory, watch)
                with told(watch.progress, lambda: trajectory.evaluated, len(job.table)):
                    while not denoising.done:
                        for _ in range(session.launch(most, decode)):
                            denoising.advance(None)
                    seconds["enqueue"] = time.perf_counter() - start
                    made = finish(trajectory)
            finally:
                trajectory.leave()
            seconds["wait"] = time.perf_counter() - start - seconds["enqueue"]
            session.keep_kernels()
            return made

    def decode(
        self, latents: NDArray[np.float32], seconds: dict[str, float], vae: str = FULL
    ) -> NDArray[np.uint8]:
        """Return the pixels of latents; a picture that is under way goes on afterwards."""
        images, _, *side = latents.shape
        start = time.perf_counter()
        height, width = (pixels * self._bundle.vae_scale for pixels in side)
        self.validate_size(height, width, images)
        with self._device.alone():
            guided = (Shape(images, True, height, width), vae) in self._sessions
            pixels = self.session(images, guided, side, vae).decode(latents)
        seconds["vae_decoder"] = time.perf_counter() - start
        return pixels

    def decode_exactly(
        self, latents: Latents, seconds: dict[str, float], vae: str = FULL
    ) -> NDArray[np.float32]:
        """Return them in 0 … 1; the GPU rounds them to 256 levels before they are copied."""
        return np.asarray(self.decode(latents, seconds, vae) / np.float32(255), np.float32)

    def vae_encoder(self) -> DeviceVaeEncoder:
        """Return the VAE encoder, whose network is loaded with the first picture."""
        return DeviceVaeEncoder(
            self._device,
            GraphFile.read(self._bundle.model(ENCODER)),
            self._networks.load_encoder,
            self._bundle.vae_scale,
        )

    def text(self, job: DenoisingJob, seconds: dict[str, float]) -> NDArray[np.generic]:
        """Return what a session takes of a job's prompts; stages: tokenize, text_encoder."""
        if not job.plain_text:
            return self._encode(job, seconds)
        start = time.perf_counter()
        ids = self._encode.ids(job)
        seconds["tokenize"] = time.perf_counter() - start
        return ids

    def session(self, images: int, guided: bool, side: Sequence[int], vae: str = FULL) -> Session:
        """Return so many slots for latents of a height and width; the last few are kept.

        Its pictures are decoded by one of :data:`bksdm.runtime.bundle.DECODERS`. Whoever uses it
        has the GPU :meth:`~bksdm.runtime.cuda.device.Device.alone`.

        Raises
        ------
        EngineError
            The networks cannot be loaded, or there is too little memory.
        """
        scale = self._bundle.vae_scale
        shape = Shape(images, guided, side[0] * scale, side[1] * scale)
        key = shape, vae
        if key not in self._sessions:
            loaded = self._networks.load(images, shape.height, shape.width)
            while len(self._sessions) >= KEPT_SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[key] = Session(
                self._device,
                {**loaded.networks, DECODERS[FULL]: loaded.networks[DECODERS[vae]]},
                loaded.kernel,
                scratch=loaded.scratch,
                shape=shape,
                vae_scale=scale,
                scaling_factor=self._bundle.decoder_scaling(vae),
                in_loops=self._in_loops,
            )
        self._sessions.move_to_end(key)
        return self._sessions[key]
