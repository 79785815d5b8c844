"""Operators of `torch.compile`'s graphs: the row primitive on logits and on a linear head.

Reverse mode, first order.  An operator with a registered backward pass would silently get tangents of zero in forward
mode, so whatever runs inside ``torch.func`` or forward mode is traced as `_formulas` instead; a second derivative of a
compiled function is refused by ``torch.compile`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from softgrad._core import backend
from softgrad._core.schedule import statistics_dtype
from softgrad.torch import _head, _rows
from softgrad.torch._call import Call, outer_shape
from softgrad.torch._formulas import RowOptions, RowValues
from softgrad.torch._tensors import vector_of

DATA = "Tensor? target, Tensor? values, Tensor? weight"
LAYER = "Tensor x, Tensor linear_weight, Tensor? linear_bias"
OPTIONS = (
    "int? ignore_index, float label_smoothing, bool smooth_finite_only, float logit_scale, float? softcap, "
    "float temperature, int? n_threads, int axis"
)
PLAN = "int? max_memory, int? max_rows, str? impl, ScalarType? accumulate_dtype"
UPSTREAM = "Tensor? by_ce, Tensor? by_lse, Tensor? by_entropy"
ROWS = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
GRADIENTS = "(Tensor, Tensor, Tensor)"


def settings_of(call: Call) -> tuple[Any, ...]:
    """Return the options of a call as an operator's arguments."""
    return (*call.options, call.n_threads, call.axis)


def _call(settings: Any, reduction: str = "none", z_loss: float = 0.0, dtype: Any = None) -> Call:
    *options, n_threads, axis = settings
    return Call(RowOptions(*options), {}, z_loss, reduction, dtype, axis, n_threads, False)


def _operator(name: str, arguments: str, results: str) -> Callable[[Callable[..., object]], CustomOpDef]:
    return torch.library.custom_op(
        f"softgrad::{name}", mutates_args=(), device_types="cpu", schema=f"({arguments}) -> {results}"
    )


def _fake_rows(like: Tensor, shape: Any, n: Any, by_products: bool) -> tuple[Tensor, ...]:
    def vector(dtype: torch.dtype, wanted: bool = True) -> Tensor:
        return like.new_empty(shape if wanted else (0,), dtype=dtype)

    return (
        vector(torch.float64), vector(torch.float64), vector(torch.float64, by_products),
        vector(torch.int64, by_products), vector(torch.int64, by_products),
        like.new_empty((n, backend.kernels().statistics_size), dtype=torch.uint8),
    )  # fmt: skip


def _records(array: Any) -> Tensor:
    return torch.from_numpy(array.view(np.uint8).reshape(len(array), backend.kernels().statistics_size))


def _array(records: Tensor) -> Any:
    return records.numpy().reshape(-1).view(statistics_dtype())


def upstream_of(upstream: tuple[Any, ...], by_products: bool) -> tuple[Any, ...]:
    """Return what comes from above for cross-entropy, lse and, if it was computed, entropy."""
    return (*upstream[:2], upstream[2] if by_products else None)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any, count: int) -> None:
    ctx.save_for_backward(output[5], *inputs[:count])
    ctx.rest = inputs[count:]
    ctx.mark_non_differentiable(*output[3:])


# --- a total whose bits do not depend on the number of threads --------------------------------------------------------


@_operator("total", "Tensor losses", "Tensor")
def _total(losses: Tensor) -> Tensor:
    return _rows.Total.forward(None, losses)


@_total.register_fake
def _(losses: Tensor) -> Tensor:
    return losses.new_empty(())


_total.register_autograd(
    lambda ctx, upstream: upstream.expand(ctx.shape),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "shape", inputs[0].shape),  # noqa: ARG005
)


def total(losses: Tensor) -> Tensor:
    """Return the sum of float64 losses."""
    return torch.ops.softgrad.total(losses)


# --- rows of logits ---------------------------------------------------------------------------------------------------


