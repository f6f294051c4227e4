"""torch's modules as networks of the loop on a GPU, which so runs with the work of a real UNet.

Not run on a GPU yet; the tests run it on a driver of host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NoReturn, Protocol

import numpy as np
import torch

from bksdm.engines.device import Binding
from bksdm.engines.errors import EngineError
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.stream_fork import Fork
from bksdm.runtime.cuda.compile import compile_kernels
from bksdm.runtime.cuda.device import Device
from bksdm.runtime.cuda.networks import Loaded

Tensors = Mapping[str, torch.Tensor]
Run = Callable[[Tensors], None]


class Place(Protocol):
    """Where torch runs."""

    def view(self, address: int, spec: TensorSpec, shape: tuple[int, ...]) -> torch.Tensor:
        """Return memory of the device as a tensor."""
        ...

    def enqueue(self, stream: int, run: Callable[[], None]) -> None:
        """Enqueue torch's work in a stream."""
        ...


class OnGpu:
    """torch on a GPU; implements :class:`Place`.

    Its work goes to a stream of its own, between what lies in the loop's. So what it allocates in
    the run before a recording is there in the recording, and nothing is allocated in it.
    """

    def __init__(self) -> None:
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Kept for as long as graphs are: what they compute between tensors lies in it.
        self._pool: Any = torch.cuda.MemPool()

    def view(self, address: int, spec: TensorSpec, shape: tuple[int, ...]) -> torch.Tensor:
        """Return memory of the GPU as a tensor."""

        class Held:
            __cuda_array_interface__ = {  # noqa: RUF012
                "version": 3,
                "shape": shape,
                "typestr": spec.dtype.str,
                "data": (address, False),
            }

        return torch.as_tensor(Held(), device="cuda")

    def enqueue(self, stream: int, run: Callable[[], None]) -> None:
        """Enqueue torch's work in a stream."""
        with (
            Fork(stream, self._stream.cuda_stream),
            torch.inference_mode(),
            torch.cuda.stream(self._stream),
            torch.cuda.use_mem_pool(self._pool),
        ):
            run()


class TorchNetwork:
    """A module between addresses; implements :class:`~bksdm.engines.device.DeviceNetwork`."""

    scratch = 0

    def __init__(
        self,
        run: Run,
        inputs: Mapping[str, TensorSpec],
        output: Mapping[str, TensorSpec],
        at: Place,
    ) -> None:
        self._run, self._place = run, at
        self.inputs = tuple(inputs)
        self.tensors: Mapping[str, TensorSpec] = {**inputs, **output}
        self.recordable = True

    def least_rows(self, name: str) -> int:
        """Return 1: it takes any number."""
        return 1

    def keep_kernels(self) -> None:
        """Do nothing: torch keeps its own."""

    def bind(self, bindings: Mapping[str, Binding], scratch: int) -> BoundTorch:
        """Return it ready to run between these addresses."""
        views = {
            name: self._place.view(bindings[name].address, spec, bindings[name].shape)
            for name, spec in self.tensors.items()
        }
        return BoundTorch(partial(self._run, views), self._place)


@dataclass(frozen=True)
class BoundTorch:
    """A module with fixed shapes and addresses."""

    run: Callable[[], None]
    place: Place

    def enqueue(self, stream: int) -> None:
        """Enqueue one run."""
        self.place.enqueue(stream, self.run)

    def can_record(self, stream: int) -> bool:
        """Return True."""
        return True


class TorchNetworks:
    """A pipeline's modules; implements :class:`~bksdm.runtime.cuda.networks.Networks`.

    Parameters
    ----------
    pipeline
        diffusers' ``StableDiffusionPipeline``, on the device.
    unet
        Called as diffusers calls it: the pipeline's, or what ``torch.compile`` makes of it.
    device : Device
        The GPU.
    place : Place
        Where torch runs.
    """

    def __init__(self, pipeline: Any, unet: Any, device: Device, place: Place) -> None:
        text, vae, kind = pipeline.text_encoder, pipeline.vae, pipeline.dtype
        half, single, whole = (np.dtype(t) for t in (np.float16, np.float32, np.int64))

        def encode(views: Tensors) -> None:
            views["last_hidden_state"].copy_(text(input_ids=views["input_ids"])[0])

        def predict(views: Tensors) -> None:
            embeddings = views["encoder_hidden_states"].to(kind)
            sample, timestep = views["sample"].to(kind), views["timestep"]
            views["out_sample"].copy_(unet(sample, timestep, embeddings, return_dict=False)[0])

        def decode(views: Tensors) -> None:
            latents = views["latent_sample"].to(kind)
            views["sample"].copy_(vae.decode(latents, return_dict=False)[0])

        latents = TensorSpec(half, ("?", pipeline.unet.config.in_channels, "?", "?"))
        tokens = pipeline.tokenizer.model_max_length
        ids = TensorSpec(whole, ("?", tokens))
        embeddings = TensorSpec(half, ("?", tokens, text.config.hidden_size))
        pixels = TensorSpec(half, ("?", 3, "?", "?"))
        to_unet = {
            "sample": latents,
            "timestep": TensorSpec(single, ("?",)),
            "encoder_hidden_states": embeddings,
        }
        self._networks = {
            "text_encoder": TorchNetwork(
                encode, {"input_ids": ids}, {"last_hidden_state": embeddings}, place
            ),
            "unet": TorchNetwork(predict, to_unet, {"out_sample": latents}, place),
            "vae_decoder": TorchNetwork(
                decode, {"latent_sample": latents}, {"sample": pixels}, place
            ),
        }
        kernel = cache(partial(device.load, compile_kernels(device.target)))
        self._loaded = Loaded(self._networks, kernel, device.allocate(1))

    def validate_size(self, images: int, height: int, width: int) -> None:
        """Accept every size."""

    def load(self, images: int, height: int, width: int) -> Loaded:
        """Return the networks, which take every size."""
        return self._loaded

    def load_encoder(self, height: int, width: int) -> NoReturn:
        """Refuse: pictures to start from are not measured."""
        raise EngineError("torch's networks start from noise alone")
