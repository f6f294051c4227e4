"""A GPU made of host memory. It is strict where CUDA is lenient.

- Work runs when the host waits and not before, so a missing wait shows stale data.
- Memory starts as NaN, is fenced by bytes that must not change, and is never used again after it
  was freed: unset, out-of-bounds and stale accesses are errors or NaN.
- Copies and TensorRT's tensors must lie in one live allocation, tensors at multiples of 256 bytes.
- A plan that was bound cannot be bound anew, since graphs may hold its first binding.
"""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections import Counter
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort

from bksdm.engines.onnxruntime_session import open_session
from bksdm.optimize.half import emulate_half
from bksdm.optimize.preparing import Composed

ALIGNMENT = 256
FENCE = 256
FENCE_BYTE, UNSET_BYTE = 0xFE, 0xFF  # both are NaN in every float type
THREADS = 256


class SimulationError(AssertionError):
    """What would be undefined behaviour, or a wrong picture, on a GPU."""


class Memory:
    """An allocation between two fences; its owner's garbage collection frees it."""

    def __init__(self, device, size, host):
        self.size = size
        self._device, self._host = device, host
        room = np.full(FENCE + size + FENCE + ALIGNMENT, FENCE_BYTE, np.uint8)
        before = -room.ctypes.data % ALIGNMENT
        self._bytes = room[before : before + FENCE + size + FENCE]
        self._bytes[FENCE : FENCE + size] = UNSET_BYTE
        self.address = self._bytes.ctypes.data + FENCE
        device.live[self.address] = size
        device.fenced.append(self._bytes)

    def __del__(self):
        self._device.live.pop(self.address, None)

    @property
    def array(self):
        if not self._host:
            raise SimulationError("the host touches device memory")
        if self.address in self._device.written_later:
            raise SimulationError("the host reads memory that the GPU has not written yet")
        return self._bytes[FENCE : FENCE + self.size]


class Graph:
    def __init__(self, device, operations):
        self._device, self._operations = device, operations

    def launch(self):
        self._device.counts["graph launches"] += 1
        self._device.queue += self._operations


@cache
def compiled_kernels(folder):
    """Compile kernels.cu with the host's compiler."""
    here = Path(__file__).parent
    source = files("bksdm.runtime.cuda") / "kernels.cu"
    library = Path(folder) / "kernels.so"
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-O2",
            "-shared",
            "-fPIC",
            "-ffp-contract=off",
            "-Wall",
            "-Werror",
            "-include",
            str(here / "shim.h"),
            "-x",
            "c++",
            str(source),
            "-o",
            str(library),
        ],
        check=True,
    )
    return ctypes.CDLL(str(library))