@_operator("row_values", f"Tensor logits, {DATA}, Tensor? active, {OPTIONS}, bool by_products", ROWS)
def _row_values(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, active = arguments[:5]
    call, by_products = _call(arguments[5:-1]), arguments[-1]
    batch = _rows.Batch(tuple(tensors), call.options, call.axis, call.n_threads, vector_of(active))
    found = _rows.buffers_for(batch.n, by_products)
    records = batch.statistics(found, by_products)
    return (*_rows.row_tensors(found, batch.rows.outer), _records(records))


@_row_values.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    logits, axis = arguments[0], arguments[-2]
    return _fake_rows(logits, outer_shape(logits.shape, axis), logits.numel() // logits.shape[axis], arguments[-1])


@_operator("row_gradient", f"{UPSTREAM}, Tensor records, Tensor logits, {DATA}, Tensor? active, {OPTIONS}", "Tensor")
def _row_gradient(*arguments: Any) -> Tensor:
    upstream, records, tensors, active = arguments[:3], arguments[3], arguments[4:8], arguments[8]
    call = _call(arguments[9:])
    batch = _rows.Batch(tuple(tensors), call.options, call.axis, call.n_threads, vector_of(active))
    batch.head.set_upstream(*(vector_of(g) for g in upstream))
    return batch.gradient(_array(records))


@_row_gradient.register_fake
def _(*arguments: Any) -> Tensor:
    logits, axis = arguments[4], arguments[-1]
    return logits.new_empty((*outer_shape(logits.shape, axis), logits.shape[axis])).movedim(-1, axis)


def _row_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    wanted = upstream_of(upstream, ctx.rest[-1])
    gradient = torch.ops.softgrad.row_gradient(*wanted, *ctx.saved_tensors, *ctx.rest[:-1])
    return (gradient, *(None for _ in range(4 + len(ctx.rest))))


_row_values.register_autograd(_row_backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output, 5))


def row_values(tensors: tuple[Any, ...], call: Call, active: Tensor | None, by_products: bool) -> RowValues:
    """Return the row values of logits; tensors are logits, target, values and class weight."""
    return RowValues(*torch.ops.softgrad.row_values(*tensors, active, *settings_of(call), by_products)[:5])


# --- rows of a linear head --------------------------------------------------------------------------------------------


@_operator("head_values", f"{LAYER}, {DATA}, Tensor? active, {OPTIONS}, {PLAN}, bool by_products", ROWS)
def _head_values(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, active = arguments[:7]
    by_products = arguments[-1]
    walk = _walk(tensors, active, arguments[7:-5], arguments[-5:-1], by_products)
    found = _rows.buffers_for(len(tensors[0]), by_products)
    records = walk.statistics(found, by_products)
    return (*_rows.row_tensors(found, (len(tensors[0]),)), _records(records))


def _walk(tensors: Any, active: Any, settings: Any, plan: Any, by_products: bool) -> _head.HeadWalk:
    return _head.HeadWalk(
        tuple(tensors), _call(settings), _head.Plan(*plan), vector_of(active), windows=not by_products
    )


@_head_values.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    n = arguments[0].shape[0]
    return _fake_rows(arguments[0], (n,), n, arguments[-1])


@_operator(
    "head_gradient",
    f"{UPSTREAM}, Tensor records, {LAYER}, {DATA}, Tensor? active, {OPTIONS}, {PLAN}, bool by_products, bool[] needs",
    GRADIENTS,
)
def _head_gradient(*arguments: Any) -> tuple[Tensor, ...]:
    upstream, records, tensors, active = arguments[:3], arguments[3], arguments[4:10], arguments[10]
    plan, by_products, needs = arguments[-6:-2], arguments[-2], arguments[-1]
    walk = _walk(tensors, active, arguments[11:-6], plan, by_products)
    grads = _head.gradient_tensors(tensors, _head.Plan(*plan), needs)
    walk.gradients(_array(records), tuple(map(vector_of, upstream)), _head.gradient_arrays(grads), {})
    return _present(grads)


def _present(grads: Any) -> tuple[Tensor, ...]:
    """An operator returns an empty tensor for what is not needed."""
    return tuple(torch.empty(0) if grad is None else grad for grad in grads)


def _fake_gradients(tensors: Any, needs: Any, asked: Any) -> tuple[Tensor, ...]:
    wide = asked or _head.accumulator(tensors[1].dtype)
    return tuple(
        t.new_empty(t.shape, dtype=dtype) if need and t is not None else tensors[0].new_empty(0, dtype=torch.float32)
        for t, need, dtype in zip(tensors[:3], needs, (tensors[0].dtype, wide, wide), strict=True)
    )


@_head_gradient.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(arguments[4:7], arguments[-1], arguments[-3])


def _head_backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:3])
    wanted = upstream_of(upstream, ctx.rest[-1])
    grads = torch.ops.softgrad.head_gradient(*wanted, *ctx.saved_tensors, *ctx.rest, needs)
    layer = ctx.saved_tensors[1:4]
    given = [g.to(t.dtype) if need else None for g, t, need in zip(grads, layer, needs, strict=True)]
    return (*given, *(None for _ in range(4 + len(ctx.rest))))


