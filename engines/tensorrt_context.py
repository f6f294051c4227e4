"""Run TensorRT plans on device memory that the caller owns."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bksdm.engines.device import Binding, require_all
from bksdm.engines.errors import EngineError
from bksdm.engines.protocol import TensorSpec
from bksdm.engines.tensorrt import load_module
from bksdm.storage.files import read_regular, write_file


class LoadedPlan:
    """A plan on the GPU; its contexts run it.

    Parameters
    ----------
    flavour : str
        ``tensorrt`` or ``tensorrt-rtx``.
    component : str
        Its name, for messages.
    content : bytes
        The plan.
    kernels : Path
        File for what TensorRT RTX compiles for this GPU when it first runs the plan, so that it
        does so only once. Of no effect on ``tensorrt``, whose plans hold compiled kernels.

    Attributes
    ----------
    tensors : mapping
        Inputs and outputs by name; dynamic axes are ``"?"``.
    inputs : tuple of str
        Which of these are inputs.
    scratch : int
        Bytes of device memory that every context needs while it runs. They keep nothing between
        runs, so all contexts of one stream may share them.
    recordable : bool
        Whether CUDA graphs may hold it, until one was found that cannot.

    Raises
    ------
    EngineError
        TensorRT cannot load the plan.
    """

    def __init__(self, flavour: str, component: str, content: bytes, kernels: Path) -> None:
        trt = load_module(flavour)
        self._flavour, self._component = flavour, component
        self.recordable = True
        # A runtime must outlive its engines.
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise EngineError(
                f"{component}: TensorRT {trt.__version__} cannot load the plan on this GPU; "
                "run `bksdm build` for it"
            )
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        self._kernels: Any = None
        self._kernels_file, self._known = kernels, b""
        if flavour == "tensorrt-rtx":
            self._kernels = self._config.create_runtime_cache()
            if kernels.is_file():
                self._known = read_regular(kernels)
                # Of another GPU or driver, or damaged: refused, and compiled anew.
                self._kernels.deserialize(self._known)
            self._config.set_runtime_cache(self._kernels)
            # Kernels that are specialised later, in the background, would not be in a graph.
            self._config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        self.scratch = int(self._engine.get_device_memory_size_for_profile_v2(0))
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors = {
            name: TensorSpec(
                np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))),
                tuple(n if n >= 0 else "?" for n in self._engine.get_tensor_shape(name)),
            )
            for name in names
        }
        self.inputs = tuple(
            name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        )

    def least_rows(self, name: str) -> int:
        """Return the fewest rows of an input that the plan was built for."""
        lowest, *_ = self._engine.get_tensor_profile_shape(name, 0)
        return int(lowest[0])

    def bind(self, bindings: Mapping[str, Binding], scratch: int) -> BoundPlan:
        """Return the plan ready to run between these addresses.

        Parameters
        ----------
        bindings : mapping
            One for every tensor.
        scratch : int
            Address of :attr:`scratch` bytes.

        Raises
        ------
        EngineError
            A tensor is missing, a shape lies outside the profile, or TensorRT refuses an address.
        """
        require_all(self._component, self.tensors, bindings)
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise EngineError(f"{self._component}: TensorRT has no memory for another size")
        for name in self.inputs:
            if not context.set_input_shape(name, bindings[name].shape):
                raise EngineError(
                    f"{self._component}: {name} of shape {bindings[name].shape} is outside of "
                    "what was built"
                )
        for name, binding in bindings.items():
            found = tuple(context.get_tensor_shape(name))
            if found != binding.shape:
                raise EngineError(
                    f"{self._component}: {name} has shape {found}, expected {binding.shape}"
                )
            if not context.set_tensor_address(name, binding.address):
                raise EngineError(
                    f"{self._component}: TensorRT does not take the address of {name}"
                )
        context.set_device_memory(scratch, self.scratch)
        return BoundPlan(self._flavour, self._component, context)

    def keep_kernels(self) -> None:
        """Write what was compiled since the plan was loaded."""
        if self._kernels is None:
            return
        compiled = bytes(self._kernels.serialize())
        if compiled == self._known:
            return
        # A read-only or full disk costs only the faster next start.
        with contextlib.suppress(OSError):
            write_file(self._kernels_file, compiled)
            self._known = compiled


@dataclass(frozen=True)
class BoundPlan:
    """A plan with fixed shapes and addresses."""

    flavour: str
    component: str
    context: Any

    def enqueue(self, stream: int) -> None:
        """Enqueue one run.

        Raises
        ------
        EngineError
            TensorRT refused.
        """
        if not self.context.execute_async_v3(stream):
            raise EngineError(f"{self.component}: TensorRT could not enqueue it")

    def can_record(self, stream: int) -> bool:
        """Whether a CUDA graph can hold it, of which only TensorRT RTX knows beforehand."""
        return self.flavour == "tensorrt" or bool(self.context.is_stream_capturable(stream))
