"""Random streams that go on from call to call, as ``torch.Generator`` does in diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.runtime.noise import (
    CPU,
    CUDA,
    TorchCpuGenerator,
    TorchCudaGenerator,
    seeded_stream,
    validate_seed,
)
from bksdm.runtime.validation import several, shown

DEFAULT_SEED = 67280421310721
"""Of a ``torch.Generator`` that was not seeded."""

# What torch.Generator("cpu").get_state() holds: at::CPUGeneratorImplState.
STATE = np.dtype(
    [
        ("seed", np.uint64),
        ("left", np.int32),
        ("seeded", np.int32),
        ("next", np.uint64),
        ("key", np.uint64, 624),
        ("x", np.float64),
        ("spare", np.float64),
        ("rho", np.float64),
        ("has_spare", np.int64),
        ("float_spare", np.float32),
        ("has_float_spare", np.int32),
    ]
)


# What torch.Generator("cuda").get_state() holds.
CUDA_STATE = np.dtype([("seed", np.uint64), ("offset", np.int64)])
# The values that torch counts for one counter of Philox.
_VALUES = 4


class Stream(Protocol):
    """A source of standard normal values."""

    @property
    def noise(self) -> str:
        """Whose noise it is, as the option of that name."""
        ...

    @property
    def fresh(self) -> bool:
        """Whether nothing was drawn yet, so that the seed says everything."""
        ...

    def initial_seed(self) -> int:
        """Return the seed."""
        ...

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return values of ``shape``."""
        ...


class Generator:
    """``torch.Generator`` without torch: the same stream, which goes on.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda`` or ``cuda:THREADS``, as the option ``noise``; it is drawn on the CPU.

    Raises
    ------
    RequestError
        Another device.
    """

    def __init__(self, device: str = CPU) -> None:
        self.noise = str(device)
        self._stream = seeded_stream(self.noise)
        self.manual_seed(DEFAULT_SEED)

    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream of a seed, and return the generator."""
        self._seed = validate_seed(seed)
        self._drawn = self._stream(self._seed)
        self.fresh = True
        return self

    def initial_seed(self) -> int:
        """Return the seed."""
        return self._seed

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return standard normal values of ``shape``, float32."""
        self.fresh = False
        return self._drawn.randn(shape)


class TorchStream:
    """A ``torch.Generator`` on the CPU: read before every draw, and written back after it.

    So its state is always what it would be had torch drawn. torch itself is not imported.

    Parameters
    ----------
    generator
        Has ``initial_seed``, ``get_state`` and ``set_state``.

    Raises
    ------
    RequestError
        It is on another device than the CPU.
    """

    noise = CPU

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        if self._state().nbytes != STATE.itemsize:
            raise RequestError(
                "generator must be on the CPU or on a GPU of NVIDIA: torch.Generator('cpu')"
            )

    def _state(self) -> NDArray[np.uint8]:
        state: NDArray[np.uint8] = self._generator.get_state().numpy()
        return state

    @property
    def fresh(self) -> bool:
        """Whether nothing was drawn yet."""
        fields = self._state().view(STATE)[0]
        return bool(fields["left"] == 1 and fields["next"] == 0)

    def initial_seed(self) -> int:
        """Return the seed."""
        return int(self._generator.initial_seed())

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return standard normal values of ``shape``, float32."""
        state = self._generator.get_state()
        # In the memory of the tensor, so that the same tensor can be set again.
        fields = state.numpy().view(STATE)[0]
        stream = TorchCpuGenerator(0)
        # torch counts what is left of 624 numbers, the next one included; numpy where it is.
        spare = float(fields["spare"]) if fields["has_spare"] else None
        stream.state = fields["key"].astype(np.uint32), 625 - int(fields["left"]), spare
        values = stream.randn(shape)
        fields["key"], position, spare = stream.state
        fields["left"], fields["next"] = 625 - position, position
        fields["has_spare"], fields["spare"] = spare is not None, spare or 0.0
        self._generator.set_state(state)
        return values


class TorchCudaStream:
    """A ``torch.Generator`` on a GPU: read before every draw, and set on after it.

    It draws what torch would on a GPU that holds all threads of a draw at once.

    Parameters
    ----------
    generator
        Has ``initial_seed``, ``get_state`` and ``set_state``.
    """

    noise = CUDA

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    @property
    def fresh(self) -> bool:
        """Whether nothing was drawn yet."""
        return int(self._generator.get_state().numpy().view(CUDA_STATE)["offset"][0]) == 0

    def initial_seed(self) -> int:
        """Return the seed."""
        return int(self._generator.initial_seed())

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return standard normal values of ``shape``, float32."""
        state = self._generator.get_state()
        # In the memory of the tensor, so that the same tensor can be set again.
        fields = state.numpy().view(CUDA_STATE)
        stream = TorchCudaGenerator(int(fields["seed"][0]))
        stream.offset = int(fields["offset"][0]) // _VALUES
        values = stream.randn(shape)
        fields["offset"] = _VALUES * stream.offset
        self._generator.set_state(state)
        return values


def streams(generator: Any, images: int) -> tuple[Stream, ...]:
    """Return one stream for the batch, or one per image.

    Raises
    ------
    RequestError
        Something is no generator, or there are not as many as images.
    """
    each = several(generator)
    found = tuple(map(_stream, [generator] if each is None else each))
    if each is not None and len(found) != images:
        raise RequestError(
            f"generator has {len(found)} entries, but the number of images is {images}"
        )
    return found


def _stream(generator: Any) -> Stream:
    if isinstance(generator, Generator):
        return generator
    if not all(hasattr(generator, name) for name in ("initial_seed", "get_state", "set_state")):
        raise RequestError(
            f"generator must be a torch.Generator or a bksdm.Generator, not {shown(generator)}"
        )
    if generator.get_state().numel() == CUDA_STATE.itemsize:
        return TorchCudaStream(generator)
    return TorchStream(generator)
