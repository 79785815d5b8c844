"""Custom operators for ``torch.compile``: what its graphs hold in place of the autograd functions.

Reverse mode, first order.  An operator with a registered backward pass would silently get tangents of zero in forward
mode, so whatever runs inside ``torch.func`` or forward mode is traced as the composite of PyTorch's operations instead;
a second derivative of a compiled function is refused by ``torch.compile`` itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgrad.torch import _linear_function
from softgrad.torch._batch import Batch, at_once, made_at_once, remembered
from softgrad.torch._call import Call, call_of

SETTINGS = (
    "int axis, ScalarType dtype, int? ignore_index, str reduction, float label_smoothing, bool smooth_finite_only, "
    "float logit_scale, float? softcap, float temperature, float z_loss, int? n_threads"
)
DATA = "Tensor target, Tensor? values, Tensor? weight, Tensor? sample_weight"
LAYER = "Tensor x, Tensor linear_weight, Tensor? linear_bias"
WANTED = "bool by_x, bool by_weight, bool by_bias"
RUN = "int? max_memory, int? max_rows, str? impl, ScalarType accumulate_dtype"


def settings_of(call: Call) -> tuple[Any, ...]:
    """A call as an operator's arguments."""
    o = call.options
    return (
        call.axis, call.dtype, o.ignore_index, o.reduction, o.label_smoothing, o.smooth_finite_only, o.logit_scale,
        o.softcap, o.temperature, o.z_loss, call.n_threads,
    )  # fmt: skip


def _call(settings: tuple[Any, ...]) -> Call:
    return call_of(*settings, False)


def _loss_shape(shape: Any, call: Call) -> tuple[Any, ...]:
    return (*shape[: call.axis], *shape[call.axis + 1 :]) if call.options.reduction == "none" else ()


# --- cross_entropy ---------------------------------------------------------------------------------------------------

_COUNT = 5


@torch.library.custom_op(
    "softgrad::cross_entropy", mutates_args=(), device_types="cpu",
    schema=f"(Tensor logits, {DATA}, {SETTINGS}) -> (Tensor, Tensor)",
)  # fmt: skip
def _cross_entropy(*arguments: Any) -> tuple[Tensor, Tensor]:
    tensors, call = arguments[:_COUNT], _call(arguments[_COUNT:])
    batch = Batch(tensors, call)
    losses, stats = batch.losses(keep=True)
    width = remembered(batch.cols)
    kept = torch.empty((batch.n, width), dtype=torch.uint8)
    if stats is not None and width:
        kept = torch.from_numpy(stats.view("u1").reshape(batch.n, width))
    return batch.reduce(losses, call.dtype), kept


@_cross_entropy.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    logits, call = arguments[0], _call(arguments[_COUNT:])
    n = logits.numel() // logits.shape[call.axis]
    return (
        logits.new_empty(_loss_shape(logits.shape, call), dtype=call.dtype),
        logits.new_empty((n, remembered(logits.shape[call.axis])), dtype=torch.uint8),
    )


@torch.library.custom_op(
    "softgrad::cross_entropy_backward", mutates_args=(), device_types="cpu",
    schema=f"(Tensor upstream, Tensor stats, Tensor logits, {DATA}, {SETTINGS}) -> Tensor",
)  # fmt: skip
def _cross_entropy_backward(upstream: Tensor, stats: Tensor, *arguments: Any) -> Tensor:
    tensors, call = arguments[:_COUNT], _call(arguments[_COUNT:])
    if at_once(tensors[0], call) and (made := made_at_once(tensors, call, upstream, None)) is not None:
        return made
    batch = Batch(tensors, call, upstream=upstream)
    width = stats.shape[1]
    return batch.gradient(stats.numpy().reshape(-1).view(f"V{width}") if stats.numel() else None)


@_cross_entropy_backward.register_fake
def _(_upstream: Tensor, _stats: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    axis = rest[_COUNT - 1]
    moved = [*logits.shape[:axis], *logits.shape[axis + 1 :], logits.shape[axis]]
    return logits.new_empty(moved).movedim(-1, axis)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[1], *inputs[:_COUNT])
    ctx.settings = inputs[_COUNT:]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Any, ...]:
    stats, *tensors = ctx.saved_tensors
    gradient = torch.ops.softgrad.cross_entropy_backward(upstream, stats, *tensors, *ctx.settings)
    return (gradient, *(None for _ in (*tensors[1:], *ctx.settings)))


_cross_entropy.register_autograd(_backward, setup_context=_setup)


def cross_entropy(tensors: tuple[Any, ...], call: Call) -> Tensor:
    """The loss as an operator of a compiled graph."""
    return torch.ops.softgrad.cross_entropy(*tensors, *settings_of(call))[0]


# --- linear_cross_entropy --------------------------------------------------------------------------------------------

_LINEAR = 7


