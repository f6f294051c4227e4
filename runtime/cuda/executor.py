"""Run a bundle's TensorRT plans on the GPU, the loop included."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.profile import Profile
from bksdm.engines.tensorrt import BUILD_FLAGS, load_module
from bksdm.engines.tensorrt_context import LoadedPlan
from bksdm.runtime.bundle import COMPONENTS, Bundle
from bksdm.runtime.cuda.compile import source_digest
from bksdm.runtime.cuda.device import Device, Kernel, Memory
from bksdm.runtime.cuda.picture_encoder import NAME as ENCODER
from bksdm.runtime.cuda.picture_encoder import DeviceVaeEncoder
from bksdm.runtime.cuda.progress import told
from bksdm.runtime.cuda.session import Session, Shape
from bksdm.runtime.finite import require_finite
from bksdm.runtime.inpainting import Latents
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.sampling import Denoising, Watch
from bksdm.storage.files import in_use
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.plans import Recipe, list_plans, read_plan, read_record, validate_plans
from bksdm.storage.precision import FLOAT16

KEPT_SESSIONS = 4
Made = TypeVar("Made", bound=np.generic)
_Loaded = tuple[dict[str, LoadedPlan], Callable[[str], Kernel], Memory]


@dataclass(frozen=True)
class _Built:
    """One folder of plans that fits the GPU and the bundle."""

    folder: Path
    profile: Profile


class CudaExecutor:
    """TensorRT plans on one GPU; implements :class:`~bksdm.runtime.executor.Executor`.

    Threads may share it; the GPU makes their pictures one after the other.

    Parameters
    ----------
    bundle : Bundle
        With plans that ``bksdm build`` made.
    encode : PromptEncoder
        Prompts to embeddings on the host, for those that are not plain.
    flavour : str
        ``tensorrt`` or ``tensorrt-rtx``.
    device : Device
        The GPU.

    Raises
    ------
    EngineError
        Nothing was built for this GPU, or what was built is stale or damaged.
    """

    def __init__(self, bundle: Bundle, encode: PromptEncoder, flavour: str, device: Device) -> None:
        self._bundle = bundle
        self._encode = encode
        self._flavour = flavour
        self._device = device
        self._built = _find(bundle, flavour, device.target)
        self._sessions: OrderedDict[Shape, Session] = OrderedDict()
        self._load = cache(partial(_load, flavour, device))
        self._load_encoder = cache(partial(_load_encoder, flavour, device, self._load))

    def validate_size(self, height: int, width: int, images: int) -> None:
        """Refuse what no profile covers."""
        if not any(b.profile.covers(images, height, width) for b in self._built):
            names = ", ".join(str(b.profile) for b in self._built)
            raise RequestError(
                f"{images} images of {width}x{height} are outside of what was built ({names}); "
                "run `bksdm build` with --batch and --size"
            )

    def __call__(
        self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]
    ) -> NDArray[np.uint8]:
        """Make the pictures; stages: tokenize, enqueue (host work) and wait (for the GPU)."""
        return self._draw(job, watch, seconds, Session.end)

    def denoise(self, job: DenoisingJob, watch: Watch, seconds: dict[str, float]) -> Latents:
        """Return x_0; the same stages."""
        latents = self._draw(job, watch, seconds, Session.latents)
        require_finite(latents, "latents of the last step")
        return latents

    def _draw(
        self,
        job: DenoisingJob,
        watch: Watch,
        seconds: dict[str, float],
        finish: Callable[[Session], NDArray[Made]],
    ) -> NDArray[Made]:
        with self._device.alone():
            start = time.perf_counter()
            if job.plain_text:
                text: NDArray[np.generic] = self._encode.ids(job)
                seconds["tokenize"] = time.perf_counter() - start
            else:
                text = self._encode(job, seconds)
            images, _, *side = job.latents.shape
            session = self._session(images, job.guidance is not None, side)
            start = time.perf_counter()
            try:
                watched, counted = watch.callback is not None, watch.progress is not None
                session.begin(text, job, watched=watched, counted=counted)
                denoising = Denoising(job, session, watch)
                with told(watch.progress, lambda: session.done, len(job.table)):
                    while not denoising.done:
                        denoising.advance(None)
                    seconds["enqueue"] = time.perf_counter() - start
                    made = finish(session)
            except BaseException:
                # The next picture may not touch buffers that copies are still under way from.
                self._device.synchronize()
                raise
            seconds["wait"] = time.perf_counter() - start - seconds["enqueue"]
            session.keep_kernels()
            return made

    def decode(self, latents: NDArray[np.float32], seconds: dict[str, float]) -> NDArray[np.uint8]:
        """Return the pixels of latents; a picture that is under way goes on afterwards."""
        images, _, *side = latents.shape
        start = time.perf_counter()
        height, width = (pixels * self._bundle.vae_scale for pixels in side)
        self.validate_size(height, width, images)
        with self._device.alone():
            guided = Shape(images, True, height, width) in self._sessions
            pixels = self._session(images, guided, side).decode(latents)
        seconds["vae_decoder"] = time.perf_counter() - start
        return pixels

    def decode_exactly(self, latents: Latents, seconds: dict[str, float]) -> NDArray[np.float32]:
        """Return them in 0 … 1; the GPU rounds them to 256 levels before they are copied."""
        return np.asarray(self.decode(latents, seconds) / np.float32(255), np.float32)

    def vae_encoder(self) -> DeviceVaeEncoder:
        """Return the VAE encoder, whose plan is loaded with the first picture."""
        return DeviceVaeEncoder(
            self._device,
            GraphFile.read(self._bundle.model(ENCODER)),
            self._encoder_for,
            self._bundle.vae_scale,
        )

    def _encoder_for(self, height: int, width: int) -> tuple[LoadedPlan, Memory]:
        fitting = (b for b in self._built if b.profile.covers(b.profile.batch.low, height, width))
        folder = next(fitting).folder
        with in_use(folder):
            return self._load_encoder(folder)

    def _session(self, images: int, guided: bool, side: Sequence[int]) -> Session:
        scale = self._bundle.vae_scale
        shape = Shape(images, guided, side[0] * scale, side[1] * scale)
        if shape not in self._sessions:
            built = next(
                b for b in self._built if b.profile.covers(images, shape.height, shape.width)
            )
            with in_use(built.folder):
                plans, kernel, scratch = self._load(built.folder)
            while len(self._sessions) >= KEPT_SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[shape] = Session(
                self._device,
                plans,
                kernel,
                scratch=scratch,
                shape=shape,
                vae_scale=scale,
                scaling_factor=self._bundle.scaling_factor,
            )
        self._sessions.move_to_end(shape)
        return self._sessions[shape]


def _find(bundle: Bundle, flavour: str, target: str) -> list[_Built]:
    """Return every folder of plans for a GPU; the first stale one of them is refused."""
    engines = bundle.path / "engines"
    models = {name: bundle.model(name) for name in bundle.components}
    version = str(load_module(flavour).__version__)
    found, others = [], []
    for name in list_plans(engines):
        record = read_record(engines / name)
        if record.get("backend") != flavour or target not in record.get("targets", ()):
            others.append(name)
            continue
        profile = Profile.read(record["profile"])
        targets = tuple(record["targets"])
        recipe = Recipe(flavour, version, targets, FLOAT16.name, profile, BUILD_FLAGS[flavour])
        validate_plans(engines / name, recipe, models)
        found.append(_Built(engines / name, profile))
    if not found:
        raise EngineError(
            f"nothing was built for {flavour} on {target} (built: {', '.join(others) or 'nothing'})"
            f"; run `bksdm build {bundle.path} --engine {flavour}`"
        )
    return found


def _load(flavour: str, device: Device, folder: Path) -> _Loaded:
    """Return the loaded plans of a folder, its kernels, and scratch for the hungriest plan."""
    files = read_record(folder)["plans"]
    kernels = f"kernels-{device.target}"
    if files.get(kernels, {}).get("model") != source_digest():
        raise EngineError(f"{folder.name}: {kernels} is stale; run `bksdm build` again")
    code = read_plan(folder, kernels, files)
    plans = {name: _load_plan(flavour, device, folder, name) for name in COMPONENTS}
    scratch = device.allocate(max(1, *(plan.scratch for plan in plans.values())))
    return plans, cache(partial(device.load, code)), scratch


def _load_encoder(
    flavour: str, device: Device, load: Callable[[Path], _Loaded], folder: Path
) -> tuple[LoadedPlan, Memory]:
    """Return the VAE encoder of a folder, and scratch for it: that of the others if it does."""
    *_, scratch = load(folder)
    plan = _load_plan(flavour, device, folder, ENCODER)
    return plan, scratch if plan.scratch <= scratch.size else device.allocate(plan.scratch)


def _load_plan(flavour: str, device: Device, folder: Path, name: str) -> LoadedPlan:
    content = read_plan(folder, name, read_record(folder)["plans"])
    return LoadedPlan(flavour, name, content, folder / f"{name}-{device.target}.cache")
