"""The embeddings of a UNet batch on the GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.device import Binding, BoundNetwork, DeviceNetwork
from bksdm.engines.errors import RequestError
from bksdm.runtime.cuda.device import Device, Memory, Part, as_array
from bksdm.storage.precision import FLOAT16


class DeviceText:
    """The text encoder's rows and those of the UNet; equal prompts are encoded once.

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
        float16 [rows, 77, width].
    size : int
        Values of them.
    """

    def __init__(
        self, device: Device, plan: DeviceNetwork, scratch: int, rows: int, images: int
    ) -> None:
        self._device, self._plan, self._scratch = device, plan, scratch
        tokens, width = (int(n) for n in plan.tensors["last_hidden_state"].shape[1:])
        shape = (rows, tokens, width)
        self.size = rows * tokens * width
        self._row_bytes = FLOAT16.itemsize * tokens * width
        self._ids_type, self._ids_shape = plan.tensors["input_ids"].dtype, (rows, tokens)
        self._ids = device.allocate(rows * tokens * self._ids_type.itemsize)
        self._ids_host = device.allocate_host(self._ids.size)
        self._embeddings = device.allocate(rows * self._row_bytes)
        self._host = device.allocate_host(rows * self._row_bytes)
        self.embeddings = Binding(self._embeddings.address, shape)
        # Images of one prompt share its row; without several there is nothing to share.
        self._distinct: Memory | None = None
        if images > 1:
            self._distinct = device.allocate(rows * self._row_bytes)
        self._least = plan.least_rows("input_ids")
        self._encoders = {rows: self._bind(rows, self._embeddings)}
        self._sources: list[int] = []
        self._count, self._encoded = rows, False

    def stage(self, text: NDArray[np.generic]) -> None:
        """Write what the next upload takes; nothing may be under way.

        Parameters
        ----------
        text : ndarray, int, shape [rows, 77], or float32, shape [rows, 77, width]
            Token ids of the UNet's batch, or embeddings that stand in for the text encoder.

        Raises
        ------
        RequestError
            The embeddings are of more tokens than the plans were built for.
        EngineError
            TensorRT has no memory for another number of prompts.
        """
        self._encoded = text.ndim == len(self.embeddings.shape)
        if self._encoded:
            if text.shape != self.embeddings.shape:
                raise RequestError(
                    f"the plans take {self.embeddings.shape[1]} tokens, not the {text.shape[1]} of "
                    "a long prompt; use the engine onnxruntime"
                )
            as_array(self._host, np.float16, text.shape)[:] = text
            return
        self._count, self._sources = len(text), []
        if self._distinct is not None:
            distinct, sources = np.unique(text, axis=0, return_inverse=True)
            needed = max(len(distinct), self._least)
            if needed < len(text):
                spare = distinct[:1].repeat(needed - len(distinct), axis=0)
                text = np.concatenate([distinct, spare])
                self._count, self._sources = needed, sources.ravel().tolist()
                if needed not in self._encoders:
                    self._encoders[needed] = self._bind(needed, self._distinct)
        as_array(self._ids_host, self._ids_type, text.shape)[:] = text

    def enqueue(self) -> None:
        """Enqueue the upload, the text encoder, and its rows' copies to those of the UNet."""
        if self._encoded:
            self._device.copy(self._embeddings, self._host, self._embeddings.size)
            return
        self._device.copy(self._ids, self._ids_host, self._ids.size)
        self._encoders[self._count].enqueue(self._device.stream)
        size = self._row_bytes
        for row, source in enumerate(self._sources):
            assert self._distinct is not None
            self._device.copy(
                Part(self._embeddings.address + row * size, size),
                Part(self._distinct.address + source * size, size),
                size,
            )

    def _bind(self, rows: int, target: Memory) -> BoundNetwork:
        return self._plan.bind(
            {
                "input_ids": Binding(self._ids.address, (rows, self._ids_shape[1])),
                "last_hidden_state": Binding(target.address, (rows, *self.embeddings.shape[1:])),
            },
            self._scratch,
        )
