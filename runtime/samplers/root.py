"""Float32 square roots as torch takes them on this processor.

diffusers' noise levels are torch's roots, and torch leaves those to MKL. MKL refines an estimate of
1/√x that the processor gives, and does not round every root correctly: of AMD's processors (the
instruction RSQRTPS and one step of Newton's) a sixth are off by one in the last place, of Intel's
with AVX-512 (VRSQRT14PS and half a step) one in 200. A timestep that is 999 or 998.99999, and then
cut off, depends on it where noise levels are spaced exponentially or by a beta distribution: of
2000 random schedules 62 had another first timestep with correct roots on AMD's.
Elsewhere torch is taken to round roots correctly, as numpy does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bksdm.storage.processor import is_intel_avx512, is_zen

# Zen's estimate has 12 bits and comes from a bipartite table, once for [1, 2) and once for [2, 4):
# of 4 + 4 + 4 bits of the mantissa, the first eight choose a value, and the outer eight what is
# taken off it. Three hexadecimal digits a value, and one.
_VALUES = (
    "ffffeffdffd0fc0fb0fa1f92f82f73f64f55f46f37f28f1af0befceeeedfed1ec3eb5ea7e99e8be7de6fe61e54e46"
    "e39e2be1ee10e03df6de9ddcdcfdc2db5da9d9cd8fd83d76d6ad5dd51d44d38d2cd20d14d08cfccf0ce5cd9ccdcc2"
    "cb6cabc9ec93c88c7cc71c66c5bc50c45c3ac2fc24c19c0ec04bf9beebe4bd9bcfbc4bbabafba5b9bb91b86b7cb72"
    "b68b5eb54b4ab40b36b2cb22b19b0fb05afcaf2ae9adfad6accac3abaab0aa7a9ea94a8ba82a79a70a67a5ea55a4c"
    "a43a3ba32a29a21a18a0fa079fe9f69ed9e59dc9d49cb9c39bb9b29aa9a2999991989981979971969961959951949"
    "94193993292a92291a91290b9038fb8f48ec8e58dd8d68ce8c78bf8b88b18a98a289b89488d88587e877870869862"
    "85b85484d84683f83883082982281c81580e8078007fa7f37ec7e67df7d87d27cb7c57be7b87b17ab7a479e797791"
    "78b78477e77877176b76575e75875274c74674073a73372d72772171b71570f7097036fd6f76f16eb6e56e06da6d4"
    "6ce6c86c36bd6b76b16ac6a66a069568a67e67366965e65364863d63362861d6136085fe5f35e95df5d45ca5c05b6"
    "5ac5a259958f58557b57256855f55554b54253952f52651d51450b5024f94f04e74de4d54cc4c34bb4b24a94a1498"
    "49048747f47746e46645e45544d44543d43542d42541d41540d4053fd3f53ee3e63de3d73cf3c83c03b93b13aa3a2"
    "39b39438c38537e37736f36836135a35334c34533e33733032932231b31530e3073002fa2f32ec2e62df2d92d22cc"
    "2c52bf2b82b22ac2a529f29929228c28628027927326d26726125b25524f24924323d23723122b22522021a21420e"
    "2092031fd1f71f21ec1e71e11db1d61d01cb1c51c01bb1b51b01aa1a51a019a19519018a18518017b17617016b166"
    "16115c15715214d14814313e13913412f12a12512011a11611110c1071020fd0f90f40ef0ea0e60e10dc0d80d30ce"
    "0ca0c50c10bc0b70b30ae0aa0a50a109c09809308f08b08608207d07907507006c06806305f05b05705204e04a046"
    "04103d03903503102d02902402001c01801401000c008004"
)
_TAKEN_OFF = (
    "01234567789abcde01233456789aabcd012234566789abbc0122344567789aab001223455677899a0112334556678"
    "89a001223344566788900112234455667880112233445566778001122334455667700112233344556670112223344"
    "5566670011122333445566001122233444555600111223334455560001112233344455011233455677899a0012233"
    "455677899001223344566778800122334455667780011223344556677011122334455666700112223344555660011"
    "222334445566000112223334455500111222333444550011122233344455011122233344445500011122223334440"
    "00111222233344400111122223333440011112222333344"
)
_BASE = 4096 + np.array([int(_VALUES[i : i + 3], 16) for i in range(0, len(_VALUES), 3)])
_LESS = np.array([int(digit, 16) for digit in _TAKEN_OFF])

# Intel's estimate of 14 bits is a line in each 32nd of [1, 2) and of [2, 4): a start of five
# hexadecimal digits, and a slope of three.
_STARTS = (
    "7ffe97e0a17c2c57a63278ace770877574d73f11727ba711416fb976e6b46d2826befa6ac1f699db6882767703"
    "6665f656386468d637536288861a2360c1f5fe7b5f1365e43e5d79f5cb565bf4f5b39a5a815591f957cdc568a4"
    "5554c542b7530e151fb950f3d4ff5b4f0054e13d4d2f54c52a4b7d14aaeb49e67492434867f47b19470034653e"
    "45ac445098446b243d0d433a742a7e42195418dd4106040816"
)
_SLOPES = (
    "3e93bb39336d3493273072eb2cf2b529d28727125b2492372252152051f51e71d91cd1c11b51a919f193189181"
    "17716f2c32a328726b25323b22520f1fd1eb1d91c91b91ab19d19118517916d16315914f14513d13512d12511d"
    "11710f109103"
)
_START = np.array([int(_STARTS[i : i + 5], 16) for i in range(0, len(_STARTS), 5)])
_SLOPE = np.array([int(_SLOPES[i : i + 3], 16) for i in range(0, len(_SLOPES), 3)])


def float32_root(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return √x of positive, normal numbers, float32, as torch does here."""
    if is_zen():
        return zen_root(x)
    if is_intel_avx512():
        return avx512_root(x)
    root: NDArray[np.float32] = np.sqrt(x)
    return root


