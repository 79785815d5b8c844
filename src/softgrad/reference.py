"""The specification: every function of softgrad as short float64 NumPy.

One row of logits ``o`` and one target ``y`` give

    v = s·o;  v = c·tanh(v / c) if a softcap c is set;  u = v / τ
    y' = (1 − ε) y + ε/V,   t = Σ_j w_j y'_j
    ℓ  = t·lse(u) − Σ_j w_j y'_j u_j + λ lse(u)²
    ∂ℓ/∂u = (t + 2 λ lse) S − w y',      ∂ℓ/∂o = D ∂ℓ/∂u,   D = ∂u/∂o

and a batch gives Σ_i a_i ℓ_i, divided for ``mean`` as PyTorch divides it.  Nothing here is fast, nothing here is
clever: the tests compare every kernel with it, the derivation is checked against it, and it computes for those who
installed without a compiler.  It takes the options of the public functions under the same names, always works on a
``float64`` copy, and does not validate them: that is the front-end's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]

__all__ = [
    "Rows",
    "Statistics",
    "cross_entropy",
    "cross_entropy_hvp",
    "cross_entropy_with_grad",
    "gradient_from_statistics",
    "hessian_product",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "logsumexp",
    "loss_from_statistics",
    "merge_statistics",
    "prediction_stats",
    "probabilities",
    "row_statistics",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
]


class Rows(NamedTuple):
    """A batch, or some rows of it, as float64: what the primitives below compute with."""

    o: Float  #: logits
    u: Float  #: transformed logits
    slope: Float  #: D = ∂u/∂o
    curve: Float  #: ∂²u/∂o²
    y: Float  #: targets before smoothing
    wy: Float  #: w_j y'_j
    keep: NDArray[np.bool_]  #: rows that are not ignored
    ce: Float  #: row factor of the cross-entropy part: a_i, over the mean's denominator
    z: Float  #: λ times the row factor of the z-loss part


# --- one row after another: the three primitives, and the merge ------------------------------------------------------


class Statistics(NamedTuple):
    """What a tile of columns says about its rows: enough for the loss, the gradient and the by-products."""

    maximum: Float  #: m = max u
    at_peak: Float  #: exp(0) = 1 for the column of the maximum (0 where all are masked; merged: how many tiles have it)
    rest: Float  #: Σ exp(u − m) over the other columns
    mass: Float  #: t = Σ w y'
    dot: Float  #: q = Σ w y' (u − m), where 0·∞ counts as 0
    moment: Float  #: e = Σ exp(u − m)(u − m), for the entropy

    @property
    def sumexp(self) -> Float:
        """``s = Σ exp(u − m)``."""
        return self.at_peak + self.rest

    @property
    def log_sum(self) -> Float:
        """``log s``, to full precision where it is near 0; NaN where the whole row is masked."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.where(self.maximum == -np.inf, np.nan, np.log1p(self.rest + (self.at_peak - 1)))


def row_statistics(u: Float, wy: Float) -> Statistics:
    """Summarise each row of the transformed logits ``u`` (N, V) and the weighted targets ``wy`` (N, V)."""
    m = u.max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        d = np.where(u == -np.inf, -np.inf, u - m)  # an all-masked tile keeps d = −inf: it adds nothing
        e, t = np.exp(d), wy.sum(axis=1)
        q = np.where(wy == 0, 0.0, wy * d).sum(axis=1)
        moment = np.where(d == -np.inf, 0.0, e * d).sum(axis=1)
    return Statistics(m[:, 0], *_split(e), t, q, moment)


def _split(e: Float) -> tuple[Float, Float]:
    """The largest of each row of exponentials, and the sum of the others: log1p of that is a loss near 0."""
    top = e.argmax(axis=-1)[..., None]
    rest = e.copy()
    np.put_along_axis(rest, top, 0.0, axis=-1)
    return np.take_along_axis(e, top, axis=-1)[..., 0], rest.sum(axis=-1)


def merge_statistics(a: Statistics, b: Statistics) -> Statistics:
    """Merge the summaries of two disjoint sets of columns: associative, and the whole of the online softmax."""
    m = np.maximum(a.maximum, b.maximum)
    parts = []
    for x in (a, b):
        with np.errstate(invalid="ignore", over="ignore"):
            shift = np.where(x.maximum == -np.inf, -np.inf, x.maximum - m)
            scale = np.exp(shift)
            finite = np.where(np.isneginf(shift), 0.0, shift)
            at_peak = np.where(x.maximum == m, x.at_peak, 0.0)
            rest = np.where(x.maximum == m, x.rest, scale * x.sumexp)
            dot = x.dot + np.where(x.mass == 0, 0.0, x.mass * np.where(np.isneginf(x.maximum), 0.0, shift))
            parts.append((at_peak, rest, x.mass, dot, scale * (x.moment + x.sumexp * finite)))
    return Statistics(m, *(p + q for p, q in zip(*parts, strict=True)))


