"""Run the loop in numpy, between engines that take and return host arrays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import NonFiniteError, RequestError, SamplerError
from bksdm.engines.once import once
from bksdm.engines.protocol import Array, Engine
from bksdm.engines.rewrite.feature_reuse import DEEP_FEATURES
from bksdm.runtime.feature_reuse import ReusedFeatures
from bksdm.runtime.guidance import guide, rescale_deviation
from bksdm.runtime.images import to_uint8
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.samplers import StepTable
from bksdm.runtime.sampling import sample
from bksdm.runtime.work import Work


class HostExecutor:
    """Engines on host arrays; implements :class:`~bksdm.runtime.work.Executor`.

    Parameters
    ----------
    encode : PromptEncoder
        Prompts to embeddings.
    unet, vae_decoder : Engine
        The bundle's networks; names and shapes of their tensors are Optimum's.
    scaling_factor : float
        Latents are divided by it before the VAE decoder.
    load_shallow : callable, optional
        Returns what follows the UNet's deep features, if the UNet shows them.
    """

    def __init__(
        self,
        encode: PromptEncoder,
        unet: Engine,
        vae_decoder: Engine,
        scaling_factor: float,
        load_shallow: Callable[[], Engine] | None = None,
    ) -> None:
        self._encode = encode
        self._unet = unet
        self._vae_decoder = vae_decoder
        self._scaling_factor = scaling_factor
        self._load_shallow = None if load_shallow is None else once(load_shallow)

    def check(self, height: int, width: int, images: int) -> None:
        """Accept every size."""

    def __call__(self, work: Work, seconds: dict[str, float]) -> NDArray[np.uint8]:
        """Make the pictures; stages: tokenize, text_encoder, unet, loop, vae_decoder, to_uint8."""
        inputs, guidance = self._unet.inputs, work.guidance
        timesteps = self._timesteps(work.table, len(work.texts))
        embeddings = self._encode(work.texts, work.wording, seconds)
        wanted = inputs["encoder_hidden_states"]
        embeddings = embeddings.astype(wanted.dtype, copy=False)
        if isinstance(wanted.shape[1], int) and wanted.shape[1] != embeddings.shape[1]:
            raise RequestError(
                f"this bundle's UNet takes {wanted.shape[1]} tokens, not the {embeddings.shape[1]} "
                "of a long prompt; export it anew with `bksdm export`"
            )
        seconds["unet"] = 0.0

        images = len(work.start)
        halves = 1 if guidance is None else 2
        both = np.empty((halves, *work.start.shape), inputs["sample"].dtype)
        batch = both.reshape(-1, *work.start.shape[1:])

        run = self._evaluation(work.reuse)

        def predict(
            x: NDArray[np.float32], timestep: float, index: int, out: NDArray[np.float32]
        ) -> None:
            both[:] = x
            scaled = guidance if guidance and guidance.at(index, len(work.table)) else None
            # Without guidance only the last rows are run, which are the conditional ones.
            first = 0 if scaled else len(batch) - images
            told = timesteps[index]
            feeds = {
                "sample": batch[first:],
                "timestep": told[first:] if len(told.shape) and len(told) > 1 else told,
                "encoder_hidden_states": embeddings[first:],
            }
            start = time.perf_counter()
            output = run(feeds, index).astype(np.float32, copy=False)
            seconds["unet"] += time.perf_counter() - start
            # NaN and infinity of either half are in their difference, which is half as much to see.
            with np.errstate(invalid="ignore"):
                if scaled is None:
                    out[:] = output
                else:
                    guide(output, scaled.scale, out)
                    if scaled.rescale:
                        rescale_deviation(out, output[images:], scaled.rescale)
            _require_finite(out, f"noise prediction of step {index + 1}")

        with _timed(seconds, "loop"):
            latents = work.start
            for step in sample(work.table, work.start, predict, work.noises, work.known):
                latents = step.latents
                work.report(step)
        seconds["loop"] -= seconds["unet"]

        return self.decode(latents, seconds)

    def decode(self, latents: NDArray[np.float32], seconds: dict[str, float]) -> NDArray[np.uint8]:
        """Decode one image at a time: the VAE's activations, not its weights, fill memory."""
        scaled = latents / np.float32(self._scaling_factor)
        with _timed(seconds, "vae_decoder"):
            one_by_one = (
                _cast_call(self._vae_decoder, {"latent_sample": scaled[i : i + 1]}, "sample")
                for i in range(len(scaled))
            )
            decoded = np.concatenate(list(one_by_one))
        _require_finite(decoded, "pixels of the VAE decoder")
        with _timed(seconds, "to_uint8"):
            return to_uint8(decoded)

    def _evaluation(self, every: int) -> Callable[[dict[str, Array], int], Array]:
        """Return what runs the UNet, as a whole in every n-th evaluation.

        Raises
        ------
        RequestError
            The UNet shows no deep features on this engine, so that none can be reused.
        """
        if every == 1:
            return lambda feeds, index: self._unet(feeds)["out_sample"]
        if self._load_shallow is None or DEEP_FEATURES not in self._unet.outputs:
            raise RequestError(
                "fast is for the engines onnxruntime and openvino, and for UNets that join features"
            )
        return ReusedFeatures(self._unet, self._load_shallow(), every)

    def _timesteps(self, table: StepTable, rows: int) -> list[Array]:
        """Return what the UNet is told in each step, in the type and shape that it takes.

        Raises
        ------
        SamplerError
            The UNet takes whole numbers only, and there are others.
        """
        spec = self._unet.inputs["timestep"]
        whole = np.issubdtype(spec.dtype, np.integer)
        for timestep in table.timesteps:
            if whole and timestep != round(timestep):
                raise SamplerError(
                    f"timestep {timestep:g} is fractional, but this bundle's UNet takes whole "
                    "ones; use another timestep_spacing or export the bundle with `bksdm export`"
                )
        # One timestep per image where its axis is the batch's, else one for all: a scalar, or an
        # axis of its own as Optimum has it.
        per_image = spec.shape[:1] == self._unet.inputs["sample"].shape[:1]
        shape = () if not spec.shape else (rows,) if per_image else (1,)
        return [np.full(shape, timestep, spec.dtype) for timestep in table.timesteps]


def _cast_call(engine: Engine, feeds: dict[str, Array], output: str) -> NDArray[np.float32]:
    """Run an engine with its own dtypes; the runtime's arithmetic is float32."""
    cast = {name: array.astype(engine.inputs[name].dtype, copy=False)
            for name, array in feeds.items()}  # fmt: skip
    return engine(cast)[output].astype(np.float32, copy=False)


def _require_finite(array: NDArray[np.float32], stage: str) -> None:
    # A sum of squares is NaN or infinite if any value is, and is the faster look at all of them.
    if not math.isfinite(np.vdot(array, array)) and not np.isfinite(array).all():
        raise NonFiniteError(f"{stage}: NaN or infinity; a float32 bundle may not overflow")


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
