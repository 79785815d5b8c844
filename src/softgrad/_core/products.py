"""The matrix products of a linear head, and what goes with them, through NumPy's BLAS.

Another BLAS, or storage that NumPy cannot multiply, is a subclass (`softgrad.torch._products`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from softgrad._core.arrays import Array
from softgrad._core.blas import single_threaded_blas


class Products:
    """Products of tiles; each runs in the thread that asks for it, and in that thread alone."""

    name = "numpy"
    adds_bias = False  # whether `affine` is to be called, with which logits are rounded once

    def single_threaded(self) -> AbstractContextManager[None]:
        """Keep every product inside the block to one thread."""
        return single_threaded_blas()

    def widen(self, array: Array, compute: Any) -> Array:
        """Return the array in the type of the products: itself if it has it."""
        return array.astype(compute, copy=False)

    def store(self, out: Array, values: Array) -> None:
        """Round into the caller's type."""
        out[...] = values

    def multiply(self, a: Array, b: Array, out: Array) -> None:
        """``out = a b``."""
        with np.errstate(over="ignore", invalid="ignore"):  # the numbers say it, and only where rows count
            np.matmul(a, b, out=out)

    def affine(self, a: Array, b: Array, bias: Array, out: Array) -> None:
        """``out = a b + bias``."""
        self.multiply(a, b, out)
        self.add_bias(out, bias)

    def accumulate(self, a: Array, b: Array, out: Array, first: bool) -> None:
        """``out = a b``, or ``out += a b``."""
        with np.errstate(over="ignore", invalid="ignore"):
            if first:
                np.matmul(a, b, out=out)
            else:
                out += a @ b

    def add_bias(self, tile: Array, bias: Array) -> None:
        """``tile += bias``."""
        for row in tile:  # row by row: NumPy broadcasts over a matrix through buffers of its own
            row += bias

    def column_sums(self, tile: Array, out: Array, first: bool) -> None:
        """``out = Σ_i tile_i``, or ``out +=`` it."""
        if first:
            out[...] = tile.sum(axis=0)
        else:
            out += tile.sum(axis=0)


NUMPY = Products()
