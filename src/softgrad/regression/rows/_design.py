"""The rows of X as tiles: in memory, dense or sparse, or read block by block.

Tiles and the groups of tiles that are added up together depend on shapes alone, never on the number of threads, so the
bits of a sum over rows do not either.  Products run single-threaded on a tile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad._core.threads import run_blocks
from softgrad.regression.rows._sources import RowBlocks
from softgrad.regression.rows._sparse import HALF, Turned, is_sparse, longest, rows_of, shares

Array = NDArray[Any]

TILE_BYTES = 1 << 20  # of X in float32: with its scores it stays in the L2 cache between the two products
MOST_GROUPS = 16
GROUP_BYTES = 160 << 20  # of what all groups hold together
TURNED_BYTES = 64 << 20  # of the float64 (N, K) array that turned rows gather from

__all__ = ["Design", "Slot", "reduce_slots"]


class Slot:
    """What one group of tiles adds up, and the scratch of whoever computes it."""

    def __init__(self, design: Design, n_classes: int) -> None:
        self.design = design
        self.shape = (design.n_features, n_classes) if design.sparse else (n_classes, design.n_features)
        self.gradient: Array | None = None
        self.bias: Array | None = None
        self.mean: Array | None = None
        self.hessian: Array | None = None
        self.grams: Any = None
        self.level: Any = None
        self.scalars = np.zeros(4)
        self.n_classes = n_classes
        self._scratch: dict[tuple[str, Any], Array] = {}

    def scratch(self, name: str, rows: int, cols: int, dtype: Any) -> Array:
        """An uninitialised (rows, cols) array, the same memory each time."""
        key = (name, np.dtype(dtype))
        held = self._scratch.get(key)
        if held is None or held.size < rows * cols:
            held = self._scratch[key] = np.empty(rows * cols, dtype)
        return held[: rows * cols].reshape(rows, cols)

    def zeroed(self, name: str, rows: int, cols: int, dtype: Any) -> Array:
        """An array of zeros, of which whoever writes into it keeps the rest."""
        key = (name, np.dtype(dtype))
        if key not in self._scratch:
            self._scratch[key] = np.zeros((rows, cols), dtype)
        return self._scratch[key]

    def totals(self, dtype: Any) -> tuple[Array, Array]:
        """The sums so far, (K, P) in a type and (K,) in float64, to be added to in place."""
        if self.gradient is None or self.bias is None:
            self.gradient = self.scratch("total", self.shape[0], self.shape[1], dtype)
            self.gradient[...] = 0
            self.bias = np.zeros(self.n_classes)
        return self.gradient, self.bias

    def add(self, x: Any, g: Array, total: Any, at: int | None = None, *, rough: bool = False) -> None:
        """Add ``Gᵀ x`` and the column sums of G of one tile; ``at``: its first row, where G may wait for the others.

        ``rough``: two digits are enough.
        """
        if at is not None and self.design.turns:
            half = rough and self.design.halves and g.dtype == np.float32
            self.design.turned().hold(g, at, HALF if half else g.dtype)
            sums = np.ones(len(g), g.dtype) @ g
            self.bias = sums.astype(total) if self.bias is None else self.bias + sums
            return
        if is_sparse(x):
            part = x.T @ g
        else:
            to = self.scratch("part", self.shape[0], self.shape[1], g.dtype)
            part = np.matmul(g.T, x, out=to)
        sums = np.ones(len(g), g.dtype) @ g
        if self.gradient is None or self.bias is None:
            self.gradient, self.bias = np.array(part, total), sums.astype(total)
        else:
            self.gradient += part
            self.bias += sums


class Design:
    """X behind one interface.

    Parameters
    ----------
    x : array (N, P), CSR matrix, or RowBlocks
        The rows.
    n_classes : int
        Width of the scores, which bounds the tiles.
    shift : array (P,), optional
        Subtracted from each row, in float64, as its tile is made: all that is computed here is of the shifted rows. Of
        sparse rows only features that every row stores may have one.
    scale : array (P,), optional
        Multiplies what is left.

    Sparse rows in memory are shifted and scaled once, as a copy; those of a stream as they are read.
    """

    def __init__(
        self,
        x: Any,
        n_classes: int,
        shift: NDArray[np.float64] | None = None,
        scale: NDArray[np.float64] | None = None,
    ) -> None:
        if scale is not None and shift is None:
            shift = np.zeros_like(scale)
        self.shift, self.scale = shift, scale
        self.stream = isinstance(x, RowBlocks)
        self.sparse = bool(is_sparse(next(iter(x)) if self.stream else x))
        self.x = self.transformed(x) if self.sparse and not self.stream else x
        self.n_rows, self.n_features = (x.n_rows, x.n_features) if self.stream else x.shape
        self.dtype = np.dtype(x.dtype)
        self.n_classes = n_classes
        self.in_memory = not self.stream and not _is_mapped(x)
        width = max(1, self.n_features, n_classes)
        self.tile_rows = max(16, min(4096, TILE_BYTES // (4 * width)))
        self._tiles: dict[Any, list[Any]] = {}
        # Sparse rows in memory are also kept turned: a product by features has nothing to add up, and gathers from the
        # smaller of the two dense arrays.
        self.turns = self.sparse and not self.stream and 8 * self.n_rows * n_classes <= TURNED_BYTES
        # A sum and a part of it in float64; of a tile two arrays of scores in each type, and two more in float32.
        held = 16 * self.n_features * n_classes * (not self.turns) + 32 * self.tile_rows * n_classes
        self.most_groups = max(1, min(MOST_GROUPS, GROUP_BYTES // held))
        self.halves = self.turns and x.indices.itemsize == 4  # whether rough products gather from bfloat16
        self._turned: Turned | None = None
        self._lock = threading.Lock()
        self._single: Array | None = None
        self._reach: float | None = None
        self._column_reach: Array | None = None
        self._heavy: tuple[Array, Array] | None = None
        if self.sparse and not self.stream:
            groups = max(1, min(shares(x.nnz, n_classes), self.most_groups))
            self.tile_rows = max(1, min(-(-self.n_rows // groups), max(64, (8 << 20) // (4 * n_classes))))

    def edges(self, rows: int) -> list[tuple[int, int]]:
        """The tiles of so many rows, of equal size."""
        count = max(1, -(-rows // self.tile_rows))
        return [(rows * i // count, rows * (i + 1) // count) for i in range(count)]

    def _blocks(self) -> Iterator[tuple[int, Any]]:
        """Yield the first row and the rows of each block; sparse ones transformed, dense ones as they are."""
        if not self.stream:
            yield 0, self.x
            return
        first = 0
        for block in self.x:
            yield first, self.transformed(block) if self.sparse else block
            first += block.shape[0]

    def _tile(self, block: Any, lo: int, hi: int, dtype: Any, slot: Slot, stored: bool) -> Any:
        if self.shift is not None and not self.sparse:
            if dtype == np.float32 and block is self.x and self.in_memory and block.dtype == np.float64:
                return self.single()[lo:hi]
            tile = slot.scratch("x", hi - lo, self.n_features, dtype)
            np.subtract(block[lo:hi], self.shift, out=tile, casting="unsafe")
            return tile if self.scale is None else np.multiply(tile, self.scale, out=tile, casting="unsafe")
        narrow = stored and block.dtype.itemsize < np.dtype(dtype).itemsize
        if self.sparse or is_sparse(block):
            part = rows_of(block, lo, hi)
            return part if narrow or part.dtype == dtype else part.astype(dtype)
        if narrow:
            return block[lo:hi]
        if block.dtype == dtype:
            return block[lo:hi]
        if dtype == np.float32 and block is self.x and self.in_memory:
            return self.single()[lo:hi]
        tile = slot.scratch("x", hi - lo, self.n_features, dtype)
        tile[...] = block[lo:hi]
        return tile

    def walk(
        self,
        work: Callable[[Slot, int, int, Any], None],
        dtype: Any,
        n_threads: int,
        slots: list[Slot] | None = None,
        *,
        stored: bool = False,
    ) -> list[Slot]:
        """Call ``work(slot, lo, hi, x)`` for every tile of rows; slots are those of the groups, in order.

        ``stored``: rows of a smaller type than ``dtype`` come as they are; sparse ones always do.
        """
        stored = stored or self.sparse
        slots = [] if slots is None else slots
        for slot in slots:
            slot.gradient = slot.bias = None
            slot.scalars[...] = 0
        for first, block in self._blocks():
            tiles = self.edges(block.shape[0])
            groups = min(len(tiles), self.most_groups)
            while len(slots) < groups:
                slots.append(Slot(self, self.n_classes))

            parts = [tiles[len(tiles) * j // groups : len(tiles) * (j + 1) // groups] for j in range(groups)]
            run_blocks(partial(self._group, work, slots, parts, first, block, dtype, stored), groups, n_threads)
        return slots

    def _group(
        self, work: Any, slots: list[Slot], parts: Any, first: int, block: Any, dtype: Any, stored: bool, j: int
    ) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by whoever adds it up
            for lo, hi in parts[j]:
                work(slots[j], first + lo, first + hi, self._held(block, lo, hi, dtype, slots[j], stored))

    def _held(self, block: Any, lo: int, hi: int, dtype: Any, slot: Slot, stored: bool) -> Any:
        if not self.sparse or self.stream:
            return self._tile(block, lo, hi, dtype, slot, stored)
        dtype = self._kept_as(dtype)
        tiles = self._tiles.setdefault(dtype, [])  # slicing a sparse matrix copies it: once
        for start, tile in tiles:
            if start == lo:
                return tile
        tile = self._tile(block, lo, hi, dtype, slot, False)
        tiles.append((lo, tile))
        return tile

    def _kept_as(self, dtype: Any) -> Any:
        """The type in which sparse rows are kept for products in another."""
        return min(self.dtype, np.dtype(dtype), key=lambda kind: kind.itemsize)

    def single(self) -> Array:
        """Return dense float64 rows in memory as float32, for the products that need no more."""
        with self._lock:
            if self._single is None:
                single = np.empty(self.x.shape, np.float32)
                with np.errstate(over="ignore"):
                    for lo, hi in self.edges(self.n_rows):
                        single[lo:hi] = self.transformed(self.x[lo:hi])
                self._single = single
            return self._single

    def transformed(self, rows: Any) -> Any:
        """Return rows of X, shifted and scaled, sparse ones in their type."""
        if self.shift is None:
            return rows
        if not is_sparse(rows):
            return rows - self.shift if self.scale is None else (rows - self.shift) * self.scale
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        stored = rows.data - self.shift[rows.indices]
        if self.scale is not None:
            stored *= self.scale[rows.indices]
        return type(rows)((stored.astype(rows.dtype), rows.indices, rows.indptr), shape=rows.shape)

    def _dense(self, rows: Any, dtype: Any) -> Array:
        """Return rows of a block of `_blocks` as an array."""
        with np.errstate(over="ignore"):  # float32 preconditioners judge the result by its value
            return np.asarray(rows.toarray() if is_sparse(rows) else self.transformed(rows), dtype=dtype)

    def turned(self) -> Turned:
        """Sparse rows in memory by features."""
        with self._lock:  # tiles ask for it from several threads
            if self._turned is None:
                self._turned = Turned(self.x, self.n_classes)
            return self._turned

    def heavy(self) -> tuple[Array, Array]:
        """The features of sparse rows with the largest sums of squares, and these columns, dense in float32."""
        if self._heavy is None:
            self._heavy = (self.turned() if self.turns else Turned(self.x, self.n_classes)).heavy()
        return self._heavy

    @property
    def stored(self) -> int:
        """The numbers of sparse rows that are stored."""
        return int(self.x.nnz)

    def zeros(self, k: int) -> Array:
        """Zeros (K, P), stored as products with the rows want them."""
        return np.zeros((k, self.n_features), order="F" if self.turns else "C")

    def reach(self) -> float | None:
        """No row is longer; None where finding out would read a file."""
        if not self.in_memory:
            return None
        if self._reach is None:
            if self.sparse:
                square = longest(self.x, self.turned() if self.turns else None)
            else:
                square = float((self.column_reach() ** 2).sum())
            self._reach = float(np.sqrt(square)) * (1 + 1e-9)
        return self._reach

    def column_reach(self) -> Array:
        """Return the largest absolute value of each feature (P,), in float64; reads X once."""
        if self._column_reach is None:
            most = np.zeros(self.n_features)
            for _, block in self._blocks():
                for lo, hi in [(0, block.shape[0])] if self.sparse else self.edges(block.shape[0]):
                    part = abs(block if self.sparse else self.transformed(block[lo:hi])).max(axis=0)
                    np.maximum(most, part.toarray().ravel() if is_sparse(part) else part, out=most)
            self._column_reach = most
        return self._column_reach

    def rows(self, index: Array, dtype: Any) -> Array:
        """Some rows, dense, in memory: a sample."""
        if not self.stream:
            return self._dense(self.x[index], dtype)
        parts = []
        for first, block in self._blocks():
            inside = index[(index >= first) & (index < first + block.shape[0])] - first
            if len(inside):
                parts.append(self._dense(block[inside], dtype))
        return np.concatenate(parts)


def _is_mapped(x: Any) -> bool:
    """Whether an array lies in a file: a copy would bring it into memory."""
    while x is not None:
        if isinstance(x, np.memmap):
            return True
        x = getattr(x, "base", None)
    return False


def reduce_slots(
    slots: list[Slot], design: Design, n_threads: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add up the groups in their order: (K, P) and (K,) in float64; what waited is in the type of the tiles."""
    bias = np.zeros(slots[0].n_classes)
    for slot in slots:
        if slot.bias is not None:
            bias += slot.bias
    if design.turns and all(slot.gradient is None for slot in slots):
        return design.turned().back(n_threads), bias
    total = np.zeros(slots[0].shape)
    for slot in slots:
        if slot.gradient is not None:
            total += slot.gradient
    return (np.ascontiguousarray(total.T) if design.sparse else total), bias
