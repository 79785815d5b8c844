"""Tiles of a linear head's logits: the matrix products that make them, and those that carry their gradient back.

Rows merge by addition: a tile of rows makes its logits, a kernel turns them into ``∂L/∂o`` where
they lie, and two products carry it back.  Where not even two rows of logits fit into the budget, a
tile holds a window of their columns, and statistics merge by log-sum-exp.  Tiles depend on shapes
and ``max_memory`` alone, and every product runs single-threaded on a fixed block, so the bits do not
depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from softgrad._core import backend
from softgrad._core.arrays import Array, fresh
from softgrad._core.backend import TargetKind
from softgrad._core.products import Products
from softgrad._core.schedule import row_blocks, run_rows
from softgrad._core.targets import TargetArrays
from softgrad._core.threads import run_blocks

DEFAULT_MEMORY = 64 << 20
SCRATCH_SHARE = 8  # one part in eight of the memory is for products before they are added up
PRODUCT_BYTES = 1 << 20  # of one product: it is added up while it is in the L2 cache
INPUT_ROWS = 160  # rows of one product G W
LEAST_ROWS = 2  # whole rows of logits per tile, below which windows of columns are faster
WINDOW_ROWS = 256  # most rows of a window: a few rows would read the whole weight for little work


class LinearGradients(NamedTuple):
    """Gradients of the linear head's loss; None for what was not asked for.

    Attributes
    ----------
    x : ndarray of shape (..., D) or None
        ``G W`` with ``G = ∂L/∂o``.
    weight : ndarray of shape (V, D) or None
        ``Gᵀ x``.
    bias : ndarray of shape (V,) or None
        ``Σ_i G_i``.
    """

    x: Array | None
    weight: Array | None
    bias: Array | None


class LayerArrays(NamedTuple):
    """Validated and flattened arrays of a linear layer."""

    x: Array  # (N, D)
    weight: Array  # (V, D)
    bias: Array | None
    compute: Any  # dtype of the logits

    @property
    def converts(self) -> bool:
        """Half precision is multiplied in float32, tile by tile."""
        return bool(self.x.dtype != self.compute)


def contiguous(array: Array) -> Array:
    """Return an array that a BLAS reads in place: itself or a copy."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned and array.dtype.isnative else fresh(array)


def checked_memory(max_memory: Any) -> int:
    """Return the bytes that tiles may take."""
    if max_memory is None:
        return DEFAULT_MEMORY
    if isinstance(max_memory, bool) or not hasattr(max_memory, "__index__"):
        raise TypeError(f"max_memory must be a whole number of bytes or None, not {max_memory!r}")
    return int(max_memory)


