"""By-products of a batch, in one pass, as tensors: log-sum-exp, target log-probability, arg-max, rank, entropy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softgrad._core.call import PredictionStats, run
from softgrad._core.options import Options
from softgrad._core.targets import NO_TARGETS
from softgrad.torch import _composite, _tiled
from softgrad.torch._batch import STORAGE, row_weights_of, rows_of, targets_of, threads_for
from softgrad.torch._call import (
    call_of,
    check_logits,
    check_targets,
    check_weights,
    class_axis,
    number,
    overridden,
    refuse_dtensors,
    soft_ignore,
    split_target,
    stands_for_logits,
)
from softgrad.torch._composite import INFINITY, Row
from softgrad.torch._documented import TRANSFORM, documented
from softgrad.torch._function import transformed
from softgrad.torch._linear_function import Plan, accumulator, walk_tensors
from softgrad.torch.linear import checked_impl, flat_rows, layer_of
from softgrad.torch.loss import PLAIN, followed_scalars, in_forward_mode, scalar, soft_and_followed, traced

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def stats_rows(row: Row, labels: Tensor | None, blind: bool) -> Results:
    """The by-products in PyTorch's operations; derivatives follow lse, log_prob and entropy."""
    undefined = ~row.active | torch.isnan(row.log_s)
    nan = float("nan")
    d = torch.where((row.plain == 0) & (row.d == -INFINITY), 0, row.d)
    plain_log_prob = (row.plain * d).sum(-1) - row.plain.sum(-1) * row.log_s
    log_prob = torch.full_like(row.log_s, nan) if blind else torch.where(undefined, nan, plain_log_prob)
    e = torch.exp(row.d)
    open_d = torch.where(row.d == -INFINITY, 0, row.d)
    entropy = row.log_s - (e * open_d).sum(-1) / e.sum(-1)
    fixed = row.d.detach()
    argmax = torch.where(undefined, -1, fixed.argmax(-1))
    rank = torch.full_like(argmax, -1)
    if labels is not None:
        own = fixed.gather(-1, torch.where(row.active, labels, 0).long()[..., None])
        rank = torch.where(undefined, -1, (fixed > own).sum(-1))
    lse = torch.where(undefined, nan, row.peak + row.log_s)
    return lse, log_prob, argmax, rank, torch.where(undefined, nan, entropy)