class SimulatedDevice:
    """Implements ``bksdm.runtime.cuda.device.Device``; ``counts`` tells what was asked of it."""

    target = "sm89"
    stream = 0x57

    def __init__(self, folder):
        self._library = compiled_kernels(str(folder))
        self.counts = Counter()
        self.queue = []
        self.live = {}
        self.fenced = []
        self.written_later = set()
        self.recording = False
        # As the constructor of a real one does for the thread that calls it.
        self.current = {threading.get_ident()}

    def activate(self):
        self.counts["activations"] += 1
        self.current.add(threading.get_ident())

    def allocate(self, size):
        assert threading.get_ident() in self.current
        self.counts["allocations"] += 1
        return Memory(self, size, host=False)

    def allocate_host(self, size):
        self.counts["allocations"] += 1
        return Memory(self, size, host=True)

    def copy(self, target, source, size):
        self.require(target.address, size)
        self.require(source.address, size)
        if getattr(target, "_host", False):
            self.written_later.add(target.address)
        self.enqueue("copies", lambda: ctypes.memmove(target.address, source.address, size))

    def load(self, code, name):
        assert code.startswith(b"\x7fELF"), "not a cubin"
        function = ctypes.cast(getattr(self._library, name), ctypes.c_void_p)

        def kernel(count, *arguments):
            padded = (ctypes.c_uint64 * 8)(*arguments)
            blocks = -(-count // THREADS)
            run = self._library.run_kernel
            self.enqueue("kernels", lambda: run(function, blocks, THREADS, padded))

        return kernel

    def enqueue(self, kind, operation):
        if not self.recording:
            self.counts[kind] += 1
        self.queue.append(operation)

    def record(self, work):
        if self.recording:
            raise SimulationError("a recording inside of a recording")
        before, self.queue, self.recording = self.queue, [], True
        work()
        operations, self.queue, self.recording = self.queue, before, False
        return Graph(self, operations)

    def synchronize(self):
        if self.recording:
            raise SimulationError("waiting while recording")
        self.counts["synchronisations"] += 1
        queue, self.queue = self.queue, []
        for operation in queue:
            operation()
        self.check_fences()
        self.written_later.clear()

    def check_fences(self):
        for memory in self.fenced:
            if (memory[:FENCE] != FENCE_BYTE).any() or (memory[-FENCE:] != FENCE_BYTE).any():
                raise SimulationError("a write out of bounds")

    def require(self, address, size):
        """Refuse memory that is not part of one live allocation."""
        for start, length in self.live.items():
            if start <= address and address + size <= start + length:
                return
        raise SimulationError(f"{size} bytes at {address:#x} are not in a live allocation")


class Context:
    """An execution context that runs the ONNX graph between addresses."""

    def __init__(self, engine):
        self._engine = engine
        self._shapes, self._addresses = {}, {}
        self._scratch = None
        self._symbols = {}

    def set_input_shape(self, name, shape):
        if name in self._shapes:
            raise SimulationError(f"{name} is bound already")
        low, _, high = self._engine.profile(name)
        if len(shape) != len(low) or any(
            not a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
        ):
            return False
        self._shapes[name] = tuple(shape)
        self._symbols.update(
            {
                s: n
                for s, n in zip(self._engine.inputs[name].shape, shape, strict=True)
                if isinstance(s, str)
            }
        )
        return True

    def get_tensor_shape(self, name):
        if name in self._engine.inputs:
            return self._shapes[name]

        def size(axis):
            factor, _, symbol = str(axis).rpartition("*")
            return axis if isinstance(axis, int) else int(factor or 1) * self._symbols[symbol]

        return tuple(size(axis) for axis in self._engine.outputs[name].shape)

    def set_tensor_address(self, name, address):
        dtype = self._engine.dtype(name)
        count = int(np.prod(self.get_tensor_shape(name))) * dtype.itemsize
        self._engine.device.require(address, count)
        if address % ALIGNMENT:
            raise SimulationError(f"{name} lies at {address:#x}, which TensorRT does not take")
        self._addresses[name] = address

    def set_device_memory(self, address, size):
        self._engine.device.require(address, size)
        assert size >= self._engine.scratch
        self._scratch = address

    def is_stream_capturable(self, stream):
        return self._engine.recordable

    def execute_async_v3(self, stream):
        engine = self._engine
        assert stream == engine.device.stream
        missing = {*engine.inputs, *engine.outputs} - set(self._addresses)
        if missing or self._scratch is None:
            raise SimulationError(f"{engine.name}: no address for {missing or 'scratch'}")
        engine.device.enqueue("plans", self._run)
        return True

    def _view(self, name):
        dtype, shape = self._engine.dtype(name), self.get_tensor_shape(name)
        count = int(np.prod(shape)) * dtype.itemsize
        self._engine.device.require(self._addresses[name], count)
        buffer = (ctypes.c_uint8 * count).from_address(self._addresses[name])
        return np.frombuffer(buffer, dtype).reshape(shape)

    def _run(self):
        engine = self._engine
        feeds = {name: self._view(name) for name in engine.inputs}
        engine.kernels.shapes.add(str(self._shapes).encode())
        for name, value in engine.run(feeds).items():
            self._view(name)[:] = value
        # Whoever counts on scratch keeping anything is wrong.
        ctypes.memset(self._scratch, UNSET_BYTE, engine.scratch)


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

    def __init__(self, device, model, profile, name, change=None):
        session = rounding(model)
        self.device, self.name, self.recordable = device, name, True
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
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda strategy: None,
            create_runtime_cache=lambda: self.kernels,
            set_runtime_cache=lambda kernels: None,
        )

    def create_execution_context(self, config):
        return Context(self)


def simulated_tensorrt(device, version, engines):
    """Return a module in place of ``tensorrt_rtx`` whose plans are ``engines``, by content."""

    class Logger:
        ERROR = 2

        def __init__(self, level):
            pass

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, content):
            return engines.get(content)

    return SimpleNamespace(
        __version__=version,
        Logger=Logger,
        Runtime=Runtime,
        nptype=lambda kind: kind,
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
