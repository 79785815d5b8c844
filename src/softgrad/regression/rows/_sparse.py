"""Sparse rows: products that gather rows of a dense matrix, and the rows turned, so that both products do.

What a product costs is the cache lines it gathers.  Rows of the dense matrices begin and end where vectors do, and for
Hessian products they are in bfloat16: a row of 32 classes is one line.  Its products are right to two digits and their
errors are not of one sign; CG is ended long before that matters, and Newton's method asks a float32 gradient.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as _sparse

from softgrad._core import backend
from softgrad._core.threads import run_blocks

Array = NDArray[Any]

LINE = 64  # bytes
BLOCKS = 16
SHARE = 1 << 18  # multiplications that are worth the calls of a block: some tenths of a millisecond
HEAVY, HEAVY_BYTES = 128, 32 << 20
HALF = np.dtype(np.uint16)  # the bits of bfloat16, which NumPy does not have

__all__ = ["HALF", "Turned", "gathered", "is_sparse", "longest", "rows_of", "shares", "sparse_times", "to_half"]


def is_sparse(x: Any) -> bool:  # the stub of issparse narrows to a class without its methods
    return bool(_sparse.issparse(x))


def gathered(rows: int, cols: int, dtype: Any) -> Array:
    """Return zeros to gather rows of ``cols`` numbers from, padded so that each begins at an even part of a line."""
    size = np.dtype(dtype).itemsize
    step = 8 if size > 2 else 16 if cols <= 16 else 32
    width = -(-cols // step) * step
    memory = np.zeros(rows * width * size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    whole: Array = memory[start : start + rows * width * size].view(dtype).reshape(rows, width)
    return whole


def shares(stored: int, n_classes: int) -> int:
    """The number of blocks of a product with so many stored numbers."""
    return max(1, min(BLOCKS, stored * n_classes // SHARE))


def to_half(values: Array, to: Array) -> Array:
    """Round float32 to bfloat16."""
    backend.kernels().to_half(values, to)
    return to


def sparse_times(x: Any, dense: Array, out: Array) -> Array:
    """CSR rows times the first columns of a dense matrix of the same type, a wider one, or `HALF` (`gathered`)."""
    backend.kernels().sparse_product(x.data, x.indices, x.indptr, dense, out)
    return out


def rows_of(block: Any, lo: int, hi: int) -> Any:
    """Rows of a CSR matrix without a copy of their numbers."""
    a, b = int(block.indptr[lo]), int(block.indptr[hi])
    parts = (block.data[a:b], block.indices[a:b], block.indptr[lo : hi + 1] - block.indptr[lo])
    return _sparse.csr_array(parts, shape=(hi - lo, block.shape[1]))


def _sums_of_squares(x: Any) -> Array:
    """Of each row of a CSR matrix."""
    sums = np.zeros(x.shape[0])
    some = np.flatnonzero(np.diff(x.indptr))
    if len(some):
        wide = x.data.astype(np.float64)
        sums[some] = np.add.reduceat(wide * wide, x.indptr[some])
    return sums


def longest(x: Any, turned: Turned | None = None) -> float:
    """The largest square of a row's norm; an entry that is stored twice is one number."""
    if not x.has_canonical_format and (turned is None or turned.had_duplicates):
        x = x.copy()
        x.sum_duplicates()
    return float(_sums_of_squares(x).max(initial=0.0))


class Turned:
    """A CSR matrix by features: ``Gᵀ X`` has nothing to add up, and gathers from the smaller of two dense arrays."""

    def __init__(self, x: Any, n_classes: int) -> None:
        self.n_rows, self.n_features = x.shape
        self.n_classes = n_classes
        turned = x.T.tocsr()  # whose rows are sorted
        twice = turned.indices[1:] == turned.indices[:-1]
        twice[np.clip(turned.indptr[1:-1] - 1, 0, max(0, len(twice) - 1))] = False
        self.had_duplicates = bool(twice.any())
        if self.had_duplicates:
            turned.sum_duplicates()
        ends = np.linspace(0, turned.nnz, shares(turned.nnz, n_classes) + 1)
        cuts = np.unique(np.concatenate([[0], np.searchsorted(turned.indptr, ends[1:-1]), [self.n_features]]))
        self.edges = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
        self.squares = _sums_of_squares(turned)
        self._blocks = {turned.dtype: [rows_of(turned, lo, hi) for lo, hi in self.edges]}
        self._whole = turned
        self._waiting: dict[Any, Array] = {}
        self._lock = threading.Lock()

    def _blocks_in(self, dtype: Any) -> list[Any]:
        if dtype not in self._blocks:
            of = self._blocks[self._whole.dtype]
            self._blocks[dtype] = [
                _sparse.csr_array((x.data.astype(dtype), x.indices, x.indptr), shape=x.shape) for x in of
            ]
        return self._blocks[dtype]

    def hold(self, g: Array, at: int, dtype: Any) -> None:
        """Keep a tile of G for `back`, as a type."""
        dtype = np.dtype(dtype)
        with self._lock:  # tiles come from several threads
            if dtype not in self._waiting:
                self._waiting = {dtype: gathered(self.n_rows, self.n_classes, dtype)}
        to = self._waiting[dtype][at : at + len(g), : self.n_classes]
        if dtype == HALF:
            to_half(g, to)
        else:
            to[...] = g

    def back(self, n_threads: int, *, square: bool = False) -> Array:
        """``Gᵀ X`` of the tiles that wait, or ``Gᵀ (X∘X)``, a block of features at a time: (K, P), by features."""
        ((held, g),) = self._waiting.items()
        dtype = np.dtype(np.float32) if held == HALF else held
        blocks = self._blocks_in(min(self._whole.dtype, dtype, key=lambda kind: kind.itemsize))
        out = np.empty((self.n_features, self.n_classes), dtype)

        def work(i: int) -> None:
            (lo, hi), x = self.edges[i], blocks[i]
            if square:
                x = _sparse.csr_array((x.data * x.data, x.indices, x.indptr), shape=x.shape)
            sparse_times(x, g, out[lo:hi])

        run_blocks(work, len(blocks), n_threads)
        return out.T

    def heavy(self) -> tuple[Array, Array]:
        """The features with the largest sums of squares, and these columns, dense in float32."""
        count = max(1, min(HEAVY, self.n_features, HEAVY_BYTES // (4 * max(1, self.n_rows))))
        top = np.sort(np.argsort(-self.squares, kind="stable")[:count])
        columns = np.zeros((self.n_rows, count), np.float32)
        x = self._whole
        for j, feature in enumerate(top):
            part = slice(int(x.indptr[feature]), int(x.indptr[feature + 1]))
            columns[x.indices[part], j] = x.data[part]
        return top, columns