class _Stats(torch.autograd.Function):
    """By-products from the kernels; their derivatives from the formulas above."""

    @staticmethod
    def forward(ctx: Any, native: Callable[..., Results], again: Callable[..., Results], *tensors: Any) -> Results:
        results = native(*tensors)
        ctx.again = again
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(results[2], results[3])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        tensors, needs = list(ctx.saved_tensors), ctx.needs_input_grad[2:]
        wanted = [i for i, need in enumerate(needs) if need]
        higher = torch.is_grad_enabled()
        if not higher:
            for i in wanted:
                tensors[i] = tensors[i].detach().requires_grad_()
        with torch.enable_grad():
            outputs = ctx.again(*tensors)
        pairs = [(o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None and o.requires_grad]
        grads: list[Any] = [None] * len(tensors)
        if pairs:
            found = torch.autograd.grad(
                [o for o, _ in pairs], [tensors[i] for i in wanted], [g for _, g in pairs],
                allow_unused=True, create_graph=higher,
            )  # fmt: skip
            for i, grad in zip(wanted, found, strict=True):
                grads[i] = grad
        return (None, None, *grads)


def _delivered(buffers: PredictionStats, shape: Any) -> Results:
    lse, log_prob, argmax, rank, entropy = (torch.from_numpy(b).reshape(shape) for b in buffers)
    return lse, log_prob, argmax, rank, entropy


@documented("ignore_index", "sample_weight", *TRANSFORM, "n_threads")
def prediction_stats(
    input: Tensor,  # noqa: A002 - PyTorch's name
    target: Any = None,
    *,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
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
    if stands_for_logits(input):
        return overridden(prediction_stats, input)
    refuse_dtensors(
        "prediction_stats", input=input, target=target, sample_weight=sample_weight, logit_scale=logit_scale,
        temperature=temperature,
    )  # fmt: skip
    check_logits(input)
    axis = class_axis(input)
    target, values = split_target(target) if target is not None else (None, None)
    scalars = followed_scalars(logit_scale=logit_scale, temperature=temperature)
    options, threads = _settings(target, values, ignore_index, logit_scale, softcap, temperature, n_threads, scalars)
    _check(target, values, sample_weight, input.shape, axis, options, input.device)
    labels = target if target is not None and values is None and not target.is_floating_point() else None
    blind = target is None

    def formulas(logits: Tensor, target: Any, values: Any, sample_weight: Any, *numbers: Tensor) -> Results:
        some = torch.zeros_like(logits.detach().movedim(axis, -1)[..., 0], dtype=torch.int64) if blind else target
        row = _composite.row_of(
            (logits, some, values, None, sample_weight), options, axis, dict(zip(scalars, numbers, strict=True))
        )
        return stats_rows(row, labels, blind)

    def kernels(logits: Tensor, target: Any, values: Any, sample_weight: Any) -> Results:
        rows = rows_of(logits, axis)
        buffers = PredictionStats.empty(rows.outer, rows.result_dtype)
        prepared = NO_TARGETS if target is None else targets_of(target, values, rows)
        a = row_weights_of(sample_weight)
        full = options if a is None else replace(options, sample_weight=a.reshape(rows.outer))
        try:
            run(rows, prepared, full, threads_for(threads, rows.array.size), stats=buffers, losses=False)
        except ValueError as error:
            raise IndexError(str(error).replace("targets", "target", 1)) from None
        return _delivered(buffers, rows.outer)

    tensors = (input, target, values, sample_weight)
    soft = target is not None and soft_and_followed(target, values)
    if scalars or soft or _elsewhere(input):
        if target is not None:
            _composite.check_labels(target, values, input.shape[axis], options)
        return PredictionStats(*formulas(*tensors, *scalars.values()))
    return PredictionStats(*_Stats.apply(kernels, formulas, *tensors))


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
    softcap: float | None = None,
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
    if stands_for_logits(input):
        return overridden(linear_prediction_stats, input)
    refuse_dtensors(
        "linear_prediction_stats", input=input, linear_weight=linear_weight, target=target, linear_bias=linear_bias,
        sample_weight=sample_weight, logit_scale=logit_scale, temperature=temperature,
    )  # fmt: skip
    x, linear_weight, linear_bias = layer_of(input, linear_weight, linear_bias)
    target, values = split_target(target) if target is not None else (None, None)
    scalars = followed_scalars(logit_scale=logit_scale, temperature=temperature)
    options, threads = _settings(target, values, ignore_index, logit_scale, softcap, temperature, n_threads, scalars)
    if linear_weight.ndim != 2:
        raise ValueError(f"linear_weight has shape {tuple(linear_weight.shape)}; it is (V, D)")
    outer, classes = tuple(x.shape[:-1]), linear_weight.shape[0]
    _check(target, values, sample_weight, (*outer, classes), len(outer), options, x.device)
    shaped = target
    flat, target, values, sample_weight = flat_rows(x, classes, target, values, sample_weight)
    checked_impl(impl)
    labelled = target is not None and values is None and not target.is_floating_point()
    blind = target is None
    # Rows with nothing to compare with are given a label, whose statistics are then left out.
    some = torch.zeros(len(flat), dtype=torch.int64, device=x.device) if blind else target

    def rows(x: Tensor, target: Any, values: Any, a: Any, weight: Tensor, bias: Any, *numbers: Tensor) -> Results:
        logits = torch.nn.functional.linear(x, weight, bias)
        row = _composite.row_of((logits, target, values, None, a), options, 1, dict(zip(scalars, numbers, strict=True)))
        return stats_rows(row, target if labelled else None, blind)

    def formulas(x: Tensor, target: Any, values: Any, a: Any, weight: Tensor, bias: Any, *numbers: Tensor) -> Results:
        edges = _tiled.edges_of(len(x), classes, max_memory)
        found = _tiled.map_rows(rows, edges, (x, target, values, a), (weight, bias, *numbers))
        lse, log_prob, argmax, rank, entropy = found
        return lse, log_prob, argmax, rank, entropy

    def kernels(x: Tensor, target: Any, values: Any, a: Any, weight: Tensor, bias: Any) -> Results:
        call = call_of(
            1, x.dtype, None if blind else options.ignore_index, "none", 0.0, False, options.logit_scale,
            options.softcap, options.temperature, 0.0, threads, False,
        )  # fmt: skip
        plan = Plan(call, max_memory, None, impl, accumulator(weight.dtype, None))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        buffers = PredictionStats.empty((len(x),), torch.empty(0, dtype=wide).numpy().dtype)
        walk_tensors(plan, (x, weight, bias, target, values, None, a), (False, False, False), stats=buffers)
        if blind:
            buffers.log_prob[...] = float("nan")
            buffers.rank[...] = -1
        return _delivered(buffers, (len(x),))

    tensors = (flat, some, values, sample_weight, linear_weight, linear_bias)
    soft = not blind and soft_and_followed(target, values)
    if scalars or soft or impl == "composite" or _elsewhere(flat):
        if not blind:
            _composite.check_labels(shaped, values, classes, options)
        found = formulas(*tensors, *scalars.values())
    else:
        try:
            found = _Stats.apply(kernels, formulas, *tensors)
        except IndexError:
            _composite.check_labels(shaped, values, classes, options)
            raise
    return PredictionStats(*(t.reshape(outer) for t in found))


def _settings(
    target: Any, values: Any, ignore_index: int, logit_scale: Any, softcap: Any, temperature: Any, n_threads: Any,
    scalars: dict[str, Tensor],
) -> tuple[Options, int | None]:  # fmt: skip
    ignored = None if target is None else soft_ignore(target, values, ignore_index)
    call = call_of(
        1, torch.float32, ignored, "none", 0.0, False, scalar("logit_scale", logit_scale, scalars),
        number("softcap", softcap), scalar("temperature", temperature, scalars), 0.0, n_threads, False,
    )  # fmt: skip
    return call.options, call.n_threads


def _check(target: Any, values: Any, a: Any, shape: Any, axis: int, options: Options, device: torch.device) -> None:
    if target is not None:
        check_targets(target, values, shape, axis, options, device)
    if a is not None:
        check_weights(None, a, shape, axis, device)


def _elsewhere(logits: Tensor) -> bool:
    """Whether the kernels cannot be asked."""
    inside = torch.compiler.is_compiling() or transformed() or in_forward_mode()
    inside = inside or type(logits) not in PLAIN or traced()
    return inside or logits.device.type != "cpu" or logits.dtype not in STORAGE
