"""Run an ONNX Runtime session on tensors that lie on its device."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bksdm.engines.onnxruntime_package import load_onnxruntime
from bksdm.engines.protocol import Array

if TYPE_CHECKING:
    import onnxruntime as ort


class BoundSession:
    """A session whose inputs are copied to buffers on the device that are kept from call to call.

    Threads that share it run one after the other.

    Without binding, ONNX Runtime allocates every input on the device anew in each call.

    Parameters
    ----------
    session : InferenceSession
        On one GPU, or on the CPU.
    device : str
        ``cuda`` or ``cpu``.
    """

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        self._session = session
        self._device = device
        self._outputs = [node.name for node in session.get_outputs()]
        self._buffers: dict[str, ort.OrtValue] = {}
        self._running = threading.Lock()

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; outputs are copied back to the host."""
        with self._running:
            return self._run(feeds)

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self._upload(name, np.asarray(array, order="C")))
        for name in self._outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        results = binding.get_outputs()
        return {name: value.numpy() for name, value in zip(self._outputs, results, strict=True)}

    def _upload(self, name: str, array: Array) -> ort.OrtValue:
        buffer = self._buffers.get(name)
        if buffer is None or tuple(buffer.shape()) != array.shape:
            values = load_onnxruntime().OrtValue
            buffer = values.ortvalue_from_numpy(array, self._device, 0)
            self._buffers[name] = buffer
        else:
            buffer.update_inplace(array)
        return buffer
