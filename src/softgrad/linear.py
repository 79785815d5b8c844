"""The linear head: loss and gradients from ``(x, weight, bias)``, without the N×V matrix of logits.

Rows merge by addition: a tile of rows makes its logits, the kernel turns them into ``S − y`` where they lie, and two
products carry it back.  The tiles depend on shapes and on ``max_memory`` alone, and every product runs single-threaded
on a fixed tile, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np
from numpy.typing import ArrayLike

from softgrad import _backend
from softgrad._arrays import FLOAT32, FLOAT64, Array, Rows, fresh, storage_of
from softgrad._core import (
    ByProducts,
    Factors,
    Outcome,
    PredictionStats,
    build_head,
    class_weights,
    reduce,
    refuse_useless,
    row_weights,
    settle,
)
from softgrad._options import LOSS, LossOptions, Options, documented, options_of
from softgrad._products import NUMPY, Products
from softgrad._schedule import row_blocks
from softgrad._targets import Targets, as_targets
from softgrad._threads import resolve_threads, run_blocks

__all__ = ["LinearGradients", "linear_cross_entropy", "linear_cross_entropy_with_grad"]

DEFAULT_MEMORY = 64 << 20
NAMES = ("x", "weight", "bias")
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


class _Inputs(NamedTuple):
    """The arrays of one call, checked and flattened."""

    x: Array  # (N, D)
    weight: Array  # (V, D)
    bias: Array | None
    rows: Rows  # of the logits that are never made
    compute: type[np.floating[Any]]

    @property
    def converts(self) -> bool:
        """Half precision is multiplied in float32, tile by tile."""
        return self.x.dtype != self.compute


def _inputs(x: Any, weight: Any, bias: Any) -> _Inputs:
    x, weight = np.asarray(x), np.asarray(weight)
    if x.dtype.kind in "iu":
        x = x.astype(np.float64 if weight.dtype.kind in "iu" else weight.dtype)
    if weight.dtype.kind in "iu":
        weight = weight.astype(x.dtype)
    storage = storage_of(x.dtype, "x")
    storage_of(weight.dtype, "weight")
    if weight.dtype != x.dtype:
        raise TypeError(f"x has dtype {x.dtype} and weight {weight.dtype}; convert one of them")
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x has shape {x.shape} and weight {weight.shape}; they are (..., D) and (V, D)")
    if weight.shape[0] == 0:
        raise ValueError(f"weight of shape {weight.shape} has no classes")
    if bias is not None:
        bias = np.asarray(bias)
        if bias.dtype.kind in "iu":
            bias = bias.astype(x.dtype)
        if bias.shape != weight.shape[:1] or bias.dtype != x.dtype:
            raise ValueError(
                f"bias has shape {bias.shape} and dtype {bias.dtype}; "
                f"one number a class has {weight.shape[:1]} and {x.dtype}"
            )
    outer, classes = x.shape[:-1], weight.shape[0]
    flat = _contiguous(x.reshape(int(np.prod(outer, dtype=np.int64)), x.shape[-1]))
    compute = np.float64 if storage == FLOAT64 else np.float32
    unseen = np.broadcast_to(np.zeros((1, classes), compute), (len(flat), classes))
    rows = Rows(unseen, FLOAT64 if storage == FLOAT64 else FLOAT32, (*outer, classes), len(outer), np.dtype(compute))
    return _Inputs(flat, _contiguous(weight), bias, rows, compute)


def _contiguous(array: Array) -> Array:
    """Return what a BLAS reads in place, or a copy of it."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned and array.dtype.isnative else fresh(array)


class _Plan(NamedTuple):
    """Sizes of the tiles, from shapes and budget alone."""

    rows: int  # of logits at a time
    cols: int  # of a product over classes
    workers: int  # that may hold a product at a time

    @classmethod
    def of(cls, inputs: _Inputs, max_memory: int | None, max_rows: int | None = None) -> _Plan:
        budget = DEFAULT_MEMORY if max_memory is None else max_memory
        if isinstance(budget, bool) or not hasattr(budget, "__index__"):
            raise TypeError(f"max_memory must be a whole number of bytes or None, not {budget!r}")
        (n, depth), classes = inputs.x.shape, inputs.weight.shape[0]
        size = np.dtype(inputs.compute).itemsize
        product = depth * size * (2 if inputs.converts else 1)  # of one class
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


