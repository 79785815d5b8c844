"""Cross-entropy of logits as autograd sees it.

Forward reads the logits once and keeps one record of statistics a row; backward reads them once more and writes the
gradient.  `CrossEntropyFunction` is for ordinary calls.  `Transformable` is the same for ``torch.func``, which wants
the forward pass apart from what it saves.  Derivatives of the gradient come from `Gradient`: its own forward pass is
the kernel, its derivatives are the explicit formulas of `_composite` in PyTorch's operations, which every order and
transform can take further.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softgrad.torch import _composite, _small
from softgrad.torch._batch import Batch, array_of, at_once, made_at_once
from softgrad.torch._call import Call


def transformed() -> bool:
    """Whether code runs inside ``torch.func``."""
    return bool(torch._C._are_functorch_transforms_active())


def nested_forward() -> bool:
    """Whether two levels of forward mode are open: the outer one does not follow an autograd function's ``jvp``."""
    from torch._C._functorch import TransformType
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

    return sum(level.key() == TransformType.Jvp for level in retrieve_all_functorch_interpreters()) > 1


def _batched(upstream: Tensor) -> bool:
    """Whether ``is_grads_batched=True`` stacks many upstream gradients into this one: an older kind of vmap."""
    return bool(torch._C._functorch.is_legacy_batchedtensor(upstream))


def _refuse_weight_tangents(tangents: tuple[Any, ...]) -> None:
    if tangents[3] is not None or tangents[4] is not None:
        raise RuntimeError("softgrad: tangents of weights take the composite path; this is a bug")


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001 - PyTorch's signature
    """The ``setup_context`` of functions whose last argument is the call."""
    *tensors, ctx.call = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)  # a tangent of zeros and no tangent are not the same


class Gradient(torch.autograd.Function):
    """``∂L/∂o`` times what comes from above, and its derivatives."""

    @staticmethod
    def forward(upstream: Tensor, *rest: Any) -> Tensor:
        *tensors, call = rest
        return Batch(tensors, call, upstream=upstream).gradient(None)

    setup_context = staticmethod(_remember)

    @staticmethod
    def backward(ctx: Any, vector: Tensor | None) -> tuple[Any, ...]:
        if vector is None:
            return (None,) * 7
        upstream, *tensors = ctx.saved_tensors
        logits, target, values = tensors[:3]
        options, axis = ctx.call.options, ctx.call.axis
        needs = ctx.needs_input_grad
        by_upstream = by_logits = by_target = by_values = None
        plain = not torch.is_grad_enabled() and not transformed() and not _batched(vector)
        if needs[1] and plain:
            by_logits = Batch(tensors, ctx.call, upstream=upstream).product(vector)
        if needs[0] or needs[2] or needs[3] or (needs[1] and not plain):
            row = _composite.row_of(tensors, options, axis)
            if needs[1] and not plain:
                by_logits = _composite.hessian_product(row, upstream, vector, axis, logits)
            if needs[0]:
                unit = _composite.gradient(row, torch.ones_like(upstream), axis, vector)
                rows = (unit * vector).movedim(axis, -1).sum(-1)
                by_upstream = (rows if options.reduction == "none" else rows.sum()).to(upstream.dtype)
            if needs[2] or needs[3]:
                mixed = _composite.target_product(row, upstream, vector, options, axis)
                mixed = _composite.to_target(mixed, target, values, axis)
                by_target, by_values = (mixed, None) if values is None else (None, mixed)
        return by_upstream, by_logits, by_target, by_values, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        upstream, *tensors = ctx.saved_tensors
        logits, target, values = tensors[:3]
        call = ctx.call
        _refuse_weight_tangents(tangents[1:])
        total: Any = torch.zeros_like(logits)
        if tangents[0] is not None:
            total = total + Gradient.apply(tangents[0], *tensors, call)
        if tangents[1] is not None:
            row = _composite.row_of(tensors, call.options, call.axis)
            total = total + _composite.hessian_product(row, upstream, tangents[1], call.axis, logits)
        # The gradient is affine in soft targets.
        if tangents[2] is not None or tangents[3] is not None:
            moved = (target, tangents[3]) if values is not None else (tangents[2], None)
            slope = replace(call, options=replace(call.options, label_smoothing=0.0, z_loss=0.0))
            part = Gradient.apply(upstream, logits, *moved, *tensors[3:], slope)
            total = total + (1 - call.options.label_smoothing) * part
        return total

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, call = inputs

        def one(upstream: Any, *rest: Any) -> Tensor:
            row = _composite.row_of(rest, call.options, call.axis)
            return _composite.gradient(row, upstream, call.axis, rest[0])

        return torch.vmap(one, in_dims[:-1], randomness=info.randomness)(*tensors), 0