def _run(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    tensors, rest = arguments[:_LINEAR], arguments[_LINEAR:]
    return tensors, _linear_function.Plan(_call(rest[:-4]), *rest[-4:])


def _gradients(totals: Any) -> tuple[Tensor, ...]:
    """Gradients as an operator returns them: an empty tensor for what is not wanted."""
    return tuple(torch.empty(0) if t is None else t for t in totals)


def _fake_gradients(tensors: tuple[Any, ...], wanted: tuple[bool, ...], wide: torch.dtype) -> tuple[Tensor, ...]:
    dtypes = (tensors[0].dtype, wide, wide)
    return tuple(
        t.new_empty(t.shape, dtype=dtype) if want and t is not None else tensors[0].new_empty(0, dtype=torch.float32)
        for t, want, dtype in zip(tensors, wanted, dtypes, strict=False)
    )


@torch.library.custom_op(
    "softgrad::linear_cross_entropy", mutates_args=(), device_types="cpu",
    schema=f"({LAYER}, {DATA}, {SETTINGS}, {RUN}, {WANTED}) -> (Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip
def _linear(*arguments: Any) -> tuple[Tensor, ...]:
    (tensors, plan), wanted = _run(arguments[:-3]), arguments[-3:]
    early = plan.call.options.reduction != "none"
    outcome, totals = _linear_function.walk_tensors(plan, tensors, wanted if early else (False, False, False))
    return (_linear_function.reduced(outcome, plan.call), *_gradients(totals))


@_linear.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    (tensors, plan), wanted = _run(arguments[:-3]), arguments[-3:]
    late = plan.call.options.reduction == "none"
    shape = tensors[0].shape[:1] if late else ()
    wanted = (False, False, False) if late else wanted
    return (
        tensors[0].new_empty(shape, dtype=plan.call.dtype),
        *_fake_gradients(tensors, wanted, plan.accumulate_dtype),
    )


@torch.library.custom_op(
    "softgrad::linear_cross_entropy_backward", mutates_args=(), device_types="cpu",
    schema=f"(Tensor upstream, {LAYER}, {DATA}, {SETTINGS}, {RUN}, {WANTED}) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip
def _linear_backward(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    (tensors, plan), wanted = _run(arguments[:-3]), arguments[-3:]
    _, totals = _linear_function.walk_tensors(plan, tensors, wanted, upstream)
    return _gradients(totals)


@_linear_backward.register_fake
def _(_upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(arguments[:3], arguments[-3:], arguments[-4])


@torch.library.custom_op(
    "softgrad::linear_cross_entropy_scale", mutates_args=(), device_types="cpu",
    schema=f"(Tensor upstream, Tensor gx, Tensor gw, Tensor gb, {LAYER}) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip
def _scale(upstream: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    grads, layer = tensors[:3], tensors[3:]
    factor = float(upstream)
    return tuple((g * factor).to(_dtype(t)) for g, t in zip(grads, layer, strict=True))


@_scale.register_fake
def _(_upstream: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(g.new_empty(g.shape, dtype=_dtype(t)) for g, t in zip(tensors[:3], tensors[3:], strict=True))


def _dtype(like: Tensor | None) -> torch.dtype:
    return torch.float32 if like is None else like.dtype


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.settings = inputs[_LINEAR:-3]
    ctx.wanted = inputs[-3:]
    ctx.early = ctx.settings[3] != "none"
    ctx.save_for_backward(*(output[1:] if ctx.early else ()), *(inputs[:3] if ctx.early else inputs[:_LINEAR]))
    ctx.mark_non_differentiable(*output[1:])


def _linear_autograd(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    ops, saved = torch.ops.softgrad, ctx.saved_tensors
    if ctx.early:  # scaled by an operator that reads the layer: a second derivative is then refused, not zero
        grads = ops.linear_cross_entropy_scale(upstream, *saved)
    else:
        again = ops.linear_cross_entropy_backward(upstream, *saved, *ctx.settings, *ctx.wanted)
        grads = tuple(g.to(_dtype(t)) for g, t in zip(again, saved[:3], strict=True))
    given = [g if want else None for g, want in zip(grads, ctx.wanted, strict=True)]
    return (*given, *(None for _ in range(_LINEAR - 3 + len(ctx.settings) + 3)))


_linear.register_autograd(_linear_autograd, setup_context=_linear_setup)


def linear_cross_entropy(tensors: tuple[Any, ...], plan: Any) -> Tensor:
    """The loss of a linear head as an operator of a compiled graph."""
    early = torch.is_grad_enabled() and plan.call.options.reduction != "none"
    need = tuple(t is not None and t.requires_grad for t in tensors[:3])
    # For none the operator's own walk makes no gradients, and its backward pass makes those that are needed.
    wanted = need if early or plan.call.options.reduction == "none" else (False, False, False)
    return torch.ops.softgrad.linear_cross_entropy(
        *tensors, *settings_of(plan.call), plan.max_memory, plan.max_rows, plan.impl, plan.accumulate_dtype, *wanted
    )[0]
