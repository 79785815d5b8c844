"""One call of the head: from checked arrays and options to the loss, its by-products and its gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from softgrad._core import backend
from softgrad._core.arrays import FLOAT64, Array, Rows, first_bad
from softgrad._core.options import Options
from softgrad._core.schedule import run_head, streams
from softgrad._core.targets import INDEX, NONE, Targets, label_error


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

    def check(self, outer: tuple[int, ...]) -> None:
        """Refuse buffers that do not fit, before anything is computed."""
        for name, buffer in zip(self._fields, self, strict=True):
            kind = "i" if name in ("argmax", "rank") else "f"
            if not isinstance(buffer, np.ndarray) or buffer.shape != outer or buffer.dtype.kind != kind:
                raise ValueError(f"stats.{name} must be an array of shape {outer}; see PredictionStats.empty")
            if not buffer.flags.writeable:
                raise ValueError(f"stats.{name} is read-only")


class Outcome(NamedTuple):
    """Row losses in float64 (factors applied), and whether a mean was taken over nothing."""

    losses: Array
    void: bool


def row_weights(sample_weight: Any, rows: Rows) -> Array | None:
    """Row weights as float64, checked."""
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight)
    if weights.dtype.kind not in "fiub":
        raise TypeError(f"sample_weight of dtype {weights.dtype} are not numbers")
    if weights.shape != rows.outer:
        raise ValueError(f"sample_weight has shape {weights.shape}; one weight for each row of logits is {rows.outer}")
    weights = np.array(weights, dtype=np.float64, order="C")  # a copy: the caller's may lie where the gradient goes
    if (bad := first_bad(weights)) is not None:
        raise ValueError(f"sample_weight{list(bad)} is {weights[bad]}; weights are finite (0 leaves a row out)")
    return weights.reshape(-1)


def class_weights(class_weight: Any, rows: Rows, name: str = "class_weight") -> Array | None:
    """Class weights in the arithmetic type, checked."""
    if class_weight is None:
        return None
    weights = np.asarray(class_weight)
    classes = rows.array.shape[1]
    if weights.dtype.kind not in "fiub":
        raise TypeError(f"{name} of dtype {weights.dtype} are not numbers")
    if weights.shape != (classes,):
        raise ValueError(f"{name} has shape {weights.shape}; one weight for each class is ({classes},)")
    weights = np.array(weights, dtype=np.float64 if rows.storage == FLOAT64 else np.float32, order="C")
    if (bad := first_bad(weights)) is not None:
        raise ValueError(f"{name}{list(bad)} is {weights[bad]}; weights are finite")
    return weights


def make_head(rows: Rows, targets: Targets, options: Options) -> Any:
    """Build the kernels' view of the batch; labels are checked by `settle`."""
    refuse_useless(targets, options)
    weights = class_weights(options.class_weight, rows), row_weights(options.sample_weight, rows)
    return build_head(rows.array, rows.storage, targets, options, *weights)


def refuse_useless(targets: Targets, options: Options) -> None:
    """No option is accepted and then ignored."""
    if options.ignore_index is not None and targets.kind != INDEX:
        kind = "there are no targets" if targets.kind == NONE else "these targets are soft; use sample_weight=0"
        raise ValueError(f"ignore_index={options.ignore_index} goes with labels, and {kind}")


def build_head(
    array: Array, storage: int, targets: Targets, options: Options, class_weight: Array | None, row_weight: Array | None
) -> Any:
    """The same from parts that have been checked: a tile of a larger batch."""
    return backend.kernels().Head(
        array,
        storage,
        targets.kind,
        targets.labels,
        targets.label_bytes,
        targets.signed,
        targets.values,
        targets.value_storage,
        class_weight,
        row_weight,
        options.ignore_index,
        options.label_smoothing,
        options.smooth_finite_only,
        options.logit_scale,
        options.softcap or 0.0,
        options.temperature,
        options.z_loss,
    )


class Factors(NamedTuple):
    """What ``mean`` multiplies with, and whether it is taken over nothing."""

    ce: float
    z: float
    void: bool


def settle(head: Any, rows: Rows, targets: Targets, options: Options) -> Factors:
    """Check the labels and set the factors of ``mean``; nothing may be written before this."""
    bad, ce_total, total, kept = head.totals()
    if bad >= 0:
        raise label_error(targets, bad, rows)
    if options.reduction != "mean":
        return Factors(1.0, 1.0, False)
    if kept == 0 or ce_total == 0:
        return Factors(0.0, 0.0, True)
    z = 1.0 / total if total else math.nan if options.z_loss else 0.0
    head.set_factors(1.0 / ce_total, z)
    return Factors(1.0 / ce_total, z, False)


class ByProducts:
    """Kernel buffers for the by-products of a batch, and their way into the caller's `PredictionStats`."""

    def __init__(self, stats: PredictionStats | None, rows: Rows) -> None:
        self.stats, self.outer = stats, rows.outer
        self.buffers: list[Array | None] = [None] * 5
        if stats is not None:
            stats.check(rows.outer)
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
    rows: Rows,
    targets: Targets,
    options: Options,
    n_threads: int,
    *,
    grad: Array | None = None,
    stats: PredictionStats | None = None,
    losses: bool = True,
) -> Outcome:
    """Compute the batch: row losses, the gradient into ``grad`` (rows), the by-products into ``stats``."""
    by_products = ByProducts(stats, rows)
    head = make_head(rows, targets, options)
    void = settle(head, rows, targets, options).void
    n, cols = rows.array.shape
    if void and grad is not None:  # exactly 0, whatever the logits hold
        grad[...] = 0
        grad = None
    row_losses = np.empty(n if losses else 0)
    stream = grad is not None and streams(grad) and grad.ctypes.data != rows.array.ctypes.data
    results = backend.kernels().Results(
        n, cols, rows.storage, row_losses if losses else None, *by_products.part(0, n), grad, stream
    )
    run_head(head, results, n, cols, n_threads, by_products=stats is not None, grad=grad is not None)
    by_products.deliver()
    return Outcome(row_losses, void)


def reduce(outcome: Outcome, rows: Rows, options: Options) -> Any:
    """Sum row losses, or return them in the caller's shape."""
    if options.reduction == "none":
        with np.errstate(over="ignore"):
            return outcome.losses.reshape(rows.outer).astype(rows.result_dtype)
    if outcome.void:
        return rows.result_dtype(math.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.result_dtype(outcome.losses.sum())
