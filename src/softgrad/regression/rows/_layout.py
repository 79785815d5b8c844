"""Sums and updates of whole (K, P) arrays, class by class for dense rows, feature by feature for sparse ones.

Products with sparse rows gather what all classes have for one feature, so their arrays are the transposes of contiguous
ones.  NumPy's elementwise operations keep that; these two would copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[Any]

__all__ = ["add", "inner"]


def _flat(a: Array, b: Array) -> tuple[Array, Array]:
    """Their numbers in one order, without a copy where both are stored in it."""
    if a.flags.f_contiguous and b.flags.f_contiguous:
        return a.T.ravel(), b.T.ravel()
    return a.ravel(), b.ravel()


def inner(a: Array, b: Array) -> float:
    """Σ a b."""
    return float(np.vdot(*_flat(a, b)))


def add(to: Array, factor: float, a: Array) -> None:
    """Add a multiple of an array to another of its type in place: no third array is written."""
    same = to.flags.c_contiguous and a.flags.c_contiguous
    if to.dtype != a.dtype or not (same or (to.flags.f_contiguous and a.flags.f_contiguous)):
        to += to.dtype.type(factor) * a
        return
    flat, other = _flat(to, a)
    axpy = linalg.blas.saxpy if to.dtype == np.float32 else linalg.blas.daxpy
    axpy(other, flat, a=factor)