def _differentiable_backward(ctx: Any, upstream: Tensor, tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gradients that can be differentiated again."""
    call, (_, target, values) = ctx.call, tensors[:3]
    by_logits = by_target = by_values = None
    if ctx.needs_input_grad[0]:
        if _batched(upstream):
            row = _composite.row_of(tensors, call.options, call.axis)
            by_logits = _composite.gradient(row, upstream, call.axis, tensors[0])
        else:
            by_logits = Gradient.apply(upstream, *tensors, call)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        row = _composite.row_of(tensors, call.options, call.axis)
        slopes = _composite.target_gradient(row, upstream, call.options)
        slopes = _composite.to_target(slopes, target, values, call.axis)
        by_target, by_values = (slopes, None) if values is None else (None, slopes)
    return by_logits, by_target, by_values, None, None, None


class CrossEntropyFunction(torch.autograd.Function):
    """The loss in ordinary code."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, call, graded = inputs
        ctx.call, ctx.stats, ctx.unit = call, None, None
        by_logits = graded and ctx.needs_input_grad[0]
        if (both := _small.loss_and_gradient(tensors, call, by_logits)) is not None:
            loss, ctx.unit = both
        else:
            batch = Batch(tensors, call)
            if by_logits and at_once(tensors[0], call):
                loss, ctx.unit = batch.loss_and_gradient(call.dtype)
            else:
                losses, ctx.stats = batch.losses(by_logits)
                loss = batch.reduce(losses, call.dtype)
        ctx.save_for_backward(*tensors)
        if torch.autograd.forward_ad._current_level >= 0:
            ctx.save_for_forward(*tensors)
            ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Any, ...]:
        if upstream is None:
            return (None,) * 7
        tensors = ctx.saved_tensors
        call = ctx.call
        if torch.is_grad_enabled() or transformed() or _batched(upstream):
            if call.inplace:
                raise RuntimeError(
                    "inplace=True writes the gradient over the logits, of which create_graph=True and torch.func need "
                    "the values; use inplace=False"
                )
            return (*_differentiable_backward(ctx, upstream, tensors), None)
        needs = ctx.needs_input_grad
        by_target = by_values = by_logits = None
        if needs[1] or needs[2]:  # before the logits may be written over
            _, by_target, by_values, *_ = _differentiable_backward(_TargetsOnly(ctx), upstream, tensors)
        if needs[0] and at_once(tensors[0], call):
            # The first backward pass is given the gradient itself; a second one, under retain_graph, makes it again.
            unit, ctx.unit = ctx.unit, None
            by_logits = made_at_once(tensors, call, upstream, unit)
        if needs[0] and by_logits is None:
            batch = Batch(tensors, call, upstream=upstream)
            by_logits = _write_over(batch, tensors[0], ctx.stats) if call.inplace else batch.gradient(ctx.stats)
        return by_logits, by_target, by_values, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _loss_tangent(ctx, tangents)


class _TargetsOnly:
    """A context in which the logits need nothing."""

    def __init__(self, ctx: Any) -> None:
        self.call = ctx.call
        self.needs_input_grad = (False, *ctx.needs_input_grad[1:])


def _write_over(batch: Batch, logits: Tensor, stats: Any) -> Tensor:
    """The gradient in the logits' memory, and PyTorch told so: a later reader of them gets PyTorch's own error."""
    batch.gradient(stats, out=array_of(logits).view(batch.rows.dtype))
    torch.autograd.graph.increment_version(logits)
    return logits.detach()


def _loss_tangent(ctx: Any, tangents: tuple[Any, ...]) -> Tensor:
    tensors = ctx.saved_tensors
    call: Call = ctx.call
    logits, target, values = tensors[:3]
    _refuse_weight_tangents(tangents)
    reduction, axis = call.options.reduction, call.axis
    outer = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    wide = _composite.compute_dtype(logits.dtype)
    total: Any = 0
    if tangents[0] is not None:
        shape = outer if reduction == "none" else ()
        one = torch.ones(shape, dtype=wide, device=logits.device)
        slopes = Gradient.apply(one, *tensors, call)
        total = total + (slopes.to(wide) * tangents[0]).movedim(axis, -1).sum(-1)
    moved = tangents[1] if values is None else tangents[2]
    if moved is not None:
        row = _composite.row_of(tensors, call.options, axis)
        slopes = _composite.target_gradient(row, torch.ones((), dtype=wide), call.options)
        slopes = _composite.to_target(slopes, target, values, axis).to(wide)
        dim = axis if values is None else -1
        total = total + (slopes * moved).movedim(dim, -1).sum(-1)
    return (total if reduction == "none" else total.sum()).to(call.dtype)


class Transformable(torch.autograd.Function):
    """The loss inside ``torch.func``."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        *tensors, call = inputs
        batch = Batch(tensors, call)
        return batch.reduce(batch.losses(keep=False)[0], call.dtype)

    setup_context = staticmethod(_remember)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None) -> tuple[Any, ...]:
        if upstream is None:
            return (None,) * 6
        return _differentiable_backward(ctx, upstream, ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _loss_tangent(ctx, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Any, Any]:
        *tensors, call = inputs
        _composite.check_labels(tensors[1], tensors[2], _classes(tensors[0], in_dims[0], call.axis), call.options)

        def one(*rest: Any) -> Tensor:
            return _composite.cross_entropy(rest, call.options, call.axis, call.dtype)

        return torch.vmap(one, in_dims[:-1], randomness=info.randomness)(*tensors), 0


def _classes(logits: Tensor, batch_dim: int | None, axis: int) -> int:
    """V of logits that may have an axis more."""
    shape = list(logits.shape)
    if batch_dim is not None:
        del shape[batch_dim]
    return int(shape[axis])
