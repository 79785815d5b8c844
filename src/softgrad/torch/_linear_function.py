"""The linear head as autograd sees it: a walk over tiles of rows in forward, backward, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core.arrays import LogitRows
from softgrad._core.backend import Storage
from softgrad._core.call import Outcome
from softgrad._core.linear_tiles import LinearGradients, LinearInputs, contiguous, walk
from softgrad._core.products import Products
from softgrad._core.weights import class_weights
from softgrad.torch import _columns, _composite, _memory
from softgrad.torch._batch import (
    HALF,
    array_of,
    lent_array_of,
    row_weights_of,
    targets_of,
    tensor_of,
    threads_for,
    weights_of,
)
from softgrad.torch._call import Call
from softgrad.torch._function import Gradient
from softgrad.torch._products import TorchProducts, choose

STORAGE_ARRAYS: dict[torch.dtype, tuple[Any, Any]] = {
    torch.float32: (np.float32, Storage.float32),
    torch.float64: (np.float64, Storage.float64),
    torch.bfloat16: (np.uint16, Storage.bfloat16),
    torch.float16: (np.float16, Storage.float16),
}


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How a call of the linear head runs."""

    call: Call
    max_memory: int | None
    max_rows: int | None
    impl: str | None
    accumulate_dtype: torch.dtype


def inputs_of(x: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> LinearInputs:
    half = x.dtype in HALF and not isinstance(products, TorchProducts)
    compute, storage = STORAGE_ARRAYS[torch.float32 if half else x.dtype]
    n, classes = len(x), len(weight)
    unseen = np.broadcast_to(np.zeros((1, classes), compute), (n, classes))
    rows = LogitRows(unseen, storage, (n, classes), 1, np.dtype(compute))
    b = None if bias is None else lent_array_of(bias)
    return LinearInputs(contiguous(array_of(x)), contiguous(lent_array_of(weight)), b, rows, compute)


def walk_tensors(
    plan: Plan, tensors: tuple[Any, ...], need: tuple[bool, bool, bool], upstream: Tensor | None = None,
    stats: Any = None,
) -> tuple[Outcome, list[Tensor | None]]:  # fmt: skip
    """One walk over the tiles: the row losses, and the gradients that are needed."""
    x, weight, bias, target, values, class_weight, sample_weight = tensors
    call = plan.call
    wide = plan.accumulate_dtype
    totals = [
        fresh_tensor(x.shape, x.dtype) if need[0] else None,
        fresh_tensor(weight.shape, wide) if need[1] else None,
        fresh_tensor(weight.shape[:1], wide) if need[2] else None,
    ]
    if stats is None and _columns.needed(plan.max_memory, len(x), len(weight)):
        return _columns.walk(plan, tensors, totals, upstream), totals
    products = choose(x.dtype, x.shape[-1], plan.impl)
    inputs = inputs_of(x, weight, bias, products)
    threads = threads_for(call.n_threads, x.shape[0] * weight.shape[0])
    targets = targets_of(target, values, inputs.rows)
    w = class_weights(weights_of(class_weight), inputs.rows, "weight")
    a = row_weights_of(sample_weight)
    if upstream is not None and call.options.reduction == "none":
        g = np.ascontiguousarray(upstream.detach().to(torch.float64).numpy()).reshape(-1)
        a = g if a is None else np.where(a == 0, 0.0, a * g)
    grads = LinearGradients(*(None if t is None else array_of(t) for t in totals))
    try:
        outcome = walk(
            inputs, targets, call.options, w, a, plan.max_memory, threads, grads, stats, products, plan.max_rows
        )
    except ValueError as error:
        if str(error).startswith("targets"):  # as PyTorch, an IndexError, with PyTorch's name of the argument
            raise IndexError(str(error).replace("targets", "target", 1)) from None
        raise
    return outcome, totals


def accumulator(dtype: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    """What tiles of rows add up in."""
    usual = torch.float32 if dtype in HALF else dtype
    if asked not in (None, usual, torch.float64):
        raise ValueError(
            f"accumulate_dtype={asked} is none of {usual} (the default) and torch.float64 for {dtype} weights"
        )
    return usual if asked is None else asked


def fresh_tensor(shape: Any, dtype: torch.dtype) -> Tensor:
    return tensor_of(_memory.empty(tuple(shape), STORAGE_ARRAYS[dtype][0]), dtype)


def rounded(total: Tensor | None, like: Tensor) -> Tensor | None:
    """A gradient in its tensor's type, or wider where ``Tensor.grad_dtype`` asks for it."""
    if total is None:
        return None
    dtype = getattr(like, "grad_dtype", like.dtype) if like.is_leaf else like.dtype
    return total.to(like.dtype if dtype is None else dtype)


def reduced(outcome: Outcome, call: Call) -> Tensor:
    if call.options.reduction == "none":
        return torch.from_numpy(outcome.losses).to(call.dtype)
    if outcome.empty_mean:
        return torch.tensor(float("nan"), dtype=call.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.tensor(outcome.losses.sum(), dtype=call.dtype)


class LinearCrossEntropyFunction(torch.autograd.Function):
    """The loss of ``x Wᵀ + b``: its gradients in the forward pass for mean and sum, in the backward pass for none."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, plan, graded = inputs
        need = tuple(ctx.needs_input_grad[:3])
        early = graded and plan.call.options.reduction != "none" and any(need)
        outcome, totals = walk_tensors(plan, tuple(tensors), need if early else (False, False, False))
        ctx.plan, ctx.totals = plan, totals if early else None
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return reduced(outcome, plan.call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Any, ...]:
        rest = (None,) * 6
        if upstream is None:
            return (None, None, None, *rest)
        tensors, plan, need = ctx.saved_tensors, ctx.plan, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(upstream):
            return (*_differentiable(plan, tensors, need, upstream), *rest)
        # The first backward pass is given the gradients themselves, which may then be scaled and kept by others; a
        # second one, under retain_graph, computes them again.
        totals, ctx.totals = ctx.totals, None
        if totals is None:
            _, totals = walk_tensors(plan, tensors, tuple(need), upstream)
        if plan.call.options.reduction != "none" and (g := float(upstream)) != 1.0:
            for total in totals:
                if total is not None:
                    total.mul_(g)
        return (*(rounded(t, like) for t, like in zip(totals, tensors, strict=False)), *rest)


def _differentiable(plan: Plan, tensors: tuple[Any, ...], need: Any, upstream: Tensor) -> tuple[Any, ...]:
    """Gradients that can be differentiated again: by way of the N×V logits."""
    x, weight, bias, *others = tensors
    logits = torch.nn.functional.linear(x, weight, bias)
    call = replace(plan.call, axis=1)
    if torch._C._functorch.is_legacy_batchedtensor(upstream):
        g = _composite.gradient(_composite.row_of((logits, *others), call.options, 1), upstream, 1, logits)
    else:
        g = Gradient.apply(upstream, logits, *others, call)
    return (
        g @ weight if need[0] else None,
        g.transpose(-1, -2) @ x if need[1] else None,
        g.sum(-2) if need[2] else None,
    )