class TileSizes(NamedTuple):
    """Sizes of the tiles, from shapes and budget alone."""

    rows: int  # of logits at a time
    cols: int  # of logits at a time
    block: int  # classes of one product
    workers: int  # that may hold a product at a time

    @classmethod
    def of(
        cls, n: int, depth: int, classes: int, item: int, converts: bool, max_memory: Any = None,
        max_rows: int | None = None, windows: bool = False,
    ) -> TileSizes:  # fmt: skip
        """Choose sizes for (N, D) inputs and V classes of ``item`` bytes; ``windows`` allows tiles of some columns."""
        budget = checked_memory(max_memory)
        classes, depth = max(1, classes), max(1, depth)
        product = depth * item * (2 if converts else 1)  # of one class
        block = max(1, min(classes, PRODUCT_BYTES // product, budget // SCRATCH_SHARE // product))
        scratch = max(block * product, budget // SCRATCH_SHARE)
        extra = depth * item if converts or windows else 0
        row = classes * item + extra
        workers = max(1, scratch // (block * product))
        if windows and budget - scratch < row * min(LEAST_ROWS, max(1, n)):
            elements = max(1, (budget - scratch) // item)
            rows = max(1, min(n, WINDOW_ROWS, elements // (depth + block)))
            rows = -(-n // -(-n // rows)) if n else 1
            cols = max(1, min(classes, (elements - rows * depth) // rows))
            return cls(rows, max(block, cols // block * block), block, workers)
        if budget < scratch + row:
            raise ValueError(
                f"max_memory={budget} is not enough: one row of {classes} logits needs {scratch + row} bytes"
            )
        rows = max(1, min(n, (budget - scratch) // row, n if max_rows is None else max_rows))
        return cls(-(-n // -(-n // rows)) if n else 1, classes, block, workers)


class HeadTiles:
    """Products of a linear head, tile by tile.

    Attributes
    ----------
    layer : LayerArrays
    sizes : TileSizes
    n_threads : int
    products : Products
    tile : ndarray
        Memory of one tile of logits, which its gradient overwrites.
    rows, windows : list of (int, int)
        Edges of the tiles: rows, and windows of columns.

    For each tile call `inputs`, `logits`, then `add_to_x` and `add_to_weight` with the gradient, all inside
    ``products.single_threaded()``.
    """

    def __init__(self, layer: LayerArrays, sizes: TileSizes, n_threads: int, products: Products) -> None:
        self.layer, self.sizes, self.n_threads, self.products = layer, sizes, n_threads, products
        n, classes = len(layer.x), len(layer.weight)
        self.tile = np.empty(sizes.rows * min(sizes.cols, max(1, classes)), layer.compute)
        self.rows = edges(0, n, sizes.rows)
        self.windows = edges(0, classes, sizes.cols) or [(0, 0)]
        self.bias = None if layer.bias is None else products.widen(layer.bias, layer.compute)

    def inputs(self, lo: int, hi: int) -> Array:
        """Return a tile of inputs in the type of the products."""
        return self.products.widen(self.layer.x[lo:hi], self.layer.compute)

    def view(self, n: int, window: tuple[int, int]) -> Array:
        """Return the tile's memory for ``n`` rows of a window."""
        width = window[1] - window[0]
        return self.tile[: n * width].reshape(n, width)

    def _weight(self, lo: int, hi: int) -> Array:
        return self.products.widen(self.layer.weight[lo:hi], self.layer.compute)

    def _run(self, work: Callable[[int], Any], count: int, *, scratch: bool = False) -> None:
        run_blocks(work, count, min(self.n_threads, self.sizes.workers) if scratch else self.n_threads)

    def logits(self, x: Array, window: tuple[int, int]) -> Array:
        """Return logits of a tile of inputs: ``x Wᵀ + b`` of the window's classes."""
        tile, first = self.view(len(x), window), window[0]
        blocks = edges(*window, self.sizes.block)
        bias = self.bias

        def work(i: int) -> None:
            lo, hi = blocks[i]
            to = tile[:, lo - first : hi - first]
            if bias is not None and self.products.adds_bias:
                self.products.affine(x, self._weight(lo, hi).T, bias[lo:hi], to)
            else:
                self.products.multiply(x, self._weight(lo, hi).T, to)

        self._run(work, len(blocks), scratch=self.layer.converts)
        if bias is not None and not self.products.adds_bias:
            parts = row_blocks(len(x), tile.shape[1], self.n_threads)

            def add(i: int) -> None:
                part = tile[len(x) * i // parts : len(x) * (i + 1) // parts]
                self.products.add_bias(part, bias[slice(*window)])

            self._run(add, parts)
        return tile

    def add_to_x(self, g: Array, window: tuple[int, int], to: Array, first: bool) -> None:
        """``to = G W`` of a tile, or ``to +=`` it; sums of half precision need a wider ``to``."""
        parts = -(-len(g) // INPUT_ROWS)
        blocks = edges(*window, self.sizes.block)
        rounds = self.layer.converts and to.dtype == self.layer.x.dtype  # half precision adds up in float32

        def work(i: int) -> None:
            part = slice(len(g) * i // parts, len(g) * (i + 1) // parts)
            if not self.layer.converts:
                weight = self.layer.weight[slice(*window)]
                if first and to.dtype == self.layer.x.dtype:
                    self.products.multiply(g[part], weight, to[part])
                else:
                    self.products.accumulate(g[part], weight, to[part], first)
                return
            total = np.empty(to[part].shape, self.layer.compute) if rounds else to[part]
            for lo, hi in blocks:
                columns = slice(lo - window[0], hi - window[0])
                fresh_sum = lo == window[0] and first
                self.products.accumulate(g[part, columns], self._weight(lo, hi), total, fresh_sum)
            if rounds:
                self.products.store(to[part], total)

        if blocks:
            self._run(work, parts, scratch=self.layer.converts)
        elif first:
            to[...] = 0

    def add_to_weight(
        self, g: Array, x: Array, window: tuple[int, int], weight: Array | None, bias: Array | None, first: bool
    ) -> None:
        """``weight = Gᵀ x`` and ``bias = Σ_i G_i`` of a window's classes, or ``+=`` them."""
        if weight is None and bias is None:
            return
        blocks = edges(*window, self.sizes.block)

        def work(i: int) -> None:
            lo, hi = blocks[i]
            part = g[:, lo - window[0] : hi - window[0]]
            if weight is not None:
                self.products.accumulate(part.T, x, weight[lo:hi], first)
            if bias is not None:
                self.products.column_sums(part, bias[lo:hi], first)

        self._run(work, len(blocks), scratch=True)


def edges(lo: int, hi: int, step: int) -> list[tuple[int, int]]:
    """Return the edges of consecutive ranges of ``step``."""
    return [(i, min(i + step, hi)) for i in range(lo, hi, step)]


class HeadParts(NamedTuple):
    """Validated parts of a batch of logits that are made tile by tile."""

    storage: Any  # of a tile
    targets: TargetArrays
    options: Any  # the kernels' record
    class_weight: Array | None
    row_weight: Array | None
    first: int = 0  # of this slice of the classes
    classes: int = 0  # of all slices; 0: the slice is the whole

    def head(self, logits: Array, rows: tuple[int, int], window: tuple[int, int]) -> Any:
        """Build the kernels' view of one tile."""
        targets = self.targets.part(*rows)
        if targets.kind is TargetKind.dense and targets.values is not None:
            targets = targets._replace(values=targets.values[:, slice(*window)])
        whole = (0, self.classes) == window
        record = targets.record() if whole else targets.record(self.first + window[0], self.classes)
        weight = None if self.class_weight is None else self.class_weight[slice(*window)]
        row_weight = None if self.row_weight is None else self.row_weight[slice(*rows)]
        return backend.kernels().Head(logits, self.storage, record, self.options, weight, row_weight)


def loss_and_gradients(
    tiles: HeadTiles,
    parts: HeadParts,
    mean: bool,
    grads: LinearGradients,
    label_error: Callable[[int], Exception],
    by_products: list[Array | None] | None = None,
) -> tuple[Array, bool]:
    """Compute row losses and gradients in one walk over whole rows: three products for a tile.

    Returns the losses, factors applied, and whether a mean has a total weight of 0.  ``by_products`` are
    vectors for the fields of `PredictionStats`; ``label_error(row)`` makes the error for the first
    invalid label.
    """
    n, classes = len(tiles.layer.x), len(tiles.layer.weight)
    # The mean's factors come from targets and weights alone: one row of stride 0 stands for all logits.
    unseen = np.broadcast_to(tiles.tile[:classes], (n, classes))
    settled = parts.head(unseen, (0, n), (0, classes)).settle(mean)
    if settled.bad_row >= 0:
        raise label_error(settled.bad_row)
    losses = np.zeros(n)
    wanted = any(grad is not None for grad in grads)
    if wanted and (settled.empty_mean or n == 0):
        for grad in grads:
            if grad is not None:
                grad[...] = 0
        wanted = False
    if n == 0 or (settled.empty_mean and by_products is None):
        return losses, settled.empty_mean
    window = (0, classes)
    with tiles.products.single_threaded():
        for rows in tiles.rows:
            part, count = slice(*rows), rows[1] - rows[0]
            x = tiles.inputs(*rows)
            logits = tiles.logits(x, window)
            head = parts.head(logits, rows, window)
            if head.settle(False).bad_row >= 0:
                raise label_error(rows[0])
            head.set_factors(settled.ce_factor, settled.z_factor)
            vectors = [None if v is None else v[part] for v in by_products or ()]
            outputs = backend.kernels().Outputs(
                count, classes, parts.storage, losses[part], *vectors, grad=logits if wanted else None
            )
            run_rows(lambda lo, hi: head.rows(outputs, lo, hi), count, classes, tiles.n_threads)  # noqa: B023
            if wanted:
                if grads.x is not None:
                    tiles.add_to_x(logits, window, grads.x[part], True)
                tiles.add_to_weight(logits, x, window, grads.weight, grads.bias, rows[0] == 0)
    return losses, settled.empty_mean
