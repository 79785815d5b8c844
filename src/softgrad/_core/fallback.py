"""The kernels' interface on NumPy: for an installation without a compiler, and as a row of the test matrix.

`Head` and `Results` take what the classes of the native extension take and fill the same buffers, in float64, a block
of rows at a time.  Every formula is `softgrad.reference`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad import reference

panel = 16 * 2048  # as in csrc/kernels.h: the unit of a column split
BLOCK_ELEMENTS = 1 << 18  # logits in float64 at a time
STATISTICS = np.dtype([(name, np.float64) for name in reference.Statistics._fields])

NONE, INDEX, DENSE, SPARSE = range(4)
BFLOAT16 = 2

Array = NDArray[Any]


def _decode(array: Array, type_code: int) -> NDArray[np.float64]:
    """Float64 values of stored logits; bfloat16 comes as its bits."""
    if type_code == BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def _encode(values: NDArray[np.float64], type_code: int, to: Array) -> None:
    """Round float64 values to storage, to nearest and ties to even."""
    if type_code != BFLOAT16:
        with np.errstate(over="ignore"):
            to[...] = values
        return
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    to[...] = np.where(np.isnan(values), 0x7FC0, rounded)


class Results:
    """Buffers that a head writes into; None for what is not wanted."""

    def __init__(
        self,
        rows: int,
        cols: int,
        type: int,
        loss: Array | None,
        lse: Array | None,
        log_prob: Array | None,
        argmax: Array | None,
        rank: Array | None,
        entropy: Array | None,
        grad: Array | None,
        stream: bool,
    ) -> None:
        self.shape, self.type, self.grad, self.stream = (rows, cols), type, grad, stream
        self.vectors = {
            "loss": loss,
            "lse": lse,
            "log_prob": log_prob,
            "argmax": argmax,
            "rank": rank,
            "entropy": entropy,
        }


def distribute(
    logits: Array, out: Array, cols: int, type: int, logarithm: bool, scale: float, softcap: float, temperature: float
) -> None:
    """Softmax or log-softmax along the last axis of contiguous arrays."""
    f = reference.log_softmax if logarithm else reference.softmax
    u = reference._transform(_decode(logits, type), scale, softcap or None, temperature)[0]
    _encode(f(u), type, out)


def curvature(prob: Array, weight: NDArray[np.float64] | None, vector: Array) -> None:
    """In place, ``a (S∘v − S (S·v))`` row by row, from stored probabilities."""
    s = prob.astype(np.float64)
    h = s * (vector - (s * vector).sum(axis=1, keepdims=True))
    vector[...] = h if weight is None else weight[:, None] * h


def to_half(source: Array, to: Array) -> None:
    """float32 to the bits of the nearest bfloat16; what is not finite is cut off."""
    bits = source.view(np.uint32)
    to[...] = (bits + np.where(np.isfinite(source), np.uint32(0x8000), np.uint32(0))) >> 16


def sparse_product(
    data: Array,
    indices: Array,
    indptr: Array,
    data_item: int,
    index_item: int,
    dense: Array,
    out: Array,
    item: int,
    half: bool,
) -> None:
    """CSR rows times a dense matrix; ``half``: of the bits of bfloat16."""
    out[...] = 0
    if half:
        dense = (dense.astype(np.uint32) << 16).view(np.float32)
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    stored = slice(int(indptr[0]), int(indptr[-1]))
    data, indices = data[stored], indices[stored]
    step = max(1, BLOCK_ELEMENTS // max(1, dense.shape[1]))
    for lo in range(0, len(data), step):
        part = slice(lo, lo + step)
        np.add.at(out, rows[part], data[part, None] * dense[indices[part]])


linear_lanes = 16  # as in csrc/kernels.h


class Linear:
    """Dense rows times the weights of a few classes, in float32 or float64."""

    def __init__(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        scratch: Array | None,
        total: Array | None,
        sums: Array | None,
        cols: int,
        item: int,
        x_item: int,
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
        type: int,
        target: int,
        labels: Array | None,
        label_bytes: int,
        label_signed: bool,
        values: Array | None,
        value_type: int,
        class_weight: Array | None,
        row_weight: NDArray[np.float64] | None,
        ignore_index: int | None,
        label_smoothing: float,
        smooth_finite_only: bool,
        logit_scale: float,
        softcap: float,
        temperature: float,
        z_loss: float,
    ) -> None:
        self.logits, self.type, self.target = logits, type, target
        self.labels, self.values, self.value_type = labels, values, value_type
        rows, cols = logits.shape
        self.class_weight = np.ones(cols) if class_weight is None else class_weight.astype(np.float64)
        self.row_weight = np.ones(rows) if row_weight is None else row_weight
        if target == INDEX and labels is not None and ignore_index is not None:
            self.row_weight = np.where(labels == ignore_index, 0.0, self.row_weight)
            self._ignored = labels == ignore_index
        else:
            self._ignored = np.zeros(rows, dtype=bool)
        self.smoothing, self.finite_only = label_smoothing, smooth_finite_only
        self.transform = (logit_scale, softcap or None, temperature)
        self.z_loss, self.ce, self.z = z_loss, 1.0, 1.0

    def totals(self) -> tuple[int, float, float, int]:
        """First row with a bad label or −1, Σ a w_y over the kept rows, Σ a, rows kept."""
        a, cols = self.row_weight, self.logits.shape[1]
        w = np.ones(len(a))
        if self.target in (INDEX, SPARSE) and self.labels is not None:
            labels = self.labels.reshape(len(a), 1 if self.labels.ndim == 1 else self.labels.shape[1])
            low = 0 if self.target == INDEX else -1
            wrong = ((labels < low) | (labels >= cols)).any(axis=1) & ~self._ignored
            if wrong.any():
                return int(wrong.argmax()), 0.0, 0.0, 0
            if self.target == INDEX:
                w = self.class_weight[np.where(self._ignored, 0, self.labels).astype(np.int64)]
        return -1, float((a * w).sum()), float(a.sum()), int((a != 0).sum())

    def set_factors(self, ce: float, z: float) -> None:
        """Factors of the cross-entropy part and of the z-loss part: 1, or 1 / the mean's denominators."""
        self.ce, self.z = ce, z

    def _blocks(self, lo: int, hi: int) -> Iterator[tuple[slice, reference.Rows]]:
        step = max(1, BLOCK_ELEMENTS // self.logits.shape[1])
        for first in range(lo, hi, step):
            block = slice(first, min(first + step, hi))
            yield block, self._block(block)

    def _block(self, block: slice) -> reference.Rows:
        """Decode some rows: transformed logits, targets, weights."""
        o = _decode(self.logits[block], self.type)
        n, cols = o.shape
        u, slope, curve = reference._transform(o, *self.transform)
        y = np.zeros((n, cols))
        if self.target == DENSE and self.values is not None:
            y = _decode(self.values[block], self.value_type)
        elif self.target == INDEX and self.labels is not None:
            kept = np.flatnonzero(self.row_weight[block] != 0)
            y[kept, self.labels[block][kept].astype(np.int64)] = 1.0
        elif self.target == SPARSE and self.labels is not None and self.values is not None:
            index, value = self.labels[block].astype(np.int64), _decode(self.values[block], self.value_type)
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

    def rows(self, results: Results, lo: int, hi: int) -> None:
        """Loss, by-products and gradient of the rows [lo, hi)."""
        for block, b in self._blocks(lo, hi):
            stats = reference.row_statistics(b.u, b.wy)
            self._finish(results, block, b, stats)
            if results.grad is not None:
                g = b.slope * reference.gradient_from_statistics(b.u, b.wy, stats, b.ce, b.z)
                _encode(np.where(b.keep[:, None], g, 0.0), self.type, results.grad[block])

    def _finish(self, results: Results, block: slice, b: reference.Rows, stats: reference.Statistics) -> None:
        ce, lse = reference.loss_from_statistics(stats)
        nan, sound = np.where(b.keep, 0.0, np.nan), b.keep & ~np.isnan(lse)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            found: dict[str, Any] = {
                "loss": np.where(b.keep, b.ce * ce + b.z * np.where(b.z == 0, 0.0, lse) ** 2, 0.0),
                "lse": lse + nan,
                "entropy": np.where(sound, np.log(stats.sumexp) - stats.moment / stats.sumexp, np.nan),
            }
        key = b.o * np.sign(self.transform[0])
        if results.vectors["log_prob"] is not None:
            plain = reference.loss_from_statistics(reference.row_statistics(b.u, b.y))[0]
            found["log_prob"] = -plain + nan if self.target != NONE else np.full(len(lse), np.nan)
        if results.vectors["argmax"] is not None:
            found["argmax"] = np.where(sound, np.where(np.isnan(key), -np.inf, key).argmax(axis=1), -1)
        if results.vectors["rank"] is not None:
            found["rank"] = np.full(len(lse), -1)
            if self.target == INDEX and self.labels is not None:
                own = np.take_along_axis(key, np.where(b.keep, self.labels[block], 0).astype(np.int64)[:, None], axis=1)
                found["rank"] = np.where(sound, (key > own).sum(axis=1), -1)
        for name, vector in results.vectors.items():
            if vector is not None:
                vector[block] = found[name]

    def distribution(self, logarithm: bool, out: Array, lo: int, hi: int) -> None:
        """Softmax or log-softmax of the rows [lo, hi)."""
        for block, b in self._blocks(lo, hi):
            f = reference.log_softmax if logarithm else reference.softmax
            _encode(f(b.u), self.type, out[block])

    def product(self, vector: Array, out: Array, lo: int, hi: int) -> None:
        """Hessian-vector product of the rows [lo, hi); without targets the softmax Jacobian's product."""
        for block, b in self._blocks(lo, hi):
            v = _decode(vector[block], self.type)
            if self.target == NONE:  # ∂S/∂o v: one D instead of two, and no ∂ℓ/∂u
                h = reference.softmax_jvp(b.u, b.slope * v)
            else:
                h = reference.hessian_product(b, reference.row_statistics(b.u, b.wy), v)
            _encode(np.where(b.keep[:, None], h, 0.0), self.type, out[block])

    def linear(self, logits: Array, losses: Array, prob: Array | None, layer: Linear, known: bool) -> None:
        """The whole pass of a linear layer: logits (unless known), losses, probabilities, and the gradient's totals."""
        if not known:
            layer.forward(logits)
        rows, cols = logits.shape
        if prob is not None:
            self.distribution(False, prob, 0, rows)
        grad = np.empty_like(logits)
        self.rows(Results(rows, cols, self.type, losses, None, None, None, None, None, grad, False), 0, rows)
        layer.back(grad)
