"""A walk over the row tiles of a linear head: what the front-ends on arrays and on tensors share.

Rows merge by addition: a tile of rows makes its logits, the kernel turns them into ``S − y`` where they lie, and two
products carry it back.  The tiles depend on shapes and on ``max_memory`` alone, and every product runs single-threaded
on a fixed tile, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from softgrad._core import backend
from softgrad._core.arrays import Array, LogitRows, fresh
from softgrad._core.call import ByProducts, Outcome, PredictionStats, build_head, settle
from softgrad._core.options import Options
from softgrad._core.products import Products
from softgrad._core.schedule import row_blocks
from softgrad._core.targets import TargetArrays
from softgrad._core.threads import run_blocks

DEFAULT_MEMORY = 64 << 20
SCRATCH_SHARE = 8  # one part in eight of the memory is for products before they are added up
PRODUCT_BYTES = 1 << 20  # of one product: it is added up while it is in the L2 cache
INPUT_ROWS = 160  # rows of one product G W


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


class LinearInputs(NamedTuple):
    """The arrays of one call, checked and flattened."""

    x: Array  # (N, D)
    weight: Array  # (V, D)
    bias: Array | None
    rows: LogitRows  # of the logits that are never made
    compute: type[np.floating[Any]]

    @property
    def converts(self) -> bool:
        """Half precision is multiplied in float32, tile by tile."""
        return self.x.dtype != self.compute


def contiguous(array: Array) -> Array:
    """Return what a BLAS reads in place, or a copy of it."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned and array.dtype.isnative else fresh(array)


