"""The head on NumPy arrays of logits: distributions, losses, gradients, curvature, by-products."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from softgrad._core import backend
from softgrad._core.arrays import STORAGE, Array, Output, as_rows, as_vectors
from softgrad._core.backend import Storage
from softgrad._core.call import PredictionStats, make_head, reduce, run, settle
from softgrad._core.options import LOSS, TRANSFORM, LossOptions, Options, TransformOptions, documented, options_of
from softgrad._core.schedule import run_distribution, run_head, run_rows
from softgrad._core.targets import NO_TARGETS, as_targets
from softgrad._core.threads import INLINE_ELEMENTS, resolve_threads

__all__ = [
    "cross_entropy",
    "cross_entropy_hvp",
    "cross_entropy_with_grad",
    "log_softmax",
    "logsumexp",
    "prediction_stats",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
]

_PLAIN = Options()


def _transform_options(function: str, given: Any) -> Options:
    if not given:
        return _PLAIN
    for name in given:
        if name not in TRANSFORM:
            raise TypeError(
                f"{function}() got an unexpected keyword argument {name!r}; its options are {', '.join(TRANSFORM)}"
            )
    return Options(**given)


def _distribution(
    logits: ArrayLike, logarithm: bool, axis: int, out: Array | None, n_threads: int | None, options: Options
) -> Array:
    if out is None and n_threads is None and axis == -1 and type(logits) is np.ndarray:
        # A small array that needs no preparation: a row of ten logits takes longer to prepare than to compute.
        storage = STORAGE.get(logits.dtype)
        if 0 < logits.size < INLINE_ELEMENTS and storage not in (None, Storage.bfloat16):
            flags = logits.flags
            if flags.c_contiguous and flags.aligned and logits.ndim:
                result = np.empty_like(logits)
                record = None if options is _PLAIN else options.record()
                backend.kernels().distribute(logits, result, storage, logarithm, record)
                return result
    rows = as_rows(logits, axis)
    threads = resolve_threads(n_threads, rows.array.size)
    to = Output(rows, out)
    head = make_head(rows, NO_TARGETS, options)
    n, cols = rows.array.shape
    run_distribution(head, rows.storage, logarithm, to.rows, n, cols, threads)
    return to.deliver()


@documented("axis", *TRANSFORM, "out", "n_threads")
def softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    out: Array | None = None,
    n_threads: int | None = None,
    **options: Unpack[TransformOptions],
) -> Array:
    """Probabilities ``S_i = exp(u_i) / Σ_k exp(u_k)``.

    Replaces ``e = np.exp(u - u.max(axis, keepdims=True)); e / e.sum(axis, keepdims=True)``.

    Parameters
    ----------
    {logits}
    {options}

    Returns
    -------
    ndarray
        Shape and dtype of the logits.  Probabilities below the smallest normal number of the arithmetic type (1e-38 in
        float32) are 0.  A row that is all −inf, or holds +inf or NaN, is NaN.

    Raises
    ------
    ValueError
        If an option is outside its range, the axis does not exist, or ``out`` does not fit.
    TypeError
        If the logits are not real numbers.

    Examples
    --------
    >>> import softgrad
    >>> softgrad.softmax([2.0, 1.0, 0.1]).round(3)
    array([0.659, 0.242, 0.099])

    References
    ----------
    Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990, equation 12.
    """
    return _distribution(logits, False, axis, out, n_threads, _transform_options("softmax", options))


@documented("axis", *TRANSFORM, "out", "n_threads")
def log_softmax(
    logits: ArrayLike,
    *,
    axis: int = -1,
    out: Array | None = None,
    n_threads: int | None = None,
    **options: Unpack[TransformOptions],
) -> Array:
    """Log-probabilities ``log S_i = (u_i − m) − log Σ_k exp(u_k − m)`` with ``m = max u``.

    Replaces ``d = u - u.max(axis, keepdims=True); d - np.log(np.exp(d).sum(axis, keepdims=True))``: unlike ``u − lse``
    it keeps the digits of logits with a large common offset.

    Parameters
    ----------
    {logits}
    {options}

    Returns
    -------
    ndarray
        Shape and dtype of the logits; −inf where a logit is −inf.

    Raises
    ------
    ValueError
        If an option is outside its range, the axis does not exist, or ``out`` does not fit.
    TypeError
        If the logits are not real numbers.

    Examples
    --------
    >>> import softgrad
    >>> softgrad.log_softmax([1e30, 1e30])
    array([-0.69314718, -0.69314718])

    References
    ----------
    Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions", 2021, section 4.
    """
    return _distribution(logits, True, axis, out, n_threads, _transform_options("log_softmax", options))


@documented("axis", *TRANSFORM, "n_threads")
def logsumexp(
    logits: ArrayLike, *, axis: int = -1, n_threads: int | None = None, **options: Unpack[TransformOptions]
) -> Any:
    """Log-sum-exp ``m + log1p Σ_{k≠i} exp(u_k − m)`` with ``m = u_i = max u``.

    Replaces ``m = u.max(axis); m + np.log(np.exp(u - m[..., None]).sum(axis))``, which gives 0 for ``[0, -40]``.

    Parameters
    ----------
    {logits}
    {options}

    Returns
    -------
    ndarray or scalar
        Shape of the logits without the class axis; float64 for float64 logits, else float32.  NaN for a row that is
        all −inf (SciPy's `logsumexp` gives −inf there), or holds +inf or NaN.  Values near 0 keep their digits.

    Raises
    ------
    ValueError
        If an option is outside its range, or the axis does not exist.
    TypeError
        If the logits are not real numbers.

    Examples
    --------
    >>> import softgrad
    >>> float(softgrad.logsumexp([0.0, 0.0]))
    0.6931471805599453
    >>> f"{softgrad.logsumexp([0.0, -40.0]):.4g}"
    '4.248e-18'

    References
    ----------
    Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions", 2021, equation 1.4.
    """
    rows = as_rows(logits, axis)
    threads = resolve_threads(n_threads, rows.array.size)
    head = make_head(rows, NO_TARGETS, _transform_options("logsumexp", dict(options)))
    n, cols = rows.array.shape
    lse = np.empty(n)
    outputs = backend.kernels().Outputs(n, cols, rows.storage, lse=lse)
    run_head(head, outputs, n, cols, threads, by_products=False, grad=False)
    return lse.reshape(rows.outer).astype(rows.result_dtype)[()]


@documented("axis", *LOSS, "stats", "n_threads")
def cross_entropy(
    logits: ArrayLike,
    targets: Any,
    *,
    axis: int = -1,
    stats: PredictionStats | None = None,
    n_threads: int | None = None,
    **options: Unpack[LossOptions],
) -> Any:
    """Cross-entropy ``L = −Σ_i y_i log S_i`` of softmax probabilities, from the logits.

    Replaces ``-np.log(softmax(logits))[np.arange(n), targets].mean()``, and reads the logits once.

    Parameters
    ----------
    {logits}
    {targets}
    {options}

    Returns
    -------
    float or ndarray
        In nats; float64 for float64 logits, else float32.  NaN for a mean with zero total weight.

    Raises
    ------
    ValueError
        If a label is outside [0, V) and not ``ignore_index`` (the first is named, nothing is computed), shapes do not
        fit, or an option is outside its range.
    TypeError
        If logits or targets are not numbers, or an option is unknown.

    Examples
    --------
    >>> import softgrad
    >>> softgrad.cross_entropy([[2.0, 1.0, 0.1]], [0]).round(4)
    np.float64(0.417)
    >>> softgrad.cross_entropy([[2.0, 1.0, 0.1]], [[0.5, 0.5, 0.0]], reduction="sum").round(4)
    np.float64(0.917)

    References
    ----------
    Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.108.
    """
    checked = options_of("cross_entropy", dict(options))
    rows = as_rows(logits, axis)
    threads = resolve_threads(n_threads, rows.array.size)
    outcome = run(rows, as_targets(targets, rows), checked, threads, stats=stats)
    return reduce(outcome, rows, checked)


@documented("axis", *LOSS, "out", "stats", "n_threads")
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: Any,
    *,
    axis: int = -1,
    out: Array | None = None,
    stats: PredictionStats | None = None,
    n_threads: int | None = None,
    **options: Unpack[LossOptions],
) -> tuple[Any, Array]:
    """Cross-entropy and its gradient by the logits, ``∂L/∂o_j = −y_j + S_j Σ_i y_i``: ``S − y`` where ``Σ y = 1``.

    Replaces ``p = softmax(logits); loss = -np.log(p[np.arange(n), y]).mean(); p[np.arange(n), y] -= 1; p /= n``.

    Parameters
    ----------
    {logits}
    {targets}
    {options}

    Returns
    -------
    loss : float or ndarray
        As `cross_entropy` returns it.
    gradient : ndarray
        Shape and dtype of the logits (``out`` if it was given); with ``reduction="none"`` the gradient of each row's
        own loss.  The gradient of a mean with zero total weight is exactly 0.

    Raises
    ------
    ValueError
        As `cross_entropy`, and if ``out`` does not fit; ``out`` is then left unchanged.
    TypeError
        If logits or targets are not numbers, or an option is unknown.

    Examples
    --------
    >>> import softgrad
    >>> loss, gradient = softgrad.cross_entropy_with_grad([[2.0, 1.0, 0.1]], [0])
    >>> gradient.round(3)  # S − y
    array([[-0.341,  0.242,  0.099]])

    References
    ----------
    Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.109.
    """
    checked = options_of("cross_entropy_with_grad", dict(options))
    rows = as_rows(logits, axis)
    threads = resolve_threads(n_threads, rows.array.size)
    prepared = as_targets(targets, rows)
    aliases = tuple(part for part in (prepared.labels, prepared.values) if part is not None)
    result = Output(rows, out, may_alias=aliases)
    outcome = run(rows, prepared, checked, threads, grad=result.rows, stats=stats)
    return reduce(outcome, rows, checked), result.deliver()


@documented("axis", *LOSS, "out", "n_threads")
def cross_entropy_hvp(
    logits: ArrayLike,
    targets: Any,
    vector: ArrayLike,
    *,
    axis: int = -1,
    out: Array | None = None,
    n_threads: int | None = None,
    **options: Unpack[LossOptions],
) -> Array:
    """Hessian-vector product ``H v`` of the cross-entropy by the logits: ``(Σ y) (S∘v − S (S·v))`` for each row.

    Replaces ``J = np.diag(S) - np.outer(S, S); y.sum() * J @ v`` without the V×V matrix.

    Parameters
    ----------
    {logits}
    {targets}
    vector : array_like
        ``v``, of the logits' shape.
    {options}

    Returns
    -------
    ndarray
        Shape and dtype of the logits.  With softcap, temperature, scale and z-loss it is the Hessian of the whole loss:
        ``D [(t + 2λ lse) J + 2λ S Sᵀ] D v + ∂ℓ/∂u ∘ ∂²u/∂o² ∘ v`` with ``D = ∂u/∂o``.

    Raises
    ------
    ValueError
        As `cross_entropy_with_grad`, and if the vector has another shape.
    TypeError
        If logits or targets are not numbers, or an option is unknown.

    Examples
    --------
    >>> import softgrad
    >>> softgrad.cross_entropy_hvp([[0.0, 0.0]], [0], [[1.0, 0.0]])
    array([[ 0.25, -0.25]])

    References
    ----------
    Böhning, "Multinomial logistic regression algorithm", 1992, equation 2.1.
    """
    checked = options_of("cross_entropy_hvp", dict(options))
    rows = as_rows(logits, axis)
    threads = resolve_threads(n_threads, rows.array.size)
    v = as_vectors(vector, rows)
    prepared = as_targets(targets, rows)
    aliases = (v, *(part for part in (prepared.labels, prepared.values) if part is not None))
    result = Output(rows, out, may_alias=aliases)
    head = make_head(rows, prepared, checked)
    n, cols = rows.array.shape
    if settle(head, rows, prepared, checked).empty_mean:
        result.rows[...] = 0
    else:
        run_rows(lambda lo, hi: head.product(v, result.rows, lo, hi), n, cols, threads)
    return result.deliver()


@documented("axis")
def softmax_jacobian(logits: ArrayLike, *, axis: int = -1) -> Array:
    """Jacobian of the softmax, ``∂S_i/∂o_j = S_i (δ_ij − S_j)``, as a dense matrix for each row.

    Replaces ``np.diag(S) - np.outer(S, S)``; for small V and for teaching: `softmax_jvp` needs no V×V matrix.

    Parameters
    ----------
    {logits}
    {options}

    Returns
    -------
    ndarray
        Shape of the logits without the class axis, and (V, V); dtype of the logits.  Symmetric; rows sum to 0.

    Raises
    ------
    ValueError
        If the axis does not exist.
    TypeError
        If the logits are not real numbers.

    Examples
    --------
    >>> import softgrad
    >>> softgrad.softmax_jacobian([0.0, 0.0])
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])

    References
    ----------
    Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.106.
    """
    s = np.moveaxis(softmax(logits, axis=axis), axis, -1)
    wide: Any = s.astype(np.float64 if s.dtype == np.float64 else np.float32)
    classes = np.arange(s.shape[-1])
    jacobian = -wide[..., :, None] * wide[..., None, :]
    jacobian[..., classes, classes] = wide * (1 - wide)
    return np.asarray(jacobian.astype(s.dtype))


@documented("axis", *TRANSFORM, "out", "n_threads")
def softmax_jvp(
    logits: ArrayLike,
    vector: ArrayLike,
    *,
    axis: int = -1,
    out: Array | None = None,
    n_threads: int | None = None,
    **options: Unpack[TransformOptions],
) -> Array:
    """Jacobian-vector product of the softmax, ``∂S/∂o v = S∘(D v) − S (S·D v)`` with ``D = ∂u/∂o``.

    Replaces ``S * (v - (S * v).sum(axis, keepdims=True))``.  Without a softcap the Jacobian is symmetric, so this is
    the vector-Jacobian product as well.

    Parameters
    ----------
    {logits}
    vector : array_like
        ``v``, of the logits' shape.
    {options}

    Returns
    -------
    ndarray
        Shape and dtype of the logits.

    Raises
    ------
    ValueError
        If an option is outside its range, or shapes do not fit.
    TypeError
        If the logits are not real numbers.

    Examples
    --------
    >>> import softgrad
    >>> softgrad.softmax_jvp([0.0, 0.0], [1.0, 0.0])
    array([ 0.25, -0.25])

    References
    ----------
    Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.106.
    """
    checked = _transform_options("softmax_jvp", dict(options))
    rows = as_rows(logits, axis)
    threads = resolve_threads(n_threads, rows.array.size)
    v = as_vectors(vector, rows)
    result = Output(rows, out, may_alias=(v,))
    head = make_head(rows, NO_TARGETS, checked)
    n, cols = rows.array.shape
    run_rows(lambda lo, hi: head.product(v, result.rows, lo, hi), n, cols, threads)
    return result.deliver()


@documented("axis", "sample_weight", "ignore_index", *TRANSFORM, "n_threads")
def prediction_stats(
    logits: ArrayLike,
    targets: Any = None,
    *,
    axis: int = -1,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    n_threads: int | None = None,
    **options: Unpack[TransformOptions],
) -> PredictionStats:
    """Log-sum-exp, target log-probability, arg-max, rank of the target and entropy of each row, in one pass.

    Replaces ``logsumexp(u)``, ``log_softmax(u)[y]``, ``u.argmax()``, ``(u > u[y]).sum()`` and ``-(S * log S).sum()``.

    Parameters
    ----------
    {logits}
    targets : array_like or tuple, optional
        Labels, soft targets or sparse soft targets, as in `cross_entropy`.
    {options}

    Returns
    -------
    PredictionStats
        Named tuple of arrays, of the logits' shape without the class axis; floats are float64 for float64 logits,
        else float32.

    Raises
    ------
    ValueError
        If a label is outside [0, V), shapes do not fit, or an option is outside its range.
    TypeError
        If logits or targets are not numbers, or an option is unknown.

    Examples
    --------
    >>> import softgrad
    >>> stats = softgrad.prediction_stats([[2.0, 1.0, 0.1]], [1])
    >>> int(stats.argmax[0]), int(stats.rank[0])
    (0, 1)

    References
    ----------
    Cover and Thomas, "Elements of Information Theory", 2006, equation 2.1 (entropy).
    """
    checked = _transform_options("prediction_stats", dict(options))
    rows = as_rows(logits, axis)
    threads = resolve_threads(n_threads, rows.array.size)
    prepared = NO_TARGETS if targets is None else as_targets(targets, rows)
    full = Options(
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        logit_scale=checked.logit_scale,
        softcap=checked.softcap,
        temperature=checked.temperature,
        reduction="none",
    )
    stats = PredictionStats.empty(rows.outer, rows.result_dtype)
    run(rows, prepared, full, threads, stats=stats, losses=False)
    return stats
