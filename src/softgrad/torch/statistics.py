"""By-products of a batch as tensors: log-sum-exp, target log-probability, arg-max, rank and entropy of each row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softgrad._core.call import PredictionStats
from softgrad.torch import _formulas
from softgrad.torch._call import (
    Call,
    check_classes,
    check_logits,
    check_targets,
    check_weights,
    class_axis,
    foreign,
    make_call,
    soft_ignore,
    split_target,
)
from softgrad.torch._dispatch import CodePath, head_rows, logit_rows, logits_path
from softgrad.torch._documented import TRANSFORM, documented
from softgrad.torch._formulas import RowMask, RowValues, compute_dtype
from softgrad.torch._head import Plan
from softgrad.torch.linear import checked_impl, flat_rows, layer_of

__all__ = ["linear_prediction_stats", "prediction_stats"]


@documented("ignore_index", "sample_weight", *TRANSFORM, "n_threads")
def prediction_stats(
    input: Tensor,  # noqa: A002 - PyTorch's name
    target: Any = None,
    *,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    logit_scale: float | Tensor = 1.0,
    softcap: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    n_threads: int | None = None,
) -> PredictionStats:
    """Log-sum-exp, target log-probability, arg-max, rank of the target and entropy of each row, in one pass.

    Replaces ``logsumexp(u)``, ``log_softmax(u)[y]``, ``u.argmax()``, ``(u > u[y]).sum()`` and ``-(S * log S).sum()``.

    Parameters
    ----------
    {input}
    {target}
    {options}

    Returns
    -------
    PredictionStats
        Named tuple of tensors, one entry a row: ``lse``, ``log_prob``, ``argmax``, ``rank``, ``entropy``; the
        floats are float64 for float64 input, else float32.  Ignored and undefined rows hold NaN and −1.

    Raises
    ------
    IndexError
        For a label outside [0, V) that is not ``ignore_index``.
    ValueError
        For shapes or devices that do not fit, or an option outside its range.
    TypeError
        For tensors that are no numbers.

    Notes
    -----
    ``lse``, ``log_prob`` and ``entropy`` can be differentiated.

    Examples
    --------
    >>> import torch
    >>> from softgrad.torch import prediction_stats
    >>> stats = prediction_stats(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([1]))
    >>> stats.argmax, stats.rank
    (tensor([0]), tensor([1]))

    References
    ----------
    Cover and Thomas, "Elements of Information Theory", 2006, equation 2.1 (entropy).
    """
    if type(input) is not Tensor and (found := foreign(input, prediction_stats)) is not None:
        return found(input, target)
    check_logits(input)
    axis = class_axis(input)
    check_classes(input, axis)
    target, values = split_target(target)
    call = _call(axis, target, values, ignore_index, logit_scale, softcap, temperature, n_threads)
    _check(target, values, sample_weight, input.shape, axis, call, input.device)
    path = logits_path((input, target, values, None, sample_weight), call)
    mask = _mask(sample_weight)
    if path is CodePath.FORMULAS:
        _formulas.check_labels(target, values, input.shape[axis], call.options.ignore_index)
        rows = _formulas.row_values(input, target, values, None, call.formula_options, axis, *mask)
    else:
        rows = logit_rows((input, target, values, None), call, path, active=mask.active, by_products=True)
    return _delivered(rows, target, values, mask, call, compute_dtype(input.dtype))


@documented("ignore_index", "sample_weight", *TRANSFORM, "max_memory", "impl", "n_threads")
def linear_prediction_stats(
    input: Tensor,  # noqa: A002 - PyTorch's name
    linear_weight: Tensor,
    target: Any = None,
    *,
    linear_bias: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    logit_scale: float | Tensor = 1.0,
    softcap: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    max_memory: int | None = None,
    impl: str | None = None,
    n_threads: int | None = None,
) -> PredictionStats:
    """By-products of the logits ``x Wᵀ + b``, without the N×V matrix: `prediction_stats` of a linear head.

    Replaces ``prediction_stats(torch.nn.functional.linear(input, linear_weight, linear_bias), target)``.

    Parameters
    ----------
    {layer}
    {options}

    Returns
    -------
    PredictionStats
        Named tuple of tensors, one entry a row: ``lse``, ``log_prob``, ``argmax``, ``rank``, ``entropy``; the
        floats are float64 for float64 input, else float32.  Ignored and undefined rows hold NaN and −1.

    Raises
    ------
    IndexError
        For a label outside [0, V) that is not ``ignore_index``.
    ValueError
        For shapes or devices that do not fit, or an option outside its range.
    TypeError
        For tensors that are no numbers.

    Notes
    -----
    ``lse``, ``log_prob`` and ``entropy`` can be differentiated.

    Examples
    --------
    >>> import torch
    >>> from softgrad.torch import linear_prediction_stats
    >>> linear_prediction_stats(torch.ones(1, 2), torch.zeros(4, 2)).entropy  # log 4
    tensor([1.3863])

    References
    ----------
    Cover and Thomas, "Elements of Information Theory", 2006, equation 2.1 (entropy).
    """
    if type(input) is not Tensor and (found := foreign(input, linear_prediction_stats)) is not None:
        return found(input, linear_weight, target)
    x, linear_weight, linear_bias = layer_of(input, linear_weight, linear_bias)
    if linear_weight.ndim != 2:
        raise ValueError(f"linear_weight has shape {tuple(linear_weight.shape)}; it is (V, D)")
    target, values = split_target(target)
    call = _call(1, target, values, ignore_index, logit_scale, softcap, temperature, n_threads)
    outer, classes = tuple(x.shape[:-1]), linear_weight.shape[0]
    _check(target, values, sample_weight, (*outer, classes), len(outer), call, x.device)
    checked_impl(impl)
    _formulas.check_labels(target, values, classes, call.options.ignore_index)
    flat, target, values, sample_weight = flat_rows(x, classes, target, values, sample_weight)
    mask = _mask(sample_weight)
    plan = Plan(max_memory, None, impl)
    rows = head_rows((flat, linear_weight, linear_bias, target, values, None), call, plan, mask, by_products=True)
    stats = _delivered(rows, target, values, mask, call, compute_dtype(x.dtype))
    return PredictionStats(*(part.reshape(outer) for part in stats))


def _call(
    axis: int, target: Any, values: Any, ignore_index: int, logit_scale: Any, softcap: Any, temperature: Any,
    n_threads: int | None,
) -> Call:  # fmt: skip
    ignored = None if target is None else soft_ignore(target, values, ignore_index)
    return make_call(
        axis, torch.float32, ignored, "none", logit_scale=logit_scale, softcap=softcap, temperature=temperature,
        n_threads=n_threads,
    )  # fmt: skip


def _check(target: Any, values: Any, a: Any, shape: Any, axis: int, call: Call, device: torch.device) -> None:
    if target is not None:
        check_targets(target, values, shape, axis, call.options.ignore_index, device)
    check_weights(None, a, shape, axis, device)


def _mask(sample_weight: Tensor | None) -> RowMask:
    return RowMask() if sample_weight is None else RowMask(active=sample_weight != 0)


def _delivered(
    rows: RowValues, target: Any, values: Any, mask: RowMask, call: Call, dtype: torch.dtype
) -> PredictionStats:
    """Return row values as by-products; the log-probability of an ignored row, and without a target, is NaN."""
    log_prob = -rows.ce
    if target is None:
        log_prob = torch.full_like(rows.lse.detach(), math.nan)
    else:
        ignored = None if mask.active is None else ~mask.active
        if call.options.ignore_index is not None and _formulas.is_labels(target, values):
            skipped = _formulas.whole_numbers(target) == call.options.ignore_index
            ignored = skipped if ignored is None else ignored | skipped
        if ignored is not None:
            log_prob = torch.where(ignored, math.nan, log_prob)
    return PredictionStats(rows.lse.to(dtype), log_prob.to(dtype), rows.argmax, rows.rank, rows.entropy.to(dtype))
