"""ONNX Runtime's CPU provider in the place of its CUDA provider, on the driver of host memory.

Its sessions run as host functions in the stream that they were opened with, on the same addresses:
so what the engine does with streams, bindings and recordings is what it does on a GPU.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import onnx
import onnxruntime as ort

from bksdm.engines import onnxruntime_session
from bksdm.storage.stored_graph import Prepared
from tests.optimize.documented import documented

from .simulated import HOST_FUNCTION, accepted


class StreamedSession:
    """A session whose runs wait for their turn in a stream."""

    def __init__(self, graph, device, settings, on_cpu=()):
        # What the CPU provider has no kernels for is computed by what is documented of it.
        proto = documented(onnx.load_from_string(graph.content))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        prepared = Prepared(proto.SerializeToString(), graph.root)
        self._session = onnxruntime_session.open_session(prepared, options)
        self._device, self._on_cpu = device, on_cpu
        self.settings = settings
        self.stream = int(settings["user_compute_stream"])
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def get_provider_graph_assignment_info(self):
        def part(provider, operators):
            nodes = [SimpleNamespace(op_type=name) for name in operators]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        return [
            part("CUDAExecutionProvider", ("Conv",)),
            part("CPUExecutionProvider", ("Shape", *self._on_cpu)),
        ]

    def io_binding(self):
        return StreamedBinding(self._session.io_binding())

    def run_with_iobinding(self, binding, options):
        from cuda.bindings import driver

        def compute(_):
            try:
                self._session.run_with_iobinding(binding.real)
            except BaseException as error:  # nothing may leave a host function
                self._device.failed.append(error)

        function = HOST_FUNCTION(compute)
        binding.functions.append(function)
        pointer = ctypes.cast(function, ctypes.c_void_p).value
        accepted(driver.cuLaunchHostFunc(self.stream, driver.CUhostFn(pointer), 0))
        self._device.count("plans")


class StreamedBinding:
    """Addresses of the GPU, which are the host's."""

    def __init__(self, real):
        self.real, self.functions = real, []

    def bind_input(self, name, device_type, device_id, *rest):
        assert (device_type, device_id) == ("cuda", 0)
        self.real.bind_input(name, "cpu", 0, *rest)

    def bind_output(self, name, device_type, device_id, *rest):
        assert (device_type, device_id) == ("cuda", 0)
        self.real.bind_output(name, "cpu", 0, *rest)
