"""TensorRT on any CUDA driver: a network is copies, and a host function that runs its ONNX graph.

All of it can be recorded in a CUDA graph, so the tests of the loop run on a GPU as they do on the
driver of host memory, with the same arithmetic. It is strict where TensorRT is lenient:

- Tensors must lie at multiples of 256 bytes, and scratch keeps nothing.
- Outputs are NaN until they are written.
- A plan that was bound cannot be bound anew, since graphs may hold its first binding.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache, lru_cache
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort

from bksdm.benchmarks.gpu.counted import CountedGpu
from bksdm.engines.onnxruntime_session import open_session
from bksdm.optimize.half import emulate_half
from bksdm.optimize.preparing import Composed
from bksdm.runtime.cuda.compile import compile_kernels
from bksdm.runtime.cuda.device import Part, as_array
from bksdm.runtime.cuda.gpu import Gpu

ALIGNMENT = 256
UNSET_BYTE = 0xFF  # NaN in every float type
# What the bundle of the tests is built for, and the driver of host memory is.
TARGET = "sm89"

machine_code = cache(compile_kernels)


class SimulationError(AssertionError):
    """What would be undefined behaviour on a GPU."""


class CountingGpu(CountedGpu):
    """A GPU that takes code for the tests' target, and tells what its memory is and what failed."""

    def __init__(self):
        super().__init__()
        self._real, self.target = self.target, TARGET
        self.live = weakref.WeakValueDictionary()
        self.failed = []

    def allocate(self, size):
        return self._noted(super().allocate(size))

    def allocate_host(self, size):
        return self._noted(super().allocate_host(size))

    def _noted(self, memory):
        self.live[id(memory)] = memory
        return memory

    def load(self, code, name):
        return super().load(code if self._real == TARGET else machine_code(self._real), name)

    def synchronize(self):
        super().synchronize()
        if self.failed:
            raise self.failed.pop()


HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def accepted(result):
    """Return what the driver gave, unless it is an error."""
    error, *values = result
    assert not int(error), error
    return values


class Context:
    """An execution context that runs the ONNX graph between addresses."""

    def __init__(self, engine):
        self._engine = engine
        self._shapes, self._addresses = {}, {}
        self._scratch = None
        self._symbols = {}
        self._staged = {}
        self._function = HOST_FUNCTION(self._compute)

    def set_input_shape(self, name, shape):
        if name in self._shapes:
            raise SimulationError(f"{name} is bound already")
        low, _, high = self._engine.profile(name)
        if len(shape) != len(low) or any(
            not a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
        ):
            return False
        self._shapes[name] = tuple(shape)
        for axis, size in zip(self._engine.inputs[name].shape, shape, strict=True):
            if isinstance(axis, str):
                factor, _, symbol = axis.rpartition("*")
                self._symbols[symbol] = size // int(factor or 1)
        return True

    def get_tensor_shape(self, name):
        if name in self._engine.inputs:
            return self._shapes[name]

        def size(axis):
            factor, _, symbol = str(axis).rpartition("*")
            return axis if isinstance(axis, int) else int(factor or 1) * self._symbols[symbol]

        return tuple(size(axis) for axis in self._engine.outputs[name].shape)

    def set_tensor_address(self, name, address):
        if address % ALIGNMENT:
            raise SimulationError(f"{name} lies at {address:#x}, which TensorRT does not take")
        self._addresses[name] = address
        return self._engine.takes_addresses

    def set_device_memory(self, address, size):
        assert size >= self._engine.scratch
        assert address % ALIGNMENT == 0
        self._scratch = address

    def execute_async_v3(self, stream):
        from cuda.bindings import driver

        engine, gpu = self._engine, self._engine.device
        assert stream == gpu.stream
        missing = {*engine.inputs, *engine.outputs} - set(self._addresses)
        if missing or self._scratch is None:
            raise SimulationError(f"{engine.name}: no address for {missing or 'scratch'}")
        if engine.waits:
            # What a plan does that allocates while it runs.
            driver.cuStreamSynchronize(stream)
        if not self._staged:
            self._staged = {name: self._stage(name) for name in (*engine.inputs, *engine.outputs)}
        for name in engine.inputs:
            held, _ = self._staged[name]
            Gpu.copy(gpu, held, Part(self._addresses[name], held.size), held.size)
        pointer = ctypes.cast(self._function, ctypes.c_void_p).value
        accepted(driver.cuLaunchHostFunc(stream, driver.CUhostFn(pointer), 0))
        for name in engine.outputs:
            held, _ = self._staged[name]
            Gpu.copy(gpu, Part(self._addresses[name], held.size), held, held.size)
        # Whoever counts on scratch keeping anything is wrong.
        accepted(driver.cuMemsetD8Async(self._scratch, UNSET_BYTE, engine.scratch, stream))
        gpu.count("plans")
        return True

    def _stage(self, name):
        """Return page-locked memory of a tensor, and the array in it."""
        dtype, shape = self._engine.dtype(name), self.get_tensor_shape(name)
        held = Gpu.allocate_host(self._engine.device, int(np.prod(shape)) * dtype.itemsize)
        return held, as_array(held, dtype, shape)

    def _compute(self, _):
        engine = self._engine
        try:
            engine.kernels.shapes.add(str(self._shapes).encode())
            found = engine.run({name: self._staged[name][1].copy() for name in engine.inputs})
            for name, value in found.items():
                self._staged[name][1][...] = value
        except BaseException as error:  # nothing may leave a host function
            engine.device.failed.append(error)


