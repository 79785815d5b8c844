"""A function of rows, computed a tile of rows at a time in PyTorch's own operations, and again for its gradient.

What one tile makes on its way (logits, probabilities) is gone before the next one begins: any device, no N×V tensor.
The kernels do without this; it serves other devices, and derivatives by weights and temperatures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softgrad.torch import _composite
from softgrad.torch._call import Call
from softgrad.torch._function import transformed

DEFAULT_MEMORY = 64 << 20
COPIES = 16  # tensors of a tile's logits that live at a time in forward and backward together

Rows = Callable[..., tuple[Tensor, ...]]


def edges_of(rows: int, classes: int, max_memory: int | None) -> tuple[tuple[int, int], ...]:
    """Tiles of rows within the budget; at least one row each, since a softmax needs its row."""
    budget = DEFAULT_MEMORY if max_memory is None else max_memory
    step = max(1, min(rows, budget // (4 * COPIES * max(1, classes))))
    return tuple((lo, min(lo + step, rows)) for lo in range(0, rows, step)) or ((0, 0),)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Rows, edges: Any, split: int, *tensors: Any) -> tuple[Tensor, ...]:
        ctx.function, ctx.edges, ctx.split = function, edges, split
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        whole: list[Tensor] = []
        for edge in edges:
            part = function(*_tile(tensors, split, edge))
            whole = whole or [rows.new_empty((edges[-1][1], *rows.shape[1:])) for rows in part]
            for to, rows in zip(whole, part, strict=True):
                to[slice(*edge)] = rows
        return tuple(whole)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        wanted = [i for i, need in enumerate(needs) if need]
        again = torch.is_grad_enabled()
        # Neither a second derivative nor a stack of upstream gradients lets a part be written into a whole.
        apart = again or any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in upstream)
        sums: list[Any] = [None] * len(tensors)
        for edge in ctx.edges:
            tile = list(_tile(tensors, ctx.split, edge))
            with torch.enable_grad():
                if not again:
                    for i in wanted:
                        tile[i] = tile[i].detach().requires_grad_()
                outputs = ctx.function(*tile)
            pairs = [
                (out, g[slice(*edge)])
                for out, g in zip(outputs, upstream, strict=True)
                if g is not None and out.requires_grad
            ]
            if not pairs:
                continue
            grads = torch.autograd.grad(
                [out for out, _ in pairs], [tile[i] for i in wanted], [g for _, g in pairs],
                allow_unused=True, create_graph=again,
            )  # fmt: skip
            found: tuple[Any, ...] = grads  # None where nothing depends on it
            for i, grad in zip(wanted, found, strict=True):
                if i < ctx.split and apart:
                    piece: Any = torch.zeros_like(tile[i]) if grad is None else grad
                    sums[i] = [piece] if sums[i] is None else [*sums[i], piece]
                elif i < ctx.split:
                    # Into one tensor: small ones that outlive a tile would keep its memory from being used again.
                    sums[i] = torch.zeros_like(tensors[i]) if sums[i] is None else sums[i]
                    if grad is not None:
                        sums[i][slice(*edge)] = grad
                elif grad is not None:
                    sums[i] = _add(sums[i], grad, again)
        for i in wanted:
            if i < ctx.split and sums[i] is not None:
                sums[i] = torch.cat(sums[i]) if apart else sums[i]
            elif sums[i] is not None:
                sums[i] = sums[i].to(tensors[i].dtype)
        return (None, None, None, *sums)


def _add(total: Tensor | None, part: Tensor, again: bool) -> Tensor:
    wide = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
    if total is None:
        return wide
    return total + wide if again else total.add_(wide)


def _tile(tensors: tuple[Any, ...], split: int, edge: tuple[int, int]) -> tuple[Any, ...]:
    return tuple(t[slice(*edge)] if i < split and t is not None else t for i, t in enumerate(tensors))


def map_rows(function: Rows, edges: Any, split: tuple[Any, ...], whole: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """``function(*split, *whole)`` over tiles of the rows of ``split``; its results have one entry a row."""
    tensors = (*split, *whole)
    followed = any(t is not None and _composite.has_tangent(t) for t in tensors)
    if transformed() or followed:  # torch.func and forward mode see the function itself
        return function(*tensors)
    results = _Tiled.apply(function, edges, len(split), *tensors)
    return tuple(results)


def linear_cross_entropy(
    tensors: tuple[Any, ...], call: Call, scalars: dict[str, Tensor], max_memory: int | None
) -> Tensor:
    """The loss of flattened inputs ``x (N, D)``; rows keep their shape of one axis."""
    x, weight, bias, target, values, class_weight, sample_weight = tensors
    options = call.options
    apart = replace(options, reduction="none", z_loss=0.0)
    names = tuple(scalars)

    def rows(
        x: Tensor, target: Tensor, values: Any, weight: Tensor, bias: Any, class_weight: Any, *numbers: Tensor
    ) -> Any:
        logits = torch.nn.functional.linear(x, weight, bias)
        row = _composite.row_of(
            (logits, target, values, class_weight, None), apart, -1, dict(zip(names, numbers, strict=True))
        )
        lse = torch.where(row.active, row.peak + row.log_s, 0)
        return _composite.row_losses(row), lse * lse

    edges = edges_of(len(x), len(weight), max_memory)
    ce, square = map_rows(rows, edges, (x, target, values), (weight, bias, class_weight, *scalars.values()))
    return reduce(ce, square, target, values, class_weight, sample_weight, call)


def reduce(
    ce: Tensor,
    square: Tensor,
    target: Tensor,
    values: Tensor | None,
    class_weight: Tensor | None,
    sample_weight: Tensor | None,
    call: Call,
) -> Tensor:
    """Add up unweighted row losses and squared log-sum-exps, differentiable by the weights."""
    options = call.options
    kept = torch.ones(ce.shape, dtype=torch.bool, device=ce.device)
    labelled = values is None and not target.is_floating_point()
    if labelled and options.ignore_index is not None:
        kept = target != options.ignore_index
    a = kept.to(ce.dtype) if sample_weight is None else torch.where(kept, sample_weight.to(ce.dtype), 0)
    losses = _weighted(a, ce)
    squares = _weighted(a, square) if options.z_loss else None
    if options.reduction == "none":
        return (losses if squares is None else losses + options.z_loss * squares).to(call.dtype)
    wide = torch.float64 if ce.device.type in ("cpu", "cuda") else ce.dtype
    total = losses.sum(dtype=wide)
    penalty: Any = 0.0 if squares is None else options.z_loss * squares.sum(dtype=wide)
    if options.reduction == "mean":
        own = a
        if labelled and class_weight is not None:
            own = a * class_weight.to(ce.dtype)[torch.where(kept, target, 0).long()]
        by, count = own.sum(dtype=wide), a.sum(dtype=wide)
        void = (by == 0) | ~(a != 0).any()
        safe = torch.where(void, 1, by)
        total = total / safe
        if squares is not None:
            penalty = penalty / torch.where(void, 1, count)
        return torch.where(void, float("nan"), total + penalty).to(call.dtype)
    return (total + penalty).to(call.dtype)


def _weighted(a: Tensor, rows: Tensor) -> Tensor:
    """``a ℓ`` where a weight of 0 drops a row that has no loss."""
    dropped = (a == 0) & ~torch.isfinite(rows)
    return torch.where(dropped, 0, a * torch.where(dropped, 0, rows))
