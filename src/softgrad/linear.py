"""The linear head: loss and gradients from ``(x, weight, bias)``, without the N×V matrix of logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from softgrad._core.arrays import Array, LogitRows, check_writable, plain, storage_of
from softgrad._core.backend import Storage
from softgrad._core.call import ByProducts, Outcome, PredictionStats, reduce, refuse_useless
from softgrad._core.linear_tiles import (
    HeadParts,
    HeadTiles,
    LayerArrays,
    LinearGradients,
    TileSizes,
    contiguous,
    loss_and_gradients,
)
from softgrad._core.options import LOSS, LossOptions, Options, documented, options_of
from softgrad._core.products import NUMPY
from softgrad._core.targets import TargetArrays, as_targets, label_error
from softgrad._core.threads import resolve_threads
from softgrad._core.weights import class_weights, row_weights

__all__ = ["LinearGradients", "linear_cross_entropy", "linear_cross_entropy_with_grad"]

NAMES = ("x", "weight", "bias")


def _layer(x: Any, weight: Any, bias: Any) -> tuple[LayerArrays, LogitRows]:
    """Validate the arrays of a linear layer; return them flattened, and the rows of the logits that they stand for."""
    x, weight = plain(x, "x"), plain(weight, "weight")
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
        bias = plain(bias, "bias")
        if bias.dtype.kind in "iu":
            bias = bias.astype(x.dtype)
        if bias.shape != weight.shape[:1] or bias.dtype != x.dtype:
            raise ValueError(
                f"bias has shape {bias.shape} and dtype {bias.dtype}; "
                f"one number a class has {weight.shape[:1]} and {x.dtype}"
            )
    outer, classes = x.shape[:-1], weight.shape[0]
    flat = contiguous(x.reshape(int(np.prod(outer, dtype=np.int64)), x.shape[-1]))
    kind = Storage.float64 if storage is Storage.float64 else Storage.float32
    compute = np.dtype(np.float64 if kind is Storage.float64 else np.float32)
    unseen = np.broadcast_to(np.zeros((1, classes), compute), (len(flat), classes))
    rows = LogitRows(unseen, kind, (*outer, classes), len(outer), compute)
    return LayerArrays(flat, contiguous(weight), bias, compute), rows


def _walk(
    layer: LayerArrays,
    rows: LogitRows,
    targets: TargetArrays,
    options: Options,
    max_memory: int | None,
    n_threads: int,
    grads: LinearGradients,
    stats: PredictionStats | None,
) -> Outcome:
    """Compute the loss, and the gradients that have memory in ``grads``."""
    refuse_useless(targets, options)
    (n, depth), classes = layer.x.shape, len(layer.weight)
    sizes = TileSizes.of(n, depth, classes, layer.compute.itemsize, layer.converts, max_memory)
    parts = HeadParts(
        rows.storage, targets, options.record(), class_weights(options.class_weight, rows),
        row_weights(options.sample_weight, rows.outer), classes=classes,
    )  # fmt: skip
    by_products = ByProducts(stats, rows, tuple(grads))
    losses, empty_mean = loss_and_gradients(
        HeadTiles(layer, sizes, n_threads, NUMPY), parts, options.reduction == "mean", grads,
        lambda row: label_error(targets, row, rows, classes), None if stats is None else by_products.buffers,
    )  # fmt: skip
    by_products.deliver()
    return Outcome(losses, empty_mean)


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
        As `cross_entropy`, if shapes do not fit, and if ``max_memory`` is too small for one row.
    TypeError
        If dtypes differ or are not supported, or an option is unknown.

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
    layer, rows = _layer(x, weight, bias)
    nothing = LinearGradients(None, None, None)
    outcome = _walk(layer, rows, as_targets(targets, rows), checked, max_memory, threads, nothing, stats)
    return reduce(outcome, rows, checked)


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
        Arguments whose gradients are computed; the others are None.
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
        If dtypes differ or are not supported, or an option is unknown.

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
    layer, rows = _layer(x, weight, bias)
    prepared = as_targets(targets, rows)
    wanted = {with_respect_to} if isinstance(with_respect_to, str) else set(with_respect_to)
    if not wanted <= set(NAMES):
        raise ValueError(f"with_respect_to={tuple(with_respect_to)!r}: choose from {', '.join(NAMES)}")
    results = _results(layer, np.shape(x), wanted, out)
    accumulators = _accumulators(layer, results)
    outcome = _walk(layer, rows, prepared, checked, max_memory, threads, accumulators, stats)
    for total, result in zip(accumulators, results, strict=True):
        if total is not None and result is not None and total.size and not np.may_share_memory(total, result):
            result[...] = total
    return reduce(outcome, rows, checked), results


def _results(
    layer: LayerArrays, shape: tuple[int, ...], wanted: set[str], out: LinearGradients | None
) -> LinearGradients:
    """Return the arrays of the gradients: the caller's, or fresh ones."""
    dtype = layer.x.dtype
    shapes = {"x": shape, "weight": layer.weight.shape, "bias": layer.weight.shape[:1]}
    arrays: list[Array | None] = []
    for name in NAMES:
        given = None if out is None else getattr(out, name)
        if name not in wanted or (name == "bias" and layer.bias is None):
            arrays.append(None)
            continue
        if given is None:
            arrays.append(np.empty(shapes[name], dtype))
            continue
        check_writable(given, f"out.{name}")
        if given.shape != shapes[name] or given.dtype != dtype:
            raise ValueError(f"out.{name} must be an array of shape {shapes[name]} and dtype {dtype}")
        if not given.flags.c_contiguous:
            raise ValueError(f"out.{name} must be C-contiguous")
        if any(a is not None and np.may_share_memory(given, a) for a in (*arrays, layer.x, layer.weight, layer.bias)):
            raise ValueError(f"out.{name} shares memory with an input or with another gradient")
        arrays.append(given)
    return LinearGradients(*arrays)


def _accumulators(layer: LayerArrays, results: LinearGradients) -> LinearGradients:
    """Return where tiles add up: the results themselves, or float32 for half precision."""
    flat = None if results.x is None else results.x.reshape(layer.x.shape)
    if not layer.converts:
        return LinearGradients(flat, results.weight, results.bias)
    zeros = [None if r is None else np.empty(r.shape, layer.compute) for r in (results.weight, results.bias)]
    return LinearGradients(flat, *zeros)