class _Pass:
    """One walk over the row tiles."""

    def __init__(
        self, inputs: _Inputs, plan: _Plan, grads: LinearGradients, n_threads: int, products: Products
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


def _part(targets: Targets, lo: int, hi: int) -> Targets:
    labels = None if targets.labels is None else targets.labels[lo:hi]
    return targets._replace(labels=labels, values=None if targets.values is None else targets.values[lo:hi])


def _walk(
    inputs: _Inputs,
    targets: Targets,
    options: Options,
    max_memory: int | None,
    n_threads: int,
    grads: LinearGradients,
    stats: PredictionStats | None,
    products: Products = NUMPY,
) -> Outcome:
    """Check the weights of a call, and walk."""
    refuse_useless(targets, options)
    weights = class_weights(options.class_weight, inputs.rows)
    a = row_weights(options.sample_weight, inputs.rows)
    return walk(inputs, targets, options, weights, a, max_memory, n_threads, grads, stats, products)


def walk(
    inputs: _Inputs,
    targets: Targets,
    options: Options,
    weights: Array | None,
    a: Array | None,
    max_memory: int | None,
    n_threads: int,
    grads: LinearGradients,
    stats: PredictionStats | None,
    products: Products,
    max_rows: int | None = None,
) -> Outcome:
    """Every tile of rows: logits, kernel in place, products back.  The weights have been checked."""
    rows = inputs.rows
    plan = _Plan.of(inputs, max_memory, max_rows)
    by_products = ByProducts(stats, rows)
    factors = settle(build_head(rows.array, rows.storage, targets, options, weights, a), rows, targets, options)
    n = len(rows.array)
    losses = np.zeros(n)
    wanted = any(grad is not None for grad in grads)
    if wanted and (factors.void or n == 0):
        for grad in grads:
            if grad is not None:
                grad[...] = 0
        wanted = False
    if (factors.void and stats is None) or n == 0:
        by_products.deliver()
        return Outcome(losses, factors.void)
    step = _Pass(inputs, plan, grads, n_threads, products)
    bias = None if inputs.bias is None else products.widen(inputs.bias, inputs.compute)
    with products.single_threaded():
        for lo in range(0, n, plan.rows):
            hi = min(lo + plan.rows, n)
            x = products.widen(inputs.x[lo:hi], inputs.compute)
            tile = step.logits(x, bias)
            head = build_head(
                tile, rows.storage, _part(targets, lo, hi), options, weights, None if a is None else a[lo:hi]
            )
            _tile_kernel(head, tile, rows.storage, factors, losses[lo:hi], by_products.part(lo, hi), wanted, n_threads)
            if wanted:
                step.back(tile, x, lo)
    by_products.deliver()
    return Outcome(losses, factors.void)


def _tile_kernel(
    head: Any,
    tile: Array,
    storage: int,
    factors: Factors,
    losses: Array,
    by_products: list[Array | None],
    grad: bool,
    n_threads: int,
) -> None:
    """Loss, by-products and ``S − y`` of a tile, over its logits."""
    n, classes = tile.shape
    head.totals()  # the kernels insist on checked labels
    head.set_factors(factors.ce, factors.z)
    results = _backend.kernels().Results(n, classes, storage, losses, *by_products, tile if grad else None, False)
    blocks = row_blocks(n, classes, n_threads)

    def work(i: int) -> None:
        head.rows(results, n * i // blocks, n * (i + 1) // blocks)

    run_blocks(work, blocks, n_threads)


@documented(*LOSS, "max_memory", "stats", "n_threads")
def linear_cross_entropy(
    x: ArrayLike,
    weight: ArrayLike,
    targets: Any,
    *,
    bias: ArrayLike | None = None,
    max_memory: int | None = None,
    stats: PredictionStats | None = None,
    n_threads: int | None = None,
    **options: Unpack[LossOptions],
) -> Any:
    """Cross-entropy of the logits ``o = x Wᵀ + b``, without the N×V array of logits.

    Replaces ``cross_entropy(x @ weight.T + bias, targets)``.

    Parameters
    ----------
    {linear}
    {options}

    Returns
    -------
    float or ndarray
        As `cross_entropy` returns it.

    Raises
    ------
    ValueError
        As `cross_entropy`, for shapes that do not fit, and for a ``max_memory`` too small for one row.
    TypeError
        For dtypes that differ or are not supported, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> import softgrad
    >>> x, weight = np.ones((4, 2)), np.zeros((3, 2))
    >>> softgrad.linear_cross_entropy(x, weight, [0, 1, 2, 0]).round(4)  # log 3
    np.float64(1.0986)

    References
    ----------
    Wijmans et al., "Cut your losses in large-vocabulary language models", 2024, section 4 (never making the logits).
    """
    checked = options_of("linear_cross_entropy", dict(options))
    threads = resolve_threads(n_threads)
    inputs = _inputs(x, weight, bias)
    nothing = LinearGradients(None, None, None)
    outcome = _walk(inputs, as_targets(targets, inputs.rows), checked, max_memory, threads, nothing, stats)
    return reduce(outcome, inputs.rows, checked)


@documented(*LOSS, "max_memory", "stats", "n_threads")
def linear_cross_entropy_with_grad(
    x: ArrayLike,
    weight: ArrayLike,
    targets: Any,
    *,
    bias: ArrayLike | None = None,
    with_respect_to: Sequence[str] = NAMES,
    out: LinearGradients | None = None,
    max_memory: int | None = None,
    stats: PredictionStats | None = None,
    n_threads: int | None = None,
    **options: Unpack[LossOptions],
) -> tuple[Any, LinearGradients]:
    """Cross-entropy of ``o = x Wᵀ + b`` and its gradients ``(S − y) W``, ``(S − y)ᵀ x`` and ``Σ_i (S − y)_i``.

    Replaces ``loss, g = cross_entropy_with_grad(x @ weight.T + bias, targets); g @ weight, g.T @ x, g.sum(0)`` without
    the N×V array.

    Parameters
    ----------
    {linear}
    with_respect_to : sequence of {"x", "weight", "bias"}
        Whose gradients to compute; the others cost nothing and are None.
    out : LinearGradients, optional
        Where the gradients go: C-contiguous arrays of the inputs' shape and dtype, or None for fresh ones.
    {options}

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it.
    gradients : LinearGradients
        Of the inputs' shapes and dtypes; with ``reduction="none"`` those of the sum.  Half precision is multiplied and
        accumulated in float32 and rounded once.

    Raises
    ------
    ValueError
        As `linear_cross_entropy`, and for an unknown name or an ``out`` that does not fit.
    TypeError
        For dtypes that differ or are not supported, or an unknown option.

    Examples
    --------
    >>> import numpy as np
    >>> import softgrad
    >>> x, weight = np.ones((1, 2)), np.zeros((2, 2))
    >>> loss, gradients = softgrad.linear_cross_entropy_with_grad(x, weight, [0])
    >>> gradients.weight
    array([[-0.5, -0.5],
           [ 0.5,  0.5]])

    References
    ----------
    Wijmans et al., "Cut your losses in large-vocabulary language models", 2024, section 4 (never making the logits).
    """
    checked = options_of("linear_cross_entropy_with_grad", dict(options))
    threads = resolve_threads(n_threads)
    inputs = _inputs(x, weight, bias)
    prepared = as_targets(targets, inputs.rows)
    wanted = {with_respect_to} if isinstance(with_respect_to, str) else set(with_respect_to)
    if not wanted <= set(NAMES):
        raise ValueError(f"with_respect_to={tuple(with_respect_to)!r}: choose from {', '.join(NAMES)}")
    results = _results(inputs, np.shape(x), wanted, out)
    accumulators = _accumulators(inputs, results)
    outcome = _walk(inputs, prepared, checked, max_memory, threads, accumulators, stats)
    for total, result in zip(accumulators, results, strict=True):
        if total is not None and result is not None and total.size and not np.may_share_memory(total, result):
            result[...] = total
    return reduce(outcome, inputs.rows, checked), results


def _results(inputs: _Inputs, shape: tuple[int, ...], wanted: set[str], out: LinearGradients | None) -> LinearGradients:
    """The arrays that the caller gets."""
    dtype = inputs.x.dtype
    shapes = {"x": shape, "weight": inputs.weight.shape, "bias": inputs.weight.shape[:1]}
    arrays: list[Array | None] = []
    for name in NAMES:
        given = None if out is None else getattr(out, name)
        if name not in wanted or (name == "bias" and inputs.bias is None):
            arrays.append(None)
            continue
        if given is None:
            arrays.append(np.empty(shapes[name], dtype))
            continue
        if not isinstance(given, np.ndarray) or given.shape != shapes[name] or given.dtype != dtype:
            raise ValueError(f"out.{name} must be an array of shape {shapes[name]} and dtype {dtype}")
        if not (given.flags.c_contiguous and given.flags.writeable):
            raise ValueError(f"out.{name} must be C-contiguous and writable")
        if any(
            a is not None and np.may_share_memory(given, a) for a in (*arrays, inputs.x, inputs.weight, inputs.bias)
        ):
            raise ValueError(f"out.{name} shares memory with an input or with another gradient")
        arrays.append(given)
    return LinearGradients(*arrays)


def _accumulators(inputs: _Inputs, results: LinearGradients) -> LinearGradients:
    """Where the walk adds up: the results themselves, or float32 for half precision."""
    flat = None if results.x is None else results.x.reshape(inputs.x.shape)
    if not inputs.converts:
        return LinearGradients(flat, results.weight, results.bias)
    zeros = [None if r is None else np.empty(r.shape, inputs.compute) for r in (results.weight, results.bias)]
    return LinearGradients(flat, *zeros)