def loss_from_statistics(stats: Statistics) -> tuple[Float, Float]:
    """Cross-entropy ``t log s − q`` and ``lse = m + log s`` of each row; NaN where the whole row is masked."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return stats.mass * stats.log_sum - stats.dot, stats.maximum + stats.log_sum


def gradient_from_statistics(u: Float, wy: Float, stats: Statistics, ce: ArrayLike = 1.0, z: ArrayLike = 0.0) -> Float:
    """``∂/∂u of ce·(t lse − Σ w y' u) + z·lse²``, which is ``(ce t + 2 z lse) S − ce w y'``, row by row."""
    ce, z = np.broadcast_to(ce, len(u)), np.broadcast_to(z, len(u))
    lse = loss_from_statistics(stats)[1]
    with np.errstate(invalid="ignore", over="ignore"):
        mass = ce * stats.mass + np.where(z == 0, 0.0, 2 * z * lse)
        return mass[:, None] * probabilities(u, stats) - ce[:, None] * wy


def hessian_product(p: Rows, stats: Statistics, v: Float) -> Float:
    """``H v`` with ``H = D [(t + 2λ lse) J + 2λ S Sᵀ] D + diag(∂ℓ/∂u ∘ ∂²u/∂o²)``, row by row."""
    lse = loss_from_statistics(stats)[1]
    with np.errstate(invalid="ignore", over="ignore"):
        s = probabilities(p.u, stats)
        along = (s * p.slope * v).sum(axis=1, keepdims=True)  # S · D v
        mass = (p.ce * stats.mass + np.where(p.z == 0, 0.0, 2 * p.z * lse))[:, None]
        hu = mass * s * (p.slope * v - along) + 2 * p.z[:, None] * s * along
        return np.asarray(p.slope * hu + gradient_from_statistics(p.u, p.wy, stats, p.ce, p.z) * p.curve * v)


def probabilities(u: Float, stats: Statistics) -> Float:
    """``S = exp(u − m) / s`` of each row."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.exp(u - stats.maximum[:, None]) / stats.sumexp[:, None])


# --- from the caller's arrays to rows --------------------------------------------------------------------------------


def _transform(o: Float, logit_scale: float, softcap: float | None, temperature: float) -> tuple[Float, Float, Float]:
    """``u``, ``D = ∂u/∂o`` and ``∂²u/∂o²``; a masked logit (−inf) stays masked under the softcap."""
    s, tau = logit_scale, temperature
    if softcap is None:
        return o * (s / tau), np.full_like(o, s / tau), np.zeros_like(o)
    th = np.tanh(s * o / softcap)
    u = np.where(o * s == -np.inf, -np.inf, softcap * th / tau)
    u = np.where(o * s == np.inf, np.inf, u)
    slope = 1 - th**2
    return u, s / tau * slope, s * s / (tau * softcap) * (-2 * th * slope)


def _dense_targets(targets: Any, n: int, v: int, axis: int) -> tuple[Float, NDArray[np.int64] | None]:
    """Any target as dense (N, V) probabilities, and the labels when it was given by labels."""
    if isinstance(targets, tuple):
        y = np.zeros((n, v))
        index, value = (np.asarray(part).reshape(n, np.shape(part)[-1]) for part in targets)
        for i, k in np.argwhere(index >= 0):
            y[i, index[i, k]] += value[i, k]
        return y, None
    targets = np.asarray(targets)
    if targets.dtype.kind in "iu":
        labels = targets.reshape(n).astype(np.int64)
        inside = (labels >= 0) & (labels < v)
        y = np.zeros((n, v))
        y[np.flatnonzero(inside), labels[inside]] = 1.0
        return y, labels
    return np.moveaxis(targets.astype(np.float64), axis, -1).reshape(n, v), None


def _problem(
    logits: ArrayLike,
    targets: Any,
    *,
    axis: int = -1,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    smooth_finite_only: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Rows, NDArray[np.int64] | None, bool]:
    """The batch as rows, the labels if targets are labels, and whether a mean is taken over nothing."""
    o = np.asarray(logits).astype(np.float64)
    rows = np.moveaxis(o, axis, -1)
    v = rows.shape[-1]
    rows = rows.reshape(int(np.prod(rows.shape[:-1], dtype=np.int64)), v)
    n = len(rows)
    u, slope, curve = _transform(rows, logit_scale, softcap, temperature)
    y, labels = _dense_targets(targets, n, v, axis)
    w = np.ones(v) if class_weight is None else np.asarray(class_weight, dtype=np.float64)
    a = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64).reshape(n).copy()
    if labels is not None and ignore_index is not None:
        a[labels == ignore_index] = 0.0
    keep = a != 0
    spread = np.ones_like(u)
    if smooth_finite_only:
        spread = (u != -np.inf).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        smooth = label_smoothing * spread / spread.sum(axis=1, keepdims=True) if label_smoothing else 0.0
    wy = w * ((1 - label_smoothing) * y + smooth)
    ce_total = float((a * w[labels * keep]).sum()) if labels is not None and v else float(a.sum())
    z_total = float(a.sum())
    if reduction != "mean":
        ce_total = z_total = 1.0
    void = reduction == "mean" and (ce_total == 0 or not keep.any())
    ce = a / ce_total if ce_total else 0 * a
    z = z_loss * (a / z_total if z_total else 0 * a)
    return Rows(rows, u, slope, curve, y, wy, keep, ce, z), labels, void


