"""One call of the head: from checked arrays and options to the loss, its by-products and its gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from softgrad._core import backend
from softgrad._core.arrays import Array, LogitRows, check_writable
from softgrad._core.backend import TargetKind
from softgrad._core.options import Options
from softgrad._core.schedule import run_head, streams
from softgrad._core.targets import TargetArrays, label_error
from softgrad._core.weights import class_weights, row_weights


class PredictionStats(NamedTuple):
    """By-products of a row, one entry a row.

    Attributes
    ----------
    lse : ndarray of float
        Log-sum-exp of the transformed logits ``u``.
    log_prob : ndarray of float
        Log-probability of the target, ``log S_y``; ``Σ_j y_j log S_j`` for soft targets; NaN without targets.
    argmax : ndarray of int64
        The most probable class, the first of ties.
    rank : ndarray of int64
        How many classes have a strictly larger logit than the label: 0 is a correct prediction; −1 without labels.
    entropy : ndarray of float
        ``−Σ_j S_j log S_j`` in nats.

    Notes
    -----
    Rows that are ignored, and rows without a softmax (all −inf, +inf or NaN among the logits), hold NaN and −1.
    """

    lse: Any
    log_prob: Any
    argmax: Any
    rank: Any
    entropy: Any

    @classmethod
    def empty(cls, shape: Any, dtype: Any = np.float32) -> PredictionStats:
        """Buffers for the ``stats=`` argument of the losses.

        Examples
        --------
        >>> import softgrad
        >>> softgrad.PredictionStats.empty((2,)).argmax.dtype
        dtype('int64')
        """
        return cls(*(np.empty(shape, dtype if kind == "f" else np.int64) for kind in "ffiif"))

    def check(self, outer: tuple[int, ...], others: tuple[Any, ...] = ()) -> None:
        """Refuse buffers that do not fit or share memory with others, before anything is computed."""
        for name, buffer in zip(self._fields, self, strict=True):
            check_writable(buffer, f"stats.{name}")
            kind = "i" if name in ("argmax", "rank") else "f"
            if buffer.shape != outer or buffer.dtype.kind != kind:
                raise ValueError(f"stats.{name} must be an array of shape {outer}; see PredictionStats.empty")
            if any(other is not None and np.may_share_memory(buffer, other) for other in others):
                raise ValueError(f"stats.{name} shares memory with another result; see PredictionStats.empty")
            others = (*others, buffer)


class Outcome(NamedTuple):
    """Row losses in float64, factors applied, and whether a mean has a denominator of 0."""

    losses: Array
    empty_mean: bool


def make_head(rows: LogitRows, targets: TargetArrays, options: Options) -> Any:
    """Build the kernels' view of the batch; labels are checked by `settle`."""
    refuse_useless(targets, options)
    weights = class_weights(options.class_weight, rows), row_weights(options.sample_weight, rows.outer)
    return build_head(rows.array, rows.storage, targets, options.record(), *weights)


def refuse_useless(targets: TargetArrays, options: Options) -> None:
    """Raise if ``ignore_index`` is given without labels."""
    if options.ignore_index is not None and targets.kind is not TargetKind.labels:
        none = targets.kind is TargetKind.none
        kind = "there are no targets" if none else "these targets are soft; use sample_weight=0"
        raise ValueError(f"ignore_index={options.ignore_index} goes with labels, and {kind}")


def build_head(
    array: Array,
    storage: Any,
    targets: TargetArrays,
    options: Any,
    class_weight: Array | None = None,
    row_weight: Array | None = None,
) -> Any:
    """Build a `Head` from validated parts; ``options`` is the kernels' record."""
    return backend.kernels().Head(array, storage, targets.record(), options, class_weight, row_weight)


def settle(head: Any, rows: LogitRows, targets: TargetArrays, options: Options, name: str = "targets") -> Any:
    """Check the labels and set the factors of ``mean``; nothing may be written before this."""
    settled = head.settle(options.reduction == "mean")
    if settled.bad_row >= 0:
        raise label_error(targets, settled.bad_row, rows, rows.array.shape[1], name)
    return settled


class ByProducts:
    """Kernel buffers for the by-products of a batch, and their way into the caller's `PredictionStats`."""

    def __init__(self, stats: PredictionStats | None, rows: LogitRows, others: tuple[Any, ...] = ()) -> None:
        self.stats, self.outer = stats, rows.outer
        self.buffers: list[Array | None] = [None] * 5
        if stats is not None:
            stats.check(rows.outer, others)
            n = len(rows.array)
            self.buffers = [np.empty(n, np.float64 if kind == "f" else np.int64) for kind in "ffiif"]

    def part(self, lo: int, hi: int) -> list[Array | None]:
        """Buffers of the rows [lo, hi)."""
        return [None if buffer is None else buffer[lo:hi] for buffer in self.buffers]

    def deliver(self) -> None:
        """Copy into the caller's arrays."""
        if self.stats is not None:
            for target, values in zip(self.stats, self.buffers, strict=True):
                if values is not None:
                    target[...] = values.reshape(self.outer)


def run(
    rows: LogitRows,
    targets: TargetArrays,
    options: Options,
    n_threads: int,
    *,
    grad: Array | None = None,
    stats: PredictionStats | None = None,
    losses: bool = True,
) -> Outcome:
    """Compute the batch: row losses, the gradient into ``grad`` (rows), the by-products into ``stats``."""
    by_products = ByProducts(stats, rows, (grad,))
    head = make_head(rows, targets, options)
    empty_mean = settle(head, rows, targets, options).empty_mean
    n, cols = rows.array.shape
    row_losses = np.empty(n if losses else 0)
    computed = None if empty_mean else grad
    stream = computed is not None and streams(computed) and computed.ctypes.data != rows.array.ctypes.data
    outputs = backend.kernels().Outputs(
        n,
        cols,
        rows.storage,
        row_losses if losses else None,
        *by_products.part(0, n),
        computed,
        stream=stream,
    )
    run_head(head, outputs, n, cols, n_threads, by_products=stats is not None, grad=computed is not None)
    by_products.deliver()
    if empty_mean and grad is not None:  # exactly 0, whatever the logits hold; after they have been read
        grad[...] = 0
    return Outcome(row_losses, empty_mean)


def reduce(outcome: Outcome, rows: LogitRows, options: Options) -> Any:
    """Sum row losses, or return them in the caller's shape."""
    if options.reduction == "none":
        with np.errstate(over="ignore"):
            return outcome.losses.reshape(rows.outer).astype(rows.result_dtype)
    if outcome.empty_mean:
        return rows.result_dtype(math.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.result_dtype(outcome.losses.sum())
