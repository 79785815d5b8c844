"""The kernels' interface on NumPy: for an installation without a compiler, and as a row of the test matrix.

The classes have the names and arguments of the native extension's and fill the same arrays, in float64, a block of rows
at a time.  Every formula is `softgrad.reference`'s.  Slices of the classes, statistics and upstream gradients are the
native extension's alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from softgrad import reference

tile = 2048  # the constants of csrc/kernels.h
panel = 16 * tile
linear_lanes = 16
BLOCK_ELEMENTS = 1 << 18  # logits in float64 at a time

Array = NDArray[Any]


def statistics_fields() -> list[tuple[str, str]]:
    """Return no fields: the statistics of slices are the native extension's alone."""
    return []


class Storage(Enum):
    """How logits are stored; bfloat16 as its bits in uint16."""

    float32 = 0
    float64 = 1
    bfloat16 = 2
    float16 = 3


class TargetKind(Enum):
    """Kinds of targets."""

    none = 0
    labels = 1
    dense = 2
    sparse = 3


class Options(NamedTuple):
    """Options of a head; they have been validated."""

    label_smoothing: float = 0.0
    smooth_finite_only: bool = False
    logit_scale: float = 1.0
    softcap: float = 0.0
    temperature: float = 1.0
    z_loss: float = 0.0
    ignore_index: int | None = None


class Targets(NamedTuple):
    """Targets of a head."""

    kind: Any
    labels: Array | None = None
    values: Array | None = None
    values_storage: Any = Storage.float32
    first: int = 0
    classes: int = 0


class Settled(NamedTuple):
    """The labels' check and the factors of a mean."""

    bad_row: int
    empty_mean: bool
    ce_factor: float
    z_factor: float


class Outputs(NamedTuple):
    """Arrays that a head writes into, one entry a row; None for what is not wanted."""

    rows: int
    cols: int
    storage: Any
    loss: Array | None = None
    lse: Array | None = None
    log_prob: Array | None = None
    argmax: Array | None = None
    rank: Array | None = None
    entropy: Array | None = None
    grad: Array | None = None
    along: Array | None = None
    slope: Array | None = None
    stream: bool = False


def _native_only(what: str) -> NoReturn:
    raise NotImplementedError(f"{what} needs the native kernels; the NumPy implementation computes whole rows")


def _decode(array: Array, storage: Any) -> NDArray[np.float64]:
    """Float64 values of stored numbers; bfloat16 comes as its bits."""
    if storage.name == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def _encode(values: NDArray[np.float64], storage: Any, to: Array) -> None:
    """Round float64 values to storage, to nearest and ties to even."""
    if storage.name != "bfloat16":
        with np.errstate(over="ignore"):
            to[...] = values
        return
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    to[...] = np.where(np.isnan(values), 0x7FC0, rounded)


def distribute(logits: Array, out: Array, storage: Any, logarithm: bool, options: Any = None) -> None:
    """Softmax or log-softmax along the last axis of contiguous arrays."""
    options = Options() if options is None else options
    f = reference.log_softmax if logarithm else reference.softmax
    u = reference._transform(
        _decode(logits, storage), options.logit_scale, options.softcap or None, options.temperature
    )[0]
    _encode(f(u), storage, out)


def small_batch(
    logits: Array, storage: Any, labels: Array, options: Any, mean: bool, grad: Array | None = None
) -> tuple[int, float]:
    """Total loss of a small batch, and its gradient: (first bad row or −1, total)."""
    rows, cols = logits.shape
    head = Head(logits, storage, Targets(TargetKind.labels, labels), options)
    settled = head.settle(mean)
    if settled.bad_row >= 0:
        return settled.bad_row, 0.0
    if settled.empty_mean:
        if grad is not None:
            grad[...] = 0
        return -1, float("nan")
    losses = np.empty(rows)
    head.rows(Outputs(rows, cols, storage, losses, grad=grad), 0, rows)
    return -1, float(losses.sum())


def curvature(prob: Array, weight: NDArray[np.float64] | None, vector: Array) -> None:
    """In place, ``a (S∘v − S (S·v))`` row by row, from stored probabilities."""
    s = prob.astype(np.float64)
    h = s * (vector - (s * vector).sum(axis=1, keepdims=True))
    vector[...] = h if weight is None else weight[:, None] * h


def to_half(source: Array, to: Array) -> None:
    """float32 to the bits of the nearest bfloat16; what is not finite is cut off."""
    bits = source.view(np.uint32)
    to[...] = (bits + np.where(np.isfinite(source), np.uint32(0x8000), np.uint32(0))) >> 16