def _restore(rows: Float, shape: Sequence[int], axis: int) -> Float:
    """Rows (N, V) back to the caller's shape and class axis."""
    moved = list(shape)
    moved.append(moved.pop(axis))
    return np.moveaxis(rows.reshape(moved), -1, axis)


def _blank(p: Rows, void: bool, rows: Float) -> Float:
    """Ignored rows are exactly zero, whatever their logits hold; so is the gradient of a mean over nothing."""
    return np.where(p.keep[:, None] & (not void), rows, 0.0)


# --- the public functions --------------------------------------------------------------------------------------------


def softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Float:
    """``S = exp(u − max u) / Σ exp(u − max u)``."""
    u = _transform(np.asarray(logits, dtype=np.float64), logit_scale, softcap, temperature)[0]
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.exp(u - u.max(axis=axis, keepdims=True, initial=-np.inf))
        return np.asarray(e / e.sum(axis=axis, keepdims=True))


def log_softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Float:
    """``log S = (u − m) − log Σ exp(u − m)``, which does not lose the small differences that ``u − lse`` loses."""
    u = _transform(np.asarray(logits, dtype=np.float64), logit_scale, softcap, temperature)[0]
    with np.errstate(invalid="ignore", over="ignore"):
        d = np.moveaxis(u - u.max(axis=axis, keepdims=True, initial=-np.inf), axis, -1)
        at_peak, rest = _split(np.exp(d))
        return np.moveaxis(d - np.log1p(rest + (at_peak - 1))[..., None], -1, axis)


