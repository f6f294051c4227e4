"""torch's random streams in numpy, so that a seed gives the picture it gives in diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.runtime.validation import several, shown, whole

LOWEST_SEED, HIGHEST_SEED = -(2**63), 2**64 - 1
"""The seeds of ``torch.Generator.manual_seed``, which adds 2**64 to negative ones."""


class TorchCpuGenerator:
    """The stream of ``torch.Generator("cpu").manual_seed(seed)``: MT19937 and Box–Muller.

    Parameters
    ----------
    seed : int
        −2**63 to 2**64 − 1; torch seeds its MT19937 with the low 32 bits.

    Raises
    ------
    RequestError
        The seed is out of range or no integer.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.random.MT19937()
        np.random.RandomState(self._words).seed(validate_seed(seed) % 2**32)
        self._spare: float | None = None

    @property
    def state(self) -> tuple[NDArray[np.uint32], int, float | None]:
        """The 624 words of MT19937, how many of them are used, and a normal value that is kept."""
        words: Any = self._words.state["state"]
        return words["key"], words["pos"], self._spare

    @state.setter
    def state(self, state: tuple[NDArray[np.uint32], int, float | None]) -> None:
        key, position, self._spare = state
        self._words.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": position}}

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return standard normal float32 values of ``shape``, as ``torch.randn`` draws them.

        From 16 values on: √(−2 ln(1 − u₁)) · (cos, sin)(2π u₂) in blocks of eight pairs of float32
        uniforms; below, one pair at a time in float64, the second value kept for the next call.
        Within 1e-6 of torch, whose vectorised logarithm and cosine differ in the last bit.
        """
        count = prod(shape)
        if count < 16:
            values = np.array([self._one() for _ in range(count)], np.float32)
            return values.reshape(shape)
        uniform = self._uniform(count)
        whole = count - count % 16
        values = np.empty(count, np.float32)
        values[:whole] = _box_muller(uniform[:whole])
        if count % 16:
            values[-16:] = _box_muller(self._uniform(16))
        return values.reshape(shape)

    def _uniform(self, count: int) -> NDArray[np.float32]:
        words = self._words.random_raw(count).astype(np.uint32)
        uniform: NDArray[np.float32] = (words & np.uint32(2**24 - 1)).astype(np.float32)
        uniform *= np.float32(2**-24)
        return uniform

    def _one(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        angle, height = (self._double() for _ in range(2))
        radius = np.sqrt(-2 * np.log1p(-height))
        self._spare = float(radius * np.sin(2 * np.pi * angle))
        return float(radius * np.cos(2 * np.pi * angle))

    def _double(self) -> float:
        high, low = (int(word) for word in self._words.random_raw(2))
        return float(((high << 32 | low) & (2**53 - 1)) * 2.0**-53)


class TorchCudaGenerator:
    """The stream of ``torch.Generator("cuda").manual_seed(seed)``: Philox4x32-10.

    torch gives value i to thread i mod T, T = 256 · min(blocks the GPU holds at once, ⌈n/256⌉); a
    thread's Philox counter is (offset, 0, thread, 0), and one counter makes four normal values,
    the thread's next four (Salmon et al. 2011; curand's ``curand_normal4``).

    Parameters
    ----------
    seed : int
        −2**63 to 2**64 − 1; modulo 2**64 it is the Philox key.
    resident_threads : int, optional
        Multiprocessors times threads per multiprocessor of the GPU to imitate, which decides the
        order of draws larger than that; by default larger than any draw.

    Attributes
    ----------
    offset : int
        Counters that every thread has used.

    Raises
    ------
    RequestError
        The seed is out of range or no integer.
    """

    def __init__(self, seed: int, resident_threads: int | None = None) -> None:
        self._seed = validate_seed(seed)
        self._resident = resident_threads
        self.offset = 0

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return standard normal float32 values of ``shape``, as ``torch.randn`` on CUDA."""
        count = prod(shape)
        if count == 0:
            return np.zeros(shape, np.float32)
        threads = -(-count // 256) * 256
        if self._resident is not None:
            threads = min(threads, self._resident // 256 * 256)
        calls = -(-count // (threads * 4))
        values = np.empty((calls, 4, threads), np.float32)
        counter = np.zeros((4, threads), np.uint32)
        counter[2] = np.arange(threads, dtype=np.uint32)
        for call in range(calls):
            counter[0] = self.offset + call
            values[call] = _curand_normal(philox(counter, self._seed))
        self.offset += calls
        return values.reshape(-1)[:count].reshape(shape)


def philox(counter: NDArray[np.uint32], key: int) -> NDArray[np.uint32]:
    """Return ten rounds of Philox4x32 (Salmon et al. 2011).

    Parameters
    ----------
    counter : ndarray, uint32, shape [4, n]
        One counter a column.
    key : int
        64 bits; the low word comes first.

    Returns
    -------
    ndarray, uint32, shape [4, n]
    """
    a, b, c, d = (word.astype(np.uint64) for word in counter)
    low, high = key & 0xFFFFFFFF, key >> 32
    word, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a = (second >> word) ^ b ^ np.uint64(low)
        c = (first >> word) ^ d ^ np.uint64(high)
        b, d = second & mask, first & mask
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([a, b, c, d]).astype(np.uint32)


def _curand_normal(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Turn two pairs of words into four normal values: √(−2 ln u) · (sin, cos)(v)."""
    scale, half = np.float32(2.0**-32), np.float32(2.0**-33)
    turn = np.float32(2 * np.pi)
    height = words[0::2].astype(np.float32) * scale + half
    angle = words[1::2].astype(np.float32) * (scale * turn) + half * turn
    radius = np.sqrt(np.float32(-2) * np.log(height))
    pairs = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    return np.asarray(pairs.reshape(4, -1), np.float32)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = np.split(uniform.reshape(-1, 2, 8), 2, axis=1)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - first))
    angle = np.float32(2 * np.pi) * second
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return np.asarray(pairs.reshape(-1), np.float32)


class RandomSource(Protocol):
    """Unit noise for a batch of images, draw after draw."""

    def draw(self, shape: Sequence[int], count: int | None = None) -> NDArray[np.float32]:
        """Return float32 ``[count, *shape]``, by default for every image of the batch."""
        ...


Seeded = Callable[["int | Sequence[int]", int], RandomSource]
"""From one seed for the batch, or one per image, and the number of images to their noise."""


class Drawable(Protocol):
    """One random stream."""

    def randn(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return standard normal values, float32."""
        ...


class StreamNoise:
    """Unit noise for a batch of images, draw after draw, as diffusers' ``randn_tensor`` has it.

    Parameters
    ----------
    streams : sequence of Drawable
        One that draws the whole batch, or one for each image.
    count : int
        Number of images.
    each : bool
        Whether each image has its own.
    """

    def __init__(self, streams: Sequence[Drawable], count: int, each: bool) -> None:
        self._streams, self._count, self._each = streams, count, each

    def draw(self, shape: Sequence[int], count: int | None = None) -> NDArray[np.float32]:
        """Return float32 ``[count, *shape]``; ``shape`` is that of one image's latents.

        By default for every image; fewer are drawn from the first streams.
        """
        count = self._count if count is None else count
        if self._each:
            return np.stack([stream.randn(shape) for stream in self._streams[:count]])
        return self._streams[0].randn((count, *shape))


CPU, CUDA = "cpu", "cuda"
LEAST_THREADS = 256
"""Of a GPU at once: torch draws in blocks of so many."""


def seeded_stream(noise: str) -> Callable[[int], Drawable]:
    """Return whose stream a seed begins: ``cpu``, ``cuda`` or ``cuda:THREADS``.

    Raises
    ------
    RequestError
        It is none of these.
    """
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,9}))?", noise)
    threads = int(found[1]) if found is not None and found[1] else LEAST_THREADS
    if found is None or threads < LEAST_THREADS:
        raise RequestError(
            "noise must be cpu, cuda or cuda:THREADS, where THREADS is how many a GPU holds at "
            f"once, {LEAST_THREADS} or more, and not its number; not {shown(noise)}"
        )
    if noise == CPU:
        return TorchCpuGenerator
    return partial(TorchCudaGenerator, resident_threads=threads if found[1] else None)


class BatchNoise(StreamNoise):
    """Unit noise by seed.

    Parameters
    ----------
    seeds : int or sequence of int
        One seed draws the whole batch from one generator; a sequence gives each image its own.
    count : int
        Number of images.
    noise : str
        As of :func:`seeded_stream`.

    Raises
    ------
    RequestError
        A seed is out of range, or there are not ``count`` of them.
    """

    def __init__(self, seeds: int | Sequence[int], count: int, noise: str = CPU) -> None:
        checked = validate_seeds(seeds, count)
        found = checked if isinstance(checked, list) else [checked]
        super().__init__(list(map(seeded_stream(noise), found)), count, isinstance(checked, list))


def initial_noise(
    shape: tuple[int, int, int], seeds: int | Sequence[int], count: int
) -> NDArray[np.float32]:
    """Return the first draw of :class:`BatchNoise`, which the starting latents are made of."""
    return BatchNoise(seeds, count).draw(shape)


def validate_seeds(seeds: object, count: int) -> int | list[int]:
    """Return one seed, or a list of one per image.

    Raises
    ------
    RequestError
        A seed is out of range, or there are not ``count`` of them.
    """
    found = several(seeds)
    if found is None:
        return validate_seed(seeds)
    if len(found) != count:
        raise RequestError(f"seed has {len(found)} entries, but the number of images is {count}")
    return [validate_seed(seed) for seed in found]


def validate_seed(seed: object) -> int:
    """Return the seed as torch keeps it, from 0 to 2**64 − 1.

    Raises
    ------
    RequestError
        It is no integer from −2**63 to 2**64 − 1.
    """
    return whole("seed", seed, LOWEST_SEED, HIGHEST_SEED) % 2**64
