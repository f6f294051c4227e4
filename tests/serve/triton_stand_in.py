"""What Triton's Python backend gives a model: stands in for ``triton_python_backend_utils``.

Tensors come and go by DLPack only; ``as_numpy`` fails, as it does with numpy 2.
"""

from __future__ import annotations

import json
import queue

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Capsule:
    """A capsule of DLPack, for numpy."""

    def __init__(self, capsule):
        self._capsule = capsule

    def __dlpack__(self, **named):
        return self._capsule

    def __dlpack_device__(self):
        return 1, 0


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name, capsule):
        return cls(name, np.from_dlpack(Capsule(capsule)))

    def __dlpack__(self, **named):
        return self.array.__dlpack__(**named)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def as_numpy(self):
        raise AssertionError("this is wrong with numpy 2")


class TritonError(Exception):
    NOT_FOUND, UNAVAILABLE, CANCELLED, INTERNAL, INVALID_ARG = range(5)

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


class InferenceResponse:
    def __init__(self, tensors=(), error=None):
        self.error = error
        self.tensors = {tensor.name: tensor.array for tensor in tensors}

    @property
    def about(self):
        return json.loads(self.tensors["about"].tobytes())


class Request:
    """A request, and the answers to it."""

    def __init__(self, parameters=None, **tensors):
        self._parameters = parameters or {}
        self.tensors = {k: np.frombuffer(bytearray(v), np.uint8) for k, v in tensors.items()}
        self.answers = queue.Queue()
        self.cancelled = False

    def parameters(self):
        return json.dumps(self._parameters) if self._parameters else ""

    def get_response_sender(self):
        return self

    def is_cancelled(self):
        return self.cancelled

    def send(self, response, flags=0):
        self.answers.put((response, flags))

    def until_final(self):
        """Return all answers."""
        found = []
        while True:
            response, flags = self.answers.get(timeout=60)
            found.append(response)
            if flags:
                return found


def get_input_tensor_by_name(request, name):
    array = request.tensors.get(name)
    return None if array is None else Tensor(name, array)