def logsumexp(
    logits: ArrayLike,
    *,
    axis: int = -1,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Float:
    """``lse = m + log Σ exp(u − m)``; NaN for a row that is all −inf, as everywhere in softgrad."""
    u = _transform(np.asarray(logits, dtype=np.float64), logit_scale, softcap, temperature)[0]
    m = u.max(axis=axis, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        at_peak, rest = _split(np.exp(np.moveaxis(u - m, axis, -1)))
        return np.asarray(np.squeeze(m, axis) + np.log1p(rest + (at_peak - 1)))


def cross_entropy(logits: ArrayLike, targets: Any, **options: Any) -> Any:
    """The loss: a float for ``mean`` and ``sum``, one value a row for ``none``."""
    return cross_entropy_with_grad(logits, targets, **options)[0]


def cross_entropy_with_grad(logits: ArrayLike, targets: Any, **options: Any) -> tuple[Any, Float]:
    """The loss and ``∂L/∂o``; with ``none`` the gradient of each row's loss by its own logits."""
    p, _, void = _problem(logits, targets, **options)
    axis, shape = options.get("axis", -1), list(np.shape(logits))
    stats = row_statistics(p.u, p.wy)
    ce, lse = loss_from_statistics(stats)
    with np.errstate(invalid="ignore", over="ignore"):
        rows = np.where(p.keep, p.ce * ce + p.z * np.where(p.z == 0, 0.0, lse) ** 2, 0.0)
        grad = p.slope * gradient_from_statistics(p.u, p.wy, stats, p.ce, p.z)
    grad = _restore(_blank(p, void, grad), shape, axis)
    if options.get("reduction", "mean") == "none":
        shape.pop(axis)
        return rows.reshape(shape), grad
    return (float("nan") if void else float(rows.sum())), grad


def cross_entropy_hvp(logits: ArrayLike, targets: Any, vector: ArrayLike, **options: Any) -> Float:
    """``H v`` of the loss, row by row."""
    p, _, void = _problem(logits, targets, **options)
    axis = options.get("axis", -1)
    v = np.moveaxis(np.asarray(vector).astype(np.float64), axis, -1).reshape(p.u.shape)
    rows = hessian_product(p, row_statistics(p.u, p.wy), v)
    return _restore(_blank(p, void, rows), np.shape(logits), axis)


def softmax_jacobian(logits: ArrayLike, *, axis: int = -1) -> Float:
    """``J = diag(S) − S Sᵀ`` of each row, in two trailing axes."""
    s = np.moveaxis(softmax(logits, axis=axis), axis, -1)
    return np.asarray(s[..., :, None] * (np.eye(s.shape[-1]) - s[..., None, :]))


def softmax_jvp(
    logits: ArrayLike,
    vector: ArrayLike,
    *,
    axis: int = -1,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Float:
    """``∂S/∂o v = J D v = S∘(D v) − S (S·D v)``; without a softcap ``J D`` is symmetric."""
    u, slope, _ = _transform(np.asarray(logits, dtype=np.float64), logit_scale, softcap, temperature)
    s, v = softmax(u, axis=axis), slope * np.asarray(vector, dtype=np.float64)
    return np.asarray(s * (v - (s * v).sum(axis=axis, keepdims=True)))


def prediction_stats(logits: ArrayLike, targets: Any = None, **options: Any) -> dict[str, Any]:
    """Log-sum-exp, target log-probability, arg-max, rank of the target and entropy of each row."""
    axis = options.get("axis", -1)
    shape = list(np.shape(logits))
    shape.pop(axis)
    blind = targets is None
    if blind:
        options["ignore_index"] = None
    p, labels, _ = _problem(logits, np.zeros(shape, dtype=np.int64) if blind else targets, **options)
    stats = row_statistics(p.u, p.y)
    nll, lse = loss_from_statistics(stats)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        entropy = stats.log_sum - stats.moment / stats.sumexp
    entropy = np.where(np.isnan(lse), np.nan, entropy)
    key = p.o * np.sign(options.get("logit_scale", 1.0))
    sound = p.keep & ~np.isnan(lse)
    argmax = np.where(sound, np.where(np.isnan(key), -np.inf, key).argmax(axis=1), -1)
    rank = np.full(len(key), -1)
    if labels is not None and not blind:
        own = np.take_along_axis(key, (labels * p.keep)[:, None], axis=1)
        rank = np.where(sound, (key > own).sum(axis=1), -1)
    nan = np.where(p.keep, 0.0, np.nan)
    log_prob = np.full(len(key), np.nan) if blind else np.where(p.keep, -nll, np.nan)
    out = {"lse": lse + nan, "log_prob": log_prob, "argmax": argmax, "rank": rank, "entropy": entropy + nan}
    return {name: value.reshape(shape) for name, value in out.items()}


def linear_cross_entropy(
    x: ArrayLike, weight: ArrayLike, targets: Any, *, bias: ArrayLike | None = None, **options: Any
) -> Any:
    """The loss of the logits ``o = x Wᵀ + b``."""
    return linear_cross_entropy_with_grad(x, weight, targets, bias=bias, **options)[0]


def linear_cross_entropy_with_grad(
    x: ArrayLike, weight: ArrayLike, targets: Any, *, bias: ArrayLike | None = None, **options: Any
) -> tuple[Any, tuple[Float, Float, Float]]:
    """The loss and its gradients ``G W``, ``Gᵀ x`` and ``Σ_i G_i`` with ``G = S − y``: the chain rule."""
    x, weight = np.asarray(x).astype(np.float64), np.asarray(weight).astype(np.float64)
    logits = x @ weight.T + (0.0 if bias is None else np.asarray(bias).astype(np.float64))
    loss, g = cross_entropy_with_grad(logits, targets, **options)
    flat = g.reshape(-1, g.shape[-1])
    return loss, (g @ weight, flat.T @ x.reshape(-1, x.shape[-1]), flat.sum(axis=0))
