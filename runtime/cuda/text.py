"""The embeddings of a UNet batch on the GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.device import Binding, BoundNetwork, DeviceNetwork
from bksdm.engines.errors import RequestError
from bksdm.runtime.cuda.device import Device, HostMemory, Memory, Part, as_array
from bksdm.storage.precision import FLOAT16


class DeviceText:
    """The text encoder's rows and those of the UNet; equal prompts of a job are encoded once.

    Parameters
    ----------
    device : Device
        The GPU.
    plan : DeviceNetwork
        The text encoder.
    scratch : int
        Address of the plan's scratch.
    rows, images : int
        Of the UNet's batch.

    Attributes
    ----------
    embeddings : Binding
        Of the UNet, float16 [rows, 77, width]; zeros where no job was yet.
    encoded : Memory
        Of the job that was enqueued last, float16 [rows, 77, width], as many as are distinct.
    """

    def __init__(
        self, device: Device, plan: DeviceNetwork, scratch: int, rows: int, images: int
    ) -> None:
        self._device, self._plan, self._scratch = device, plan, scratch
        self._rows, self._images = rows, images
        self._tokens, self._width = (int(n) for n in plan.tensors["last_hidden_state"].shape[1:])
        self._row_bytes = FLOAT16.itemsize * self._tokens * self._width
        self._ids_type = plan.tensors["input_ids"].dtype
        self._ids = device.allocate(rows * self._tokens * self._ids_type.itemsize)
        self._embeddings = device.allocate(rows * self._row_bytes)
        device.clear(self._embeddings)
        self.embeddings = Binding(self._embeddings.address, (rows, self._tokens, self._width))
        self.encoded: Memory = device.allocate(rows * self._row_bytes)
        self._least = plan.least_rows("input_ids")
        self._encoders: dict[int, BoundNetwork] = {}
        # By the first slot of a job, because several may join before the GPU has read any.
        self._staging: dict[int, HostMemory] = {}
        self._encoder: BoundNetwork | None = None
        self._source: Part
        self._copies: list[tuple[int, int]] = []

    def stage(self, text: NDArray[np.generic], first: int, images: int) -> None:
        """Write what the next upload takes; none of the same slots may be under way.

        Parameters
        ----------
        text : ndarray, int, shape [rows, 77], or float32, shape [rows, 77, width]
            Token ids of the job's rows of the UNet's batch, or embeddings that stand in for the
            text encoder; with guidance the rows of the unconditional half come first.
        first, images : int
            The job's slots.

        Raises
        ------
        RequestError
            The embeddings are of more tokens than the plans were built for.
        EngineError
            TensorRT has no memory for another number of prompts.
        """
        halves = len(text) // images
        # Without guidance there is the conditional half only, which is the last one.
        skipped = self._rows // self._images - halves
        targets = [
            (skipped + half) * self._images + first + image
            for half in range(halves)
            for image in range(images)
        ]
        if text.ndim == len(self.embeddings.shape):
            if text.shape[1] != self._tokens:
                raise RequestError(
                    f"the plans take {self._tokens} tokens, not the {text.shape[1]} of a long "
                    "prompt; use the engine onnxruntime"
                )
            staging = self._staged(first, self.encoded.size)
            as_array(staging, np.float16, text.shape)[:] = text
            self._source = Part(staging.address, len(text) * self._row_bytes)
            self._copies, self._encoder = list(enumerate(targets)), None
            return
        distinct, sources = np.unique(text, axis=0, return_inverse=True)
        # Plans may take no fewer; the first stands in for the others.
        rows = max(len(distinct), self._least)
        spare = distinct[:1].repeat(rows - len(distinct), axis=0)
        ids = np.concatenate([distinct, spare])
        if rows not in self._encoders:
            self._encoders[rows] = self._bind(rows)
        staging = self._staged(first, self._ids.size)
        as_array(staging, self._ids_type, ids.shape)[:] = ids
        self._source = Part(staging.address, ids.size * self._ids_type.itemsize)
        self._copies = list(zip(sources.ravel().tolist(), targets, strict=True))
        self._encoder = self._encoders[rows]

    def _staged(self, first: int, size: int) -> HostMemory:
        known = self._staging.get(first)
        if known is None or known.size < size:
            known = self._staging[first] = self._device.allocate_host(size)
        return known

    def enqueue(self) -> None:
        """Enqueue the upload, the text encoder, and its rows' copies to those of the UNet."""
        goal = self.encoded if self._encoder is None else self._ids
        self._device.copy(goal, self._source, self._source.size)
        if self._encoder is not None:
            self._encoder.enqueue(self._device.stream)
        size = self._row_bytes
        for source, target in self._copies:
            self._device.copy(
                Part(self._embeddings.address + target * size, size),
                Part(self.encoded.address + source * size, size),
                size,
            )

    @property
    def size(self) -> int:
        """Values of what is :attr:`encoded`."""
        return len({source for source, _ in self._copies}) * self._tokens * self._width

    def _bind(self, rows: int) -> BoundNetwork:
        shape = (rows, self._tokens)
        return self._plan.bind(
            {
                "input_ids": Binding(self._ids.address, shape),
                "last_hidden_state": Binding(self.encoded.address, (*shape, self._width)),
            },
            self._scratch,
        )