class TilePlan(NamedTuple):
    """Sizes of the tiles, from shapes and budget alone."""

    rows: int  # of logits at a time
    cols: int  # of a product over classes
    workers: int  # that may hold a product at a time

    @classmethod
    def of(cls, inputs: LinearInputs, max_memory: int | None, max_rows: int | None = None) -> TilePlan:
        budget = DEFAULT_MEMORY if max_memory is None else max_memory
        if isinstance(budget, bool) or not hasattr(budget, "__index__"):
            raise TypeError(f"max_memory must be a whole number of bytes or None, not {budget!r}")
        (n, depth), classes = inputs.x.shape, inputs.weight.shape[0]
        size = np.dtype(inputs.compute).itemsize
        product = max(1, depth) * size * (2 if inputs.converts else 1)  # of one class
        cols = max(1, min(classes, PRODUCT_BYTES // max(1, product), budget // SCRATCH_SHARE // max(1, product)))
        scratch = max(cols * product, budget // SCRATCH_SHARE)
        row = classes * size + (depth * size if inputs.converts else 0)
        if budget < scratch + row:
            raise ValueError(
                f"max_memory={budget} is not enough: one row of {classes} logits needs {scratch + row} bytes"
            )
        rows = max(1, min(n, (budget - scratch) // row, n if max_rows is None else max_rows))
        rows = -(-n // -(-n // rows)) if n else 1  # tiles of equal size
        return cls(rows, cols, max(1, scratch // (cols * product)))


class TilePass:
    """One walk over the row tiles."""

    def __init__(
        self, inputs: LinearInputs, plan: TilePlan, grads: LinearGradients, n_threads: int, products: Products
    ) -> None:
        self.inputs, self.plan, self.grads, self.n_threads = inputs, plan, grads, n_threads
        self.products = products
        classes = inputs.weight.shape[0]
        self.tile = np.empty((plan.rows, classes), inputs.compute)
        self.edges = [(c, min(c + plan.cols, classes)) for c in range(0, classes, plan.cols)]

    def _weight(self, lo: int, hi: int) -> Array:
        return self.products.widen(self.inputs.weight[lo:hi], self.inputs.compute)

    def _run(self, work: Any, count: int, *, scratch: bool = False) -> None:
        run_blocks(work, count, min(self.n_threads, self.plan.workers) if scratch else self.n_threads)

    def logits(self, x: Array, bias: Array | None) -> Array:
        """Logits of a tile of rows."""
        tile = self.tile[: len(x)]

        def work(i: int) -> None:
            lo, hi = self.edges[i]
            if bias is not None and self.products.adds_bias:
                self.products.affine(x, self._weight(lo, hi).T, bias[lo:hi], tile[:, lo:hi])
            else:
                self.products.multiply(x, self._weight(lo, hi).T, tile[:, lo:hi])

        self._run(work, len(self.edges), scratch=self.inputs.converts)
        if bias is not None and not self.products.adds_bias:
            self.add_bias(tile, bias)
        return tile

    def add_bias(self, tile: Array, bias: Array) -> None:
        """Complete the logits of a tile."""
        n = len(tile)
        blocks = row_blocks(n, tile.shape[1], self.n_threads)

        def work(i: int) -> None:
            self.products.add_bias(tile[n * i // blocks : n * (i + 1) // blocks], bias)

        run_blocks(work, blocks, self.n_threads)

    def back(self, g: Array, x: Array, first: int) -> None:
        """Carry ``G`` of a tile of rows back into the gradients that are wanted."""
        if self.grads.x is not None:
            self._back_to_x(g, first)
        if self.grads.weight is not None or self.grads.bias is not None:
            self._back_to_weight(g, x, first == 0)

    def _back_to_x(self, g: Array, first: int) -> None:
        to = self.grads.x
        blocks = -(-len(g) // INPUT_ROWS)
        edges = [(len(g) * i // blocks, len(g) * (i + 1) // blocks) for i in range(blocks)]

        def work(i: int) -> None:
            lo, hi = edges[i]
            part = to[first + lo : first + hi]  # type: ignore[index]
            if not self.inputs.converts:
                self.products.multiply(g[lo:hi], self.inputs.weight, part)
                return
            total = np.empty(part.shape, self.inputs.compute)
            for c, d in self.edges:
                self.products.accumulate(g[lo:hi, c:d], self._weight(c, d), total, first=c == 0)
            self.products.store(part, total)

        self._run(work, blocks, scratch=self.inputs.converts)

    def _back_to_weight(self, g: Array, x: Array, fresh: bool) -> None:
        weight, bias = self.grads.weight, self.grads.bias

        def work(i: int) -> None:
            lo, hi = self.edges[i]
            part = g[:, lo:hi]
            if weight is not None:
                self.products.accumulate(part.T, x, weight[lo:hi], fresh)
            if bias is not None:
                self.products.column_sums(part, bias[lo:hi], fresh)

        self._run(work, len(self.edges), scratch=True)


def walk(
    inputs: LinearInputs,
    targets: TargetArrays,
    options: Options,
    weights: Array | None,
    a: Array | None,
    max_memory: int | None,
    n_threads: int,
    grads: LinearGradients,
    stats: PredictionStats | None,
    products: Products,
    max_rows: int | None = None,
    name: str = "targets",
) -> Outcome:
    """Walk over the tiles of rows: logits, the kernel in place, products back.

    ``name`` is the user's name of the targets.
    """
    rows = inputs.rows
    plan = TilePlan.of(inputs, max_memory, max_rows)
    by_products = ByProducts(stats, rows)
    record = options.record()
    settled = settle(build_head(rows.array, rows.storage, targets, record, weights, a), rows, targets, options, name)
    n = len(rows.array)
    losses = np.zeros(n)
    wanted = any(grad is not None for grad in grads)
    if wanted and (settled.empty_mean or n == 0):
        for grad in grads:
            if grad is not None:
                grad[...] = 0
        wanted = False
    if (settled.empty_mean and stats is None) or n == 0:
        by_products.deliver()
        return Outcome(losses, settled.empty_mean)
    step = TilePass(inputs, plan, grads, n_threads, products)
    bias = None if inputs.bias is None else products.widen(inputs.bias, inputs.compute)
    with products.single_threaded():
        for lo in range(0, n, plan.rows):
            hi = min(lo + plan.rows, n)
            x = products.widen(inputs.x[lo:hi], inputs.compute)
            tile = step.logits(x, bias)
            head = build_head(
                tile, rows.storage, targets.part(lo, hi), record, weights, None if a is None else a[lo:hi]
            )
            head.set_factors(settled.ce_factor, settled.z_factor)
            _tile_kernel(head, tile, rows.storage, losses[lo:hi], by_products.part(lo, hi), wanted, n_threads)
            if wanted:
                step.back(tile, x, lo)
    by_products.deliver()
    return Outcome(losses, settled.empty_mean)


def _tile_kernel(
    head: Any,
    tile: Array,
    storage: Any,
    losses: Array,
    by_products: list[Array | None],
    grad: bool,
    n_threads: int,
) -> None:
    """Loss, by-products and ``S − y`` of a tile, over its logits."""
    n, classes = tile.shape
    outputs = backend.kernels().Outputs(n, classes, storage, losses, *by_products, tile if grad else None)
    blocks = row_blocks(n, classes, n_threads)

    def work(i: int) -> None:
        head.rows(outputs, n * i // blocks, n * (i + 1) // blocks)

    run_blocks(work, blocks, n_threads)
