"""The linear layer of a tile of rows: ``x Wᵀ + b`` and what comes back.

Few classes make a product of matrices that BLAS spends on packing the rows; the kernels' own takes a few hundred rows
from memory to scores and back while they lie in the cache (csrc/linear.inc.cpp), 1.5 to 2.5 times as fast.  Where the
weights are too many for that cache, or the rows sparse, a tile goes through BLAS or the sparse product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad._core import backend
from softgrad.regression.rows._design import Design, Slot
from softgrad.regression.rows._sparse import HALF, gathered, sparse_times, to_half

Array = NDArray[Any]

LANES = backend.kernels().linear_lanes  # rows of the weights are padded to a multiple
CACHED = 512 << 10  # bytes of float32 weights that stay in the L2 cache
CHUNK_BYTES, CHUNK_ROWS = 192 << 10, 504  # rows that stay there beside them; 504 is a multiple of the kernels' blocks

__all__ = ["NarrowLayer"]


class NarrowLayer:
    """How the rows of a design meet K classes."""

    def __init__(self, design: Design, n_classes: int) -> None:
        self.sparse, self.n_classes, self.n_features = design.sparse, n_classes, design.n_features
        self.halves = design.halves
        self.padded = -(-n_classes // LANES) * LANES
        self.native = not design.sparse and design.n_features >= LANES and 4 * design.n_features * self.padded <= CACHED
        chunk = max(72, min(CHUNK_ROWS, CHUNK_BYTES // (4 * max(1, self.n_features)) // 72 * 72))
        self.chunk = min(chunk, design.tile_rows)  # no tile has more, and thousands of classes make them few

    def parameters(self, weight: Array, bias: Array, dtype: Any, *, rough: bool = False) -> tuple[Array, Array]:
        """Weights (P, K) and bias (K,) as the products want them: padded with zeros for the kernels.

        ``rough``: two digits are enough.
        """
        if self.sparse:
            half = rough and self.halves and np.dtype(dtype) == np.float32
            rows = gathered(self.n_features, self.n_classes, HALF if half else dtype)
            if half:
                to_half(np.ascontiguousarray(weight.T, np.float32), rows[:, : self.n_classes])
            else:
                rows[:, : self.n_classes] = weight.T
            return rows, np.ascontiguousarray(bias, dtype)
        if not self.native:
            return np.ascontiguousarray(weight.T, dtype), np.ascontiguousarray(bias, dtype)
        w, b = np.zeros((self.n_features, self.padded), dtype), np.zeros(self.padded, dtype)
        w[:, : self.n_classes], b[: self.n_classes] = weight.T, bias
        return w, b

    def scores(self, slot: Slot, x: Any, parameters: tuple[Array, Array], out: Array) -> Array:
        """``x Wᵀ + b`` of a tile, into ``out``."""
        weight, bias = parameters
        if self.native:
            self._kernel(slot, x, parameters, into=False).forward(out)
            return out
        if self.sparse:
            sparse_times(x, weight, out)
        else:
            np.matmul(x, weight, out=out)
        if bias.any():
            out += bias
        return out

    def curvature(self, slot: Slot, x: Any, parameters: tuple[Array, Array], prob: Array, row_weight: Any) -> None:
        """Add the Hessian product of a tile to its slot."""
        self._kernel(slot, x, parameters).curvature(prob, row_weight)

    def gradient(
        self,
        slot: Slot,
        x: Any,
        parameters: tuple[Array, Array],
        head: Any,
        z: Array,
        losses: Array,
        prob: Any,
        known: bool,
    ) -> None:
        """Scores z of a tile (unless ``known``), its losses and probabilities, and its gradient added to the slot."""
        head.linear(z, losses, prob, self._kernel(slot, x, parameters), known)

    def _kernel(self, slot: Slot, x: Any, parameters: tuple[Array, Array], *, into: bool = True) -> Any:
        weight, bias = parameters
        dtype = weight.dtype
        if x.strides[1] != x.itemsize or not x.flags.aligned:
            rows = slot.scratch("contiguous", x.shape[0], x.shape[1], x.dtype)
            rows[...] = x
            x = rows
        scratch = total = sums = None
        if into:
            scratch = slot.zeroed("chunk", self.chunk, -(-self.n_classes // 4) * 4, dtype)
            total, sums = slot.totals(dtype)
        return backend.kernels().Linear(x, weight, bias, self.n_classes, scratch, total, sums)