def zen_root(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return √x of positive, normal numbers, float32, as MKL does on AMD's Zen."""
    half = np.float32(0.5)
    estimate = zen_reciprocal_root(x)
    root, halved = x * estimate, half * estimate
    error = half - root * halved
    root, halved = root + root * error, halved + halved * error
    refined: NDArray[np.float32] = root + (x - root * root) * halved
    return refined


def avx512_root(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return √x of positive, normal numbers, float32, as MKL does on Intel's AVX-512."""
    estimate = avx512_reciprocal_root(x)
    # Multiplied and added with one rounding, which float64 does for float32.
    root = (x * estimate).astype(np.float64)
    error = (x - root * root).astype(np.float32)
    refined: NDArray[np.float32] = (root + error * (0.5 * estimate.astype(np.float64))).astype(
        np.float32
    )
    return refined


def zen_reciprocal_root(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1/√x to 12 bits, as RSQRTPS of AMD's Zen does."""
    exponent, cell = _exponent_and_cell(x, bits=12)
    octave = exponent % 2 * 256
    high, middle, low = cell >> 8, cell >> 4 & 0xF, cell & 0xF
    table = _BASE[octave + high * 16 + middle] - _LESS[octave + high * 16 + low]
    estimate: NDArray[np.float32] = np.ldexp(table.astype(np.float32), -(exponent // 2) - 13)
    return estimate


def avx512_reciprocal_root(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1/√x to 14 bits, as VRSQRT14PS does; of powers of four it is exact."""
    exponent, cell = _exponent_and_cell(x, bits=15)
    line = exponent % 2 * 32 + (cell >> 10)
    value = (_START[line] * 128 - _SLOPE[line] * (cell & 0x3FF)) >> 9
    power_of_four = (exponent % 2 == 0) & (x.view(np.uint32) & 0x7FFFFF == 0)
    value = np.where(power_of_four, 1 << 17, value)
    estimate: NDArray[np.float32] = np.ldexp(value.astype(np.float32), -(exponent // 2) - 17)
    return estimate


def _exponent_and_cell(x: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int64], ...]:
    """Return the exponent of numbers, and the first bits of what follows their first one."""
    content = x.view(np.uint32).astype(np.int64)
    return (content >> 23) - 127, (content & 0x7FFFFF) >> 23 - bits