class RtxContext(Context):
    def is_stream_capturable(self, stream):
        return self._engine.recordable


class Kernels:
    """What TensorRT RTX compiles for every new shape; ``known`` if some came from a file."""

    content = b"kernels"
    known = False

    def __init__(self):
        self.shapes = set()

    def deserialize(self, content):
        self.known = content.startswith(self.content)
        return self.known

    def serialize(self):
        return b" ".join([self.content, *sorted(self.shapes)])


@lru_cache(maxsize=8)
def rounding(model):
    """Return a session of a float16 graph that computes as :func:`emulate_half` says."""
    proto = onnx.load(str(model), load_external_data=False)
    emulate_half(proto)
    return open_session(Composed.of(proto, model).prepared(), ort.SessionOptions())


class Engine:
    """A deserialised plan: the ONNX graph that it was built from, rounding every tensor."""

    scratch = 4096

    def __init__(self, device, model, profile, name, change=None, flavour="tensorrt-rtx"):
        session = rounding(model)
        self._is_rtx = flavour == "tensorrt-rtx"
        self.device, self.name, self.recordable = device, name, True
        self.takes_addresses, self.waits = True, False
        self.inputs = {node.name: node for node in session.get_inputs()}
        self.outputs = {node.name: node for node in session.get_outputs()}
        self._session, self._profile, self._change = session, profile, change
        self.kernels = Kernels()

    def dtype(self, name):
        kinds = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(int64)": "i8"}
        return np.dtype(kinds[{**self.inputs, **self.outputs}[name].type])

    def profile(self, name):
        ranges = [
            (axis,) * 3 if isinstance(axis, int) else self._profile.axis(self.name, axis).values
            for axis in self.inputs[name].shape
        ]
        return tuple([r[i] for r in ranges] for i in range(3))

    def run(self, feeds):
        values = dict(zip(self.outputs, self._session.run(None, feeds), strict=True))
        return self._change(self.name, values) if self._change else values

    @property
    def num_io_tensors(self):
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index):
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name):
        return self.dtype(name)

    def get_tensor_shape(self, name):
        axes = {**self.inputs, **self.outputs}[name].shape
        return [axis if isinstance(axis, int) else -1 for axis in axes]

    def get_tensor_mode(self, name):
        return "input" if name in self.inputs else "output"

    def get_tensor_profile_shape(self, name, index):
        return list(self.profile(name))

    def get_device_memory_size_for_profile_v2(self, index):
        return self.scratch

    def create_runtime_config(self):
        config = SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)
        if self._is_rtx:
            config.create_runtime_cache = lambda: self.kernels
            config.set_runtime_cache = lambda kernels: None
        return config

    def create_execution_context(self, config):
        return RtxContext(self) if self._is_rtx else Context(self)


def simulated_tensorrt(version, engines, flavour):
    """Return a module in place of TensorRT's whose plans are ``engines``, by content."""

    class Logger:
        ERROR = 2

        def __init__(self, level):
            pass

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, content):
            return engines.get(content)

    module = SimpleNamespace(
        __version__=version,
        Logger=Logger,
        Runtime=Runtime,
        nptype=lambda kind: kind,
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
    )
    if flavour == "tensorrt-rtx":
        module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    return module
