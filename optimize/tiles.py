"""Forms of a 3×3 convolution that need few multiplications for a tile of its output.

For an input tile d, a filter g and an output tile y (Lavin & Gray 2016, arXiv 1509.09308):

    y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

F(m×m, 3×3) needs (m + 2)² multiplications for m² values in place of 9 m²: 16 in place of 36 for
m = 2, 36 in place of 144 for m = 4.

D(4×4, 3×3) convolves a picture whose rows and columns were doubled, and takes the picture before
that. In one dimension, two values x₀, x₁ between their neighbours are the tile x₋₁ … x₂ and give
four outputs, the even ones w₀ x₋₁ + (w₁ + w₂) x₀, the odd ones (w₀ + w₁) x₀ + w₂ x₁. As polynomials
in s of the transposed problem, with outputs e and o as coefficients:

    S(s) = (w₀ + (w₁ + w₂) s) (e₀ + e₁ s) + s ((w₀ + w₁) + w₂ s) (o₀ + o₁ s)

S has degree 3 and is known from its values at s = 0, 1, −1 and its leading coefficient. At 0 and ∞
one of the two products vanishes, at 1 both have the same filter, so that 1 + 1 + 2 + 1 = 5
multiplications give four outputs: 25 for a tile, in place of 144, and of 36 by F(4×4, 3×3). All
transforms are sums and halves, so that it is also more accurate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tile:
    """A form, with the matrices of the module's formula, for tiles of m×m values.

    Attributes
    ----------
    name
        In words.
    bt, g, at
        Bᵀ [p, r], G [p, 3] and Aᵀ [m, p]; r is the side of an input tile.
    scale
        How many times as large the output is.
    """

    name: str
    bt: NDArray[np.float64]
    g: NDArray[np.float64]
    at: NDArray[np.float64]
    scale: int = 1

    @property
    def size(self) -> int:
        """Height and width of an output tile, m."""
        return len(self.at)

    @property
    def step(self) -> int:
        """From one input tile to the next."""
        return self.size // self.scale

    @property
    def reach(self) -> int:
        """Height and width of an input tile."""
        return int(self.bt.shape[1])

    @property
    def points(self) -> int:
        """Multiplications for an output tile, p²."""
        return len(self.bt) ** 2


F2 = Tile(
    "F(2x2)",
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
    np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], np.float64),
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
)
F4 = Tile(
    "F(4x4)",
    np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        np.float64,
    ),
    np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        np.float64,
    ),
    np.array(
        [
            [1, 1, 1, 1, 1, 0],
            [0, 1, -1, 2, -2, 0],
            [0, 1, 1, 4, 4, 0],
            [0, 1, -1, 8, -8, 1],
        ],
        np.float64,
    ),
)
D4 = Tile(
    "D(4x4)",
    np.array(
        [
            [1, 0, -1, 0],
            [0, 1, 1, 0],
            [0, 1, -1, 0],
            [0, 1, -1, 0],
            [0, 1, 0, -1],
        ],
        np.float64,
    ),
    np.array(
        [
            [1, 0, 0],
            [1 / 2, 1 / 2, 1 / 2],
            [-1 / 2, 1 / 2, 1 / 2],
            [1 / 2, 1 / 2, -1 / 2],
            [0, 0, -1],
        ],
        np.float64,
    ),
    np.array(
        [
            [1, 1, 1, 0, 0],
            [0, 1, 0, 1, 0],
            [0, 1, -1, 0, 0],
            [0, 1, 0, -1, 1],
        ],
        np.float64,
    ),
    scale=2,
)
PLAIN_TILES = (F2, F4)
DOUBLED_TILES = (D4,)
TILES = PLAIN_TILES + DOUBLED_TILES