def sparse_product(data: Array, indices: Array, indptr: Array, dense: Array, out: Array) -> None:
    """CSR rows times the first columns of a dense matrix, or of the bits of bfloat16."""
    dense = dense[:, : out.shape[1]]
    out[...] = 0
    if dense.dtype == np.uint16:
        dense = (dense.astype(np.uint32) << 16).view(np.float32)
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    stored = slice(int(indptr[0]), int(indptr[-1]))
    data, indices = data[stored], indices[stored]
    step = max(1, BLOCK_ELEMENTS // max(1, dense.shape[1]))
    for lo in range(0, len(data), step):
        part = slice(lo, lo + step)
        np.add.at(out, rows[part], data[part, None] * dense[indices[part]])


class Linear:
    """Dense rows times the weights of a few classes, in float32 or float64."""

    def __init__(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        cols: int,
        scratch: Array | None = None,
        total: Array | None = None,
        sums: Array | None = None,
    ) -> None:
        self.x, self.weight, self.bias, self.total, self.sums = x, weight[:, :cols], bias[:cols], total, sums

    def forward(self, out: Array) -> None:
        """``X W + b``."""
        out[...] = self.x @ self.weight + self.bias

    def back(self, g: Array) -> None:
        """Add ``Gᵀ X`` and the column sums of G."""
        assert self.total is not None
        assert self.sums is not None
        self.total += g.T @ self.x
        self.sums += g.sum(axis=0, dtype=np.float64)

    def curvature(self, prob: Array, row_weight: NDArray[np.float64] | None) -> None:
        """Add a Hessian product of the layer to the totals."""
        v = np.empty(prob.shape, prob.dtype)
        self.forward(v)
        curvature(prob, row_weight, v)
        self.back(v)


class Head:
    """A batch of logits with its targets and options, whose row ranges can be computed."""

    def __init__(
        self,
        logits: Array,
        storage: Any,
        targets: Any,
        options: Any,
        class_weight: Array | None = None,
        row_weight: NDArray[np.float64] | None = None,
    ) -> None:
        rows, cols = logits.shape
        if targets.first or targets.classes not in (0, cols):
            _native_only("a slice of the classes")
        self.logits, self.storage, self.kind = logits, storage, targets.kind.name
        self.labels, self.values, self.values_storage = targets.labels, targets.values, targets.values_storage
        self.class_weight = np.ones(cols) if class_weight is None else class_weight.astype(np.float64)
        self.row_weight = np.ones(rows) if row_weight is None else row_weight
        self._ignored = np.zeros(rows, dtype=bool)
        if self.kind == "labels" and self.labels is not None and options.ignore_index is not None:
            self._ignored = self.labels == options.ignore_index
            self.row_weight = np.where(self._ignored, 0.0, self.row_weight)
        self.smoothing, self.finite_only = options.label_smoothing, options.smooth_finite_only
        self.transform = (options.logit_scale, options.softcap or None, options.temperature)
        self.z_loss, self.ce, self.z = options.z_loss, 1.0, 1.0

    def settle(self, mean: bool) -> Settled:
        """Check the labels, and set the factors of a mean."""
        a, cols = self.row_weight, self.logits.shape[1]
        w = np.ones(len(a))
        if self.kind in ("labels", "sparse") and self.labels is not None:
            labels = self.labels.reshape(len(a), 1 if self.labels.ndim == 1 else self.labels.shape[1])
            low = 0 if self.kind == "labels" else -1
            wrong = ((labels < low) | (labels >= cols)).any(axis=1) & ~self._ignored
            if wrong.any():
                return Settled(int(wrong.argmax()), False, 1.0, 1.0)
            if self.kind == "labels":
                w = self.class_weight[np.where(self._ignored, 0, self.labels).astype(np.int64)]
        if not mean:
            return Settled(-1, False, 1.0, 1.0)
        labelled, total = float((a * w).sum()), float(a.sum())
        if labelled == 0 or not (a != 0).any():
            return Settled(-1, True, 0.0, 0.0)
        self.ce, self.z = 1 / labelled, 1 / total if total else float("nan") if self.z_loss else 0.0
        return Settled(-1, False, self.ce, self.z)

    def set_factors(self, ce: float, z: float) -> None:
        """Set the factors of the cross-entropy part and of the z-loss part: 1, or 1 / the mean's denominators."""
        self.ce, self.z = ce, z

    def set_upstream(self, ce: Any, lse: Any, entropy: Any) -> None:
        """Not here."""
        _native_only("an upstream gradient for each row")

    def statistics(self, lo: int, hi: int, col_lo: int, col_hi: int, by_products: bool, into: Any) -> None:
        """Not here."""
        _native_only("a range of columns")

    def merge(self, into: Any, other: Any) -> None:
        """Not here."""
        _native_only("a range of columns")

    def finish(self, outputs: Any, statistics: Any, lo: int, hi: int) -> None:
        """Not here."""
        _native_only("a range of columns")

    def gradient(self, outputs: Any, statistics: Any, lo: int, hi: int, col_lo: int, col_hi: int) -> None:
        """Not here."""
        _native_only("a range of columns")

    def _blocks(self, lo: int, hi: int) -> Iterator[tuple[slice, reference.Rows]]:
        step = max(1, BLOCK_ELEMENTS // self.logits.shape[1])
        for first in range(lo, hi, step):
            block = slice(first, min(first + step, hi))
            yield block, self._block(block)

    def _block(self, block: slice) -> reference.Rows:
        """Decode some rows: transformed logits, targets, weights."""
        o = _decode(self.logits[block], self.storage)
        n, cols = o.shape
        u, slope, curve = reference._transform(o, *self.transform)
        y = np.zeros((n, cols))
        if self.kind == "dense" and self.values is not None:
            y = _decode(self.values[block], self.values_storage)
        elif self.kind == "labels" and self.labels is not None:
            kept = np.flatnonzero(self.row_weight[block] != 0)
            y[kept, self.labels[block][kept].astype(np.int64)] = 1.0
        elif self.kind == "sparse" and self.labels is not None and self.values is not None:
            index, value = self.labels[block].astype(np.int64), _decode(self.values[block], self.values_storage)
            for r in range(index.shape[1]):
                rows = np.flatnonzero(index[:, r] >= 0)
                y[rows, index[rows, r]] += value[rows, r]
        smooth: Any = 0.0
        if self.smoothing:
            reached = (u != -np.inf).astype(np.float64) if self.finite_only else np.ones_like(u)
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                smooth = self.smoothing * reached / reached.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore", over="ignore"):
            wy = self.class_weight * ((1 - self.smoothing) * y + smooth)
        a = self.row_weight[block]
        return reference.Rows(o, u, slope, curve, y, wy, a != 0, a * self.ce, a * self.z * self.z_loss)

    def rows(self, outputs: Outputs, lo: int, hi: int) -> None:
        """Loss, by-products and gradient of the rows [lo, hi)."""
        if outputs.along is not None or outputs.slope is not None:
            _native_only("a sum over the gradient")
        for block, b in self._blocks(lo, hi):
            stats = reference.row_statistics(b.u, b.wy)
            self._finish(outputs, block, b, stats)
            if outputs.grad is not None:
                g = b.slope * reference.gradient_from_statistics(b.u, b.wy, stats, b.ce, b.z)
                _encode(np.where(b.keep[:, None], g, 0.0), self.storage, outputs.grad[block])

    def _finish(self, outputs: Outputs, block: slice, b: reference.Rows, stats: reference.Statistics) -> None:
        ce, lse = reference.loss_from_statistics(stats)
        nan, sound = np.where(b.keep, 0.0, np.nan), b.keep & ~np.isnan(lse)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            found: dict[str, Any] = {
                "loss": np.where(b.keep, b.ce * ce + b.z * np.where(b.z == 0, 0.0, lse) ** 2, 0.0),
                "lse": lse + nan,
                "entropy": np.where(sound, stats.log_sum - stats.moment / stats.sumexp, np.nan),
            }
        key = b.o * np.sign(self.transform[0])
        if outputs.log_prob is not None:
            plain = reference.loss_from_statistics(reference.row_statistics(b.u, b.y))[0]
            found["log_prob"] = -plain + nan if self.kind != "none" else np.full(len(lse), np.nan)
        if outputs.argmax is not None:
            found["argmax"] = np.where(sound, np.where(np.isnan(key), -np.inf, key).argmax(axis=1), -1)
        if outputs.rank is not None:
            found["rank"] = np.full(len(lse), -1)
            if self.kind == "labels" and self.labels is not None:
                own = np.take_along_axis(key, np.where(b.keep, self.labels[block], 0).astype(np.int64)[:, None], axis=1)
                found["rank"] = np.where(sound, (key > own).sum(axis=1), -1)
        for name in ("loss", "lse", "log_prob", "argmax", "rank", "entropy"):
            if (vector := getattr(outputs, name)) is not None:
                vector[block] = found[name]

    def distribution(self, logarithm: bool, out: Array, lo: int, hi: int) -> None:
        """Softmax or log-softmax of the rows [lo, hi)."""
        for block, b in self._blocks(lo, hi):
            f = reference.log_softmax if logarithm else reference.softmax
            _encode(f(b.u), self.storage, out[block])

    def product(self, vector: Array, out: Array, lo: int, hi: int) -> None:
        """Hessian-vector product of the rows [lo, hi); without targets the softmax Jacobian's product."""
        for block, b in self._blocks(lo, hi):
            v = _decode(vector[block], self.storage)
            if self.kind == "none":  # ∂S/∂o v: one D instead of two, and no ∂ℓ/∂u
                h = reference.softmax_jvp(b.u, b.slope * v)
            else:
                h = reference.hessian_product(b, reference.row_statistics(b.u, b.wy), v)
            _encode(np.where(b.keep[:, None], h, 0.0), self.storage, out[block])

    def linear(self, logits: Array, losses: Array, prob: Array | None, layer: Linear, known: bool) -> None:
        """The whole pass of a linear layer: logits (unless known), losses, probabilities, and the gradient's totals."""
        if not known:
            layer.forward(logits)
        rows, cols = logits.shape
        if prob is not None:
            self.distribution(False, prob, 0, rows)
        grad = np.empty_like(logits)
        self.rows(Outputs(rows, cols, self.storage, losses, grad=grad), 0, rows)
        layer.back(grad)