_head_values.register_autograd(_head_backward, setup_context=lambda ctx, inputs, output: _save(ctx, inputs, output, 7))


def plan_of(plan: _head.Plan) -> tuple[Any, ...]:
    """Return a plan as an operator's arguments."""
    return plan.max_memory, plan.max_rows, plan.impl, plan.accumulate_dtype


def head_rows(
    tensors: tuple[Any, ...], call: Call, plan: _head.Plan, active: Tensor | None, by_products: bool
) -> RowValues:
    """Return the row values of a head; tensors are x, W, b, target, values and class weight."""
    values = torch.ops.softgrad.head_values(*tensors, active, *settings_of(call), *plan_of(plan), by_products)
    return RowValues(*values[:5])


# --- the loss of a linear head with its gradients ---------------------------------------------------------------------

LOSS = "str reduction, float z_loss, ScalarType dtype"


@_operator(
    "head_loss", f"{LAYER}, {DATA}, Tensor? sample_weight, {OPTIONS}, {PLAN}, {LOSS}, bool[] needs",
    "(Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip
def _head_loss(*arguments: Any) -> tuple[Tensor, ...]:
    call, plan = _call(arguments[7:-8], *arguments[-4:-1]), _head.Plan(*arguments[-8:-4])
    loss, grads = _head.head_loss_and_gradients(tuple(arguments[:7]), call, plan, arguments[-1])
    return (loss, *_present(grads))


@_head_loss.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    loss = arguments[0].new_empty((), dtype=arguments[-2])
    return (loss, *_fake_gradients(arguments[:3], arguments[-1], arguments[-5]))


@_operator("head_loss_scale", f"Tensor upstream, Tensor gx, Tensor gw, Tensor gb, {LAYER}", GRADIENTS)
def _scale(upstream: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    factor = float(upstream)
    return tuple((g * factor).to(_dtype(t)) for g, t in zip(tensors[:3], tensors[3:], strict=True))


@_scale.register_fake
def _(_upstream: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(g.new_empty(g.shape, dtype=_dtype(t)) for g, t in zip(tensors[:3], tensors[3:], strict=True))


def _dtype(like: Tensor | None) -> torch.dtype:
    return torch.float32 if like is None else like.dtype


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.needs, ctx.rest = inputs[-1], len(inputs) - 3
    ctx.save_for_backward(*output[1:], *inputs[:3])
    ctx.mark_non_differentiable(*output[1:])


def _loss_backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    # Scaled by an operator that reads the layer: a second derivative is then refused, not zero.
    grads = torch.ops.softgrad.head_loss_scale(upstream, *ctx.saved_tensors)
    return (*(g if need else None for g, need in zip(grads, ctx.needs, strict=True)), *(None,) * ctx.rest)


_head_loss.register_autograd(_loss_backward, setup_context=_loss_setup)


def head_loss(tensors: tuple[Any, ...], call: Call, plan: _head.Plan) -> Tensor:
    """Return the loss of a head; tensors are x, W, b, target, values, class weight and sample weight."""
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors[:3]]
    settings = (*settings_of(call), *plan_of(plan), call.reduction, call.z_loss, call.dtype)
    return torch.ops.softgrad.head_loss(*tensors, *settings, needs)[0]
