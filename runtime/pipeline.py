"""Prompt to image."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.registry import (
    AUTO,
    DEFAULT,
    capabilities,
    cpu_engines,
)
from bksdm.models import EMOJI
from bksdm.runtime.bundle import COMPONENTS, FULL, Bundle
from bksdm.runtime.device_name import FIRST, gpu_index
from bksdm.runtime.diffusers_names import CALL, DiffusersNames, refuse, refuse_unknown
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.executor import Executor
from bksdm.runtime.generation_config import INPUTS, OPTIONS, GenerationConfig
from bksdm.runtime.generator import Generator
from bksdm.runtime.images import to_levels
from bksdm.runtime.initial_latents import begin
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.loading import load_networks
from bksdm.runtime.lora.loaded import Loras
from bksdm.runtime.lora.methods import LoraMethods
from bksdm.runtime.noise import CPU, Seeded
from bksdm.runtime.precision_choice import precision_for, type_name
from bksdm.runtime.preview import Preview
from bksdm.runtime.request import Request
from bksdm.runtime.result import Result
from bksdm.runtime.safety_checker import SafetyChecker
from bksdm.runtime.sampling import Cancelled, Progress, StepCallback, Watch
from bksdm.runtime.step_end import Callback, Run, StepEnd, tensor_names
from bksdm.runtime.vae_encoder import VaeEncoder
from bksdm.runtime.validation import (
    MAX_SIDE,
    MAX_THREADS,
    flag,
    floats,
    plain,
    shown,
    whole,
    writable_place,
)
from bksdm.storage.precision import BFLOAT16, FLOAT32

if TYPE_CHECKING:
    from PIL.Image import Image

ON_HOST = capabilities(DEFAULT)
OUTPUT_TYPES = ("pil", "np", "latent")


class TextToImage(LoraMethods, DiffusersNames):
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
    gpu : int
        Which one it runs on, if it runs on one.
    precision : str
        What the UNet and the VAE compute in.

    Attributes
    ----------
    capabilities : Capabilities
        What the engine can do.
    loras : Loras
        Those that are loaded.
    _interrupt : bool
        As in diffusers: set to True, it makes the latents so far the result of every call that is
        under way; the next call begins with False.
    """

    def __init__(
        self,
        bundle: Bundle,
        executor: Executor,
        encoder: VaeEncoder | None = None,
        checker: SafetyChecker | None = None,
        engine: Capabilities = ON_HOST,
        engines: Mapping[str, str] | None = None,
        gpu: int = FIRST,
        precision: str = FLOAT32.name,
    ) -> None:
        self.bundle = bundle
        self.precision = precision
        self.engines = dict(engines or dict.fromkeys(COMPONENTS, engine.name))
        self.capabilities, self._gpu = engine, gpu
        self.loras = Loras(bundle, engine)
        self._open: Executor | None = executor
        self._interrupt = False
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
        device: str | None = None,
        precision: str | None = None,
    ) -> TextToImage:
        """Open a bundle and load its networks.

        Parameters
        ----------
        path : str, Path or Bundle
            The bundle's folder, or one that is open; by default the small model that comes with
            the package.
        engine : str
            ``onnxruntime`` or ``openvino`` (on the CPU), ``onnxruntime-cuda``, and ``tensorrt`` or
            ``tensorrt-rtx`` once ``bksdm build`` has made engines. ``auto`` is ``onnxruntime-cuda``
            for a float16 bundle where a GPU can be used, and otherwise the faster one on the CPU
            for each network, once ``bksdm build --tune`` has measured.
        threads : int, optional
            CPU threads, up to 1024; by default one per physical core.
        engine_cache : str or Path, optional
            Where prepared graphs are stored; by default in the bundle's own ``engines`` folder, or
            in the user's cache if that cannot be written.
        safety_checker : bool
            Whether pictures are checked, if the bundle has what it takes; the loop on the GPU
            leaves that to the CPU.
        device : str, optional
            Which GPU runs the loop: ``cuda:0`` (the first, and the default), ``cuda:1`` …
        precision : str, optional
            What the UNet and the VAE compute in: by default the bundle's own type. A bundle in
            float32 can be computed in ``bfloat16`` by the engine ``openvino``; see
            ``docs/precision.md`` for what that costs.

        Raises
        ------
        RequestError
            An argument has a wrong type, or ``threads`` is out of range.
        BundleError, EngineError
            The bundle is damaged, or the engine is not available.
        """
        threads = None if threads is None else whole("threads", threads, 1, MAX_THREADS)
        wanted = flag("safety_checker", safety_checker)
        # An unknown name, or a device that it cannot have, is refused before anything is read.
        if capabilities(engine).name != AUTO:
            gpu_index(device, capabilities(engine))
        bundle = Bundle.of(path)
        engine = engine_for(bundle, engine)
        able = capabilities(engine)
        precision = precision_for(bundle, precision, able)
        gpu = gpu_index(device, able)
        cache = bundle.path / "engines"
        if engine_cache is not None:
            cache = writable_place("engine_cache", engine_cache)
        networks = load_networks(
            bundle,
            engine,
            threads=threads,
            cache=cache,
            checked=wanted,
            gpu=gpu,
            precision=precision,
        )
        return cls(bundle, *networks[:3], able, networks.engines, gpu, precision)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        torch_dtype: Any = None,
        safety_checker: Any = True,
        engine: str = "onnxruntime",
        threads: int | None = None,
        engine_cache: str | Path | None = None,
        device: str | None = None,
        **others: Any,
    ) -> TextToImage:
        """Open a bundle as diffusers' pipelines open a checkpoint; see also :meth:`load`.

        Parameters
        ----------
        path : str or Path
            The folder that ``bksdm export`` made of the checkpoint.
        torch_dtype : optional
            The type of the bundle, by torch's or numpy's name, or ``bfloat16``, which is the
            ``precision`` of :meth:`load`; others are refused.
        safety_checker : optional
            None leaves it out.
        engine, threads, engine_cache, device
            As of :meth:`load`.
        others
            What says how diffusers reads weights has no effect here; the rest is refused.

        Raises
        ------
        RequestError
            An argument has no meaning here; says what to use instead.
        BundleError, EngineError
            As of :meth:`load`.
        """
        dtype = others.pop("dtype", torch_dtype)
        if torch_dtype is not None and dtype != torch_dtype:
            raise RequestError("dtype and torch_dtype are one argument; give one of them")
        refuse_unknown(others)
        if safety_checker is not None and not isinstance(safety_checker, bool):
            raise RequestError("safety_checker is the bundle's; None leaves it out")
        precision = BFLOAT16 if type_name(dtype) == BFLOAT16 else None
        model = cls.load(
            path, engine, threads, engine_cache, bool(safety_checker), device, precision
        )
        return model if dtype is None else model.to(dtype)

    def to(self, *wanted: Any, **named: Any) -> TextToImage:
        """Return the model, if it has the device and the type that are asked for.

        Raises
        ------
        RequestError
            It has others: an engine is chosen when a model is loaded, a type when it is exported.
        """
        device = "cpu" if self.capabilities.name in (*cpu_engines(), AUTO) else "cuda"
        here = f"{device}:{self._gpu}" if self._gpu else device
        for value in (*wanted, *named.values()):
            name = type_name(value)
            if name in ("auto", "None", self.precision, device, f"{device}:{self._gpu}"):
                continue
            if name == BFLOAT16:
                raise RequestError(
                    f"this model computes in {self.precision}, not in bfloat16, which is said when "
                    "it is loaded: from_pretrained(path, torch_dtype='bfloat16', engine='openvino')"
                )
            if "float" in name:
                raise RequestError(
                    f"this bundle is {self.precision}, not {name}; export it with `bksdm export "
                    "--dtype`"
                )
            raise RequestError(
                f"this model runs on {here}, not on {name}; the engine decides when it is "
                "loaded: from_pretrained(path, engine='onnxruntime-cuda') or 'onnxruntime'"
            )
        return self

    def close(self) -> None:
        """Let go of the networks and their memory; the model makes no more pictures."""
        self._open = self._encoder = self._checker = None

    def __enter__(self) -> TextToImage:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def executor(self) -> Executor:
        """What runs the networks.

        Raises
        ------
        EngineError
            The model is closed.
        """
        if self._open is None:
            raise EngineError("this model is closed; load it again")
        return self._open

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generator | Sequence[Generator] | Any = None,
        latents: NDArray[np.float32] | None = None,
        prompt_embeds: NDArray[np.float32] | None = None,
        negative_prompt_embeds: NDArray[np.float32] | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, float] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        image: Image | Sequence[Image] | None = None,
        mask: Image | Sequence[Image] | None = None,
        mask_image: Image | Sequence[Image] | None = None,
        masked_image_latents: None = None,
        padding_mask_crop: None = None,
        control_image: Image | Sequence[Any] | None = None,
        controlnet: str | Sequence[str] | None = None,
        controlnet_conditioning_scale: float | Sequence[float] | None = None,
        guess_mode: bool = False,
        control_guidance_start: float | Sequence[float] = 0.0,
        control_guidance_end: float | Sequence[float] = 1.0,
        strength: float | None = None,
        seed: int | Sequence[int] | None = None,
        noise: str = CPU,
        sampler: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        prompt_weights: bool = False,
        long_prompt: bool = False,
        fast: int = 0,
        vae: str = FULL,
        loras: Mapping[str, float] | Sequence[Any] | None = None,
        on_step: StepCallback | None = None,
    ) -> Result:
        """Make images; the arguments are those of diffusers' three Stable Diffusion pipelines.

        ``docs/options.md`` describes texts and numbers, ``docs/porting.md`` what differs there.

        Parameters
        ----------
        prompt : str or sequence of str
            What to draw; several are drawn in one batch.
        generator : torch.Generator, bksdm.Generator or sequence of such, optional
            Draws the noise, from where it stands; ``seed`` begins anew in every call.
        latents : ndarray, shape [images, channels, height / 8, width / 8], optional
            Unit noise to start from; a stochastic sampler takes a seed too.
        prompt_embeds, negative_prompt_embeds : ndarray or tensor [prompts, tokens, width], optional
            In place of the texts.
        output_type : str
            ``pil``, ``np`` (float32 in 0 … 1) or ``latent``, of ``Result.images``.
        return_dict : bool
            False returns images and ``nsfw_content_detected`` as a tuple.
        callback_on_step_end : callable, optional
            ``function(run, index, timestep, tensors)`` is called after every step; what it returns
            of ``latents`` and ``prompt_embeds`` is gone on with.
        image, control_image : PIL image or sequence of such, optional
            Pictures to start from, repeated for all of the batch; and what ControlNets are shown,
            one each, or one per prompt (docs/controlnet.md).
        mask, mask_image : PIL image or sequence of such, optional
            White is made anew, black stays; two names of one argument.
        loras : mapping or sequence, optional
            Scales by the names of loaded LoRAs, ``{}`` for none; by default those that are active.
        on_step : callable, optional
            Called with each :class:`~bksdm.runtime.sampling.Step`; returning False cancels.

        Raises
        ------
        RequestError, SamplerError
            An argument is invalid, or this bundle or engine cannot do it.
        NonFiniteError, Cancelled
            A network produced NaN or infinity; ``on_step`` returned False.
        """
        # A test proves that the names and defaults above are those of the options.
        given = locals()
        refuse(given, CALL)
        if mask is not None and mask_image is not None:
            raise RequestError("mask and mask_image are one argument; give one of them")
        if callback_on_step_end is not None and on_step is not None:
            raise RequestError("on_step and callback_on_step_end exclude each other")
        tensor_names(callback_on_step_end_tensor_inputs)
        given["mask"] = mask_image if mask is None else mask
        given["loras"] = self._scaled(loras, cross_attention_kwargs)
        if prompt is None and prompt_embeds is not None:
            given["prompt"] = [""] * len(floats("prompt_embeds", prompt_embeds, (None,) * 3))
        elif prompt is None or prompt_embeds is not None:
            raise RequestError("give either prompt or prompt_embeds")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise RequestError("give either negative_prompt or negative_prompt_embeds")
        config = GenerationConfig(**{name: given[name] for name in OPTIONS})
        request = self.request(config, **{name: given[name] for name in INPUTS})
        output, as_result = plain(output_type), flag("return_dict", return_dict)
        if callback_on_step_end is None:
            result = self.generate(request, on_step, output_type=output)
        else:
            if self.capabilities.on_device:
                raise RequestError(
                    f"callback_on_step_end may change the latents, which the engine "
                    f"{self.capabilities.name} cannot; use on_step, which sees every step"
                )
            run = Run(self, request)
            changed = StepEnd(run, callback_on_step_end, callback_on_step_end_tensor_inputs)
            result = self.generate(request, changed, output_type=output, run=run)
        # The tuple is diffusers' rarer form, not worth a union that every caller has to take apart.
        return result if as_result else result.to_tuple()  # type: ignore[return-value]

    def request(self, config: GenerationConfig, **inputs: Any) -> Request:
        """Return options and inputs as :meth:`generate` takes them; see :meth:`__call__`.

        Parameters
        ----------
        config : GenerationConfig
            The options.
        inputs
            ``image``, ``mask``, ``control_image``, ``latents``, ``generator``, ``prompt_embeds``
            and ``negative_prompt_embeds``; these two beside a prompt of as many empty texts.

        Raises
        ------
        RequestError, SamplerError
            The bundle or the engine cannot do what is asked for.
        """
        return Request.resolve(self.bundle, self.capabilities, config, loras=self.loras, **inputs)

    def generate(
        self,
        request: Request,
        callback: StepCallback | None = None,
        noise: Seeded | None = None,
        output_type: str = "pil",
        run: Run | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Make the images of a request.

        Parameters
        ----------
        request : Request
            Resolved for this bundle and engine.
        callback : callable, optional
            ``on_step`` of :meth:`__call__`.
        noise : callable, optional
            Returns the source of noise for a seed; by default that of the request's options.
        output_type : str
            As of :meth:`__call__`.
        run : Run, optional
            Through which the callback may interrupt this call.
        progress : callable, optional
            Told the evaluations that are done, and of how many; on a GPU in a thread of its own,
            and without making it wait.

        Raises
        ------
        RequestError, NonFiniteError, Cancelled
            As of :meth:`__call__`.
        """
        if callback is not None and not callable(callback):
            raise RequestError(f"on_step must be a function, not {shown(callback)}")
        if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
            told = f"output_type must be one of {', '.join(OUTPUT_TYPES)}, not {shown(output_type)}"
            hint = "; torch.from_numpy takes those of np" if told.endswith("'pt'") else ""
            raise RequestError(told + hint)
        self._interrupt = False
        watch = Watch(
            callback,
            progress,
            lambda: self._interrupt or (run is not None and run.interrupt),
        )
        seconds: dict[str, float] = {}
        job, executor = self.begin(request, seconds, noise), self.executor
        array = None
        if output_type == "pil":
            pixels = executor(job, watch, seconds)
        elif output_type == "np":
            latents = executor.denoise(job, watch, seconds)
            array = executor.decode_exactly(latents, seconds, job.vae)
            pixels = to_levels(array)
        else:
            array = executor.denoise(job, watch, seconds)
            height, width = (side * self.bundle.vae_scale for side in request.shape[2:])
            pixels = np.empty((0, height, width, 3), np.uint8)
        return self.finish(request, pixels, watch.steps, seconds, array)

    def begin(
        self, request: Request, seconds: dict[str, float], noise: Seeded | None = None
    ) -> DenoisingJob:
        """Return the job of a request, for whoever drives the steps: :meth:`generate`, or a server.

        Parameters
        ----------
        request : Request
            Resolved for this bundle and engine.
        seconds : dict
            Where the wall time of ``vae_encoder`` is added.
        noise : callable, optional
            As of :meth:`generate`.

        Raises
        ------
        RequestError, EngineError
            The engine cannot run this size, or there is no VAE encoder for its image.
        """
        images, _, *side = request.shape
        height, width = (pixels * self.bundle.vae_scale for pixels in side)
        self.executor.validate_size(height, width, images)
        if request.image is not None and self._encoder is None:
            raise EngineError("made without a VAE encoder, which an image needs")
        start = time.perf_counter()
        job = begin(request, self._encoder, noise)
        if request.image is not None:
            seconds["vae_encoder"] = time.perf_counter() - start
        return job

    def finish(
        self,
        request: Request,
        pixels: NDArray[np.uint8],
        steps: int,
        seconds: dict[str, float],
        array: NDArray[np.float32] | None = None,
    ) -> Result:
        """Return the result of a request: its pictures, once the safety checker has seen them.

        Parameters
        ----------
        request : Request
            What was asked for.
        pixels : ndarray, uint8, shape [images, height, width, 3]
            The decoded pictures; without any of them where ``array`` holds latents.
        steps : int
            How many evaluations ran.
        seconds : dict
            Wall time by stage.
        array : ndarray, float32, optional
            As of :attr:`Result.array`.
        """
        unfit = None
        if self._checker is not None and len(pixels):
            start = time.perf_counter()
            unfit = self._checker(pixels)
            for made in (pixels, array):
                if made is not None:
                    made[unfit] = 0
            seconds["safety_checker"] = time.perf_counter() - start
        return Result(
            pixels=pixels,
            config=request.config,
            steps=steps,
            nsfw_content_detected=unfit,
            seconds=seconds,
            engines=dict(self.engines),
            precision=self.precision,
            array=array,
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

    def decode(self, latents: NDArray[np.float32], vae: str = FULL) -> NDArray[np.uint8]:
        """Return pixels [images, height, width, 3] of latents, by a VAE decoder.

        Parameters
        ----------
        latents : ndarray, float32, shape [images, channels, height / 8, width / 8]
            As of :attr:`Step.denoised`; exact where :attr:`preview` is quick.
        vae : str
            Which decoder, as in a call.

        Raises
        ------
        RequestError
            The latents are no array, or of another shape or a size that was not built; or the
            bundle has no such decoder.
        NonFiniteError
            The decoder produced NaN or infinity.
        """
        scale = self.bundle.vae_scale
        found = floats("latents", latents, (None, self.bundle.latent_channels, None, None))
        images, _, *side = found.shape
        for name, cells in zip(("height", "width"), side, strict=True):
            if cells * scale > MAX_SIDE:
                raise RequestError(
                    f"latents: their {name} makes {cells * scale} pixels; at most {MAX_SIDE}"
                )
        self.executor.validate_size(side[0] * scale, side[1] * scale, images)
        if vae not in self.bundle.decoders:
            known = " or ".join(self.bundle.decoders)
            raise RequestError(f"vae must be {known} for this bundle, not {shown(vae)}")
        return self.executor.decode(found, {}, vae)


__all__ = ["Cancelled", "Result", "TextToImage"]
