"""One call of the vocabulary-parallel losses: its arguments checked, the ranks' agreement, and who computes.

A rank that refuses its own arguments still tells the others so, in its header; what follows the agreement fails on all
ranks alike.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from softgrad._core import backend, fallback
from softgrad._core.options import Options
from softgrad.torch import _composite, _parallel_composite
from softgrad.torch._batch import STORAGE
from softgrad.torch._call import (
    Call,
    call_of,
    check_logits,
    check_targets,
    check_weights,
    class_axis,
    number,
    outer_shape,
    soft_ignore,
    split_target,
)
from softgrad.torch._function import transformed
from softgrad.torch._linear_function import Plan, accumulator
from softgrad.torch._parallel_function import ParallelFunction, ParallelLinearFunction, through_logits
from softgrad.torch._parallel_group import CONTENTS, Agreement, Place, fingerprint, group_of
from softgrad.torch.linear import checked_impl, checked_memory, flat_rows, honoured, layer_of, shifted
from softgrad.torch.loss import PLAIN, followed, followed_scalars, loss_dtype, refuse_inplace, scalar, soft_and_followed


def cross_entropy_over(
    agreement: Agreement, logits: Tensor, target: Any, group: Any, row_groups: tuple[Any, ...], weight: Tensor | None,
    ignore_index: int | None, reduction: str, label_smoothing: float, sample_weight: Tensor | None,
    smooth_finite_only: bool, logit_scale: Any, softcap: Any, temperature: Any, z_loss: Any, inplace: bool,
    n_threads: int | None,
) -> Tensor:  # fmt: skip
    """`vocab_parallel_cross_entropy`, of a batch whose rows are spread over ``row_groups``."""
    group = group_of(group)
    error: Exception | None = None
    size = 0
    try:
        _refuse_transforms(agreement.function, logits, target, weight, sample_weight)
        check_logits(logits, "local_logits")
        axis = class_axis(logits)
        target, values = split_target(target)
        scalars = followed_scalars(logit_scale=logit_scale, temperature=temperature)
        call = call_of(
            axis, loss_dtype(logits), soft_ignore(target, values, ignore_index), reduction, label_smoothing,
            smooth_finite_only, scalar("logit_scale", logit_scale, scalars), number("softcap", softcap),
            scalar("temperature", temperature, scalars), number("z_loss", z_loss), n_threads, inplace,
        )  # fmt: skip
        check_targets(target, values, logits.shape, axis, call.options, logits.device)
        check_weights(weight, sample_weight, logits.shape, axis, logits.device)
        native = _native(logits, target, values, weight, sample_weight, scalars)
        if inplace:
            refuse_inplace(logits, native)
        size = logits.shape[axis]
        _state(agreement, outer_shape(logits.shape, axis), logits, target, values, weight, sample_weight, call, scalars)
        agreement.facts |= {"inplace": inplace, "gradients": _followed(local_logits=logits), "kernels": native}
    except Exception as caught:
        error = caught
    place = _agree(agreement, group, logits, size, error)
    _composite.check_labels(target, values, place.classes, call.options)
    tensors = (logits, target, values, weight, sample_weight)
    if native:
        return ParallelFunction.apply(*tensors, call, place, row_groups)
    return _parallel_composite.cross_entropy(tensors, call, place, row_groups, scalars)


def linear_cross_entropy_over(
    agreement: Agreement, x: Tensor, linear: Tensor, target: Any, bias: Tensor | None, group: Any,
    row_groups: tuple[Any, ...], reduce_x_grad: bool, weight: Tensor | None, ignore_index: int | None, reduction: str,
    label_smoothing: float, sample_weight: Tensor | None, smooth_finite_only: bool, logit_scale: Any, softcap: Any,
    temperature: Any, z_loss: Any, shift: bool, max_memory: int | None, accumulate_dtype: torch.dtype | None,
    options: Any, impl: str | None, n_threads: int | None,
) -> Tensor:  # fmt: skip
    """`vocab_parallel_linear_cross_entropy`, of a batch whose rows are spread over ``row_groups``."""
    group = group_of(group)
    error: Exception | None = None
    size = 0
    try:
        _refuse_transforms(agreement.function, x, linear, bias, target, weight, sample_weight)
        inputs, linear, bias = layer_of(x, linear, bias, ("x", "local_weight", "bias"))
        if linear.ndim != 2:
            raise ValueError(f"local_weight has shape {tuple(linear.shape)}; it is (V_own, D)")
        if not isinstance(reduce_x_grad, bool):
            raise TypeError(f"reduce_x_grad must be True or False, not {reduce_x_grad!r}")
        target, values = split_target(target)
        if shift:
            inputs, target, values, sample_weight = shifted(inputs, target, values, sample_weight)
        scalars = followed_scalars(logit_scale=logit_scale, temperature=temperature)
        ignored = -100 if ignore_index is None else ignore_index
        call = call_of(
            1, loss_dtype(inputs), soft_ignore(target, values, ignored), reduction, label_smoothing, smooth_finite_only,
            scalar("logit_scale", logit_scale, scalars), number("softcap", softcap),
            scalar("temperature", temperature, scalars), number("z_loss", z_loss), n_threads, False,
        )  # fmt: skip
        outer, size = tuple(inputs.shape[:-1]), linear.shape[0]
        check_targets(target, values, (*outer, size), len(outer), call.options, inputs.device)
        check_weights(weight, sample_weight, (*outer, size), len(outer), inputs.device)
        checked_memory(max_memory)
        max_rows, accumulate_dtype = honoured(options, accumulate_dtype)
        plan = Plan(call, max_memory, max_rows, checked_impl(impl), accumulator(linear.dtype, accumulate_dtype))
        native = _native(inputs, target, values, weight, sample_weight, scalars) and impl != "composite"
        native = native and type(linear) in PLAIN
        _state(agreement, outer, inputs, target, values, weight, sample_weight, call, scalars)
        agreement.facts |= {
            "features": inputs.shape[-1], "bias": bias is not None, "reduce_x_grad": reduce_x_grad,
            "max_memory": max_memory, "rows of a tile": max_rows, "accumulate_dtype": plan.accumulate_dtype,
            "gradients": _followed(x=inputs, local_weight=linear, bias=bias), "kernels": native,
        }  # fmt: skip
        if f"{CONTENTS}input" not in agreement.facts:
            agreement.own[f"{CONTENTS}x"] = fingerprint(x)
    except Exception as caught:
        error = caught
    place = _agree(agreement, group, x, size, error)
    _composite.check_labels(target, values, place.classes, call.options, before=(len(outer) - 1, int(shift)))
    flat, target, values, sample_weight = flat_rows(inputs, size, target, values, sample_weight)
    tensors = (flat, linear, bias, target, values, weight, sample_weight)
    if native:
        loss = ParallelLinearFunction.apply(*tensors, plan, place, row_groups, reduce_x_grad)
    else:
        loss = through_logits(tensors, call, place, row_groups, scalars, reduce_x_grad)
    return loss.reshape(outer) if reduction == "none" else loss


def _agree(agreement: Agreement, group: Any, tensor: Any, size: int, error: Exception | None) -> Place:
    place = agreement.reach(group, tensor.device if isinstance(tensor, Tensor) else "cpu", size, error)
    if place.classes == 0:
        raise ValueError("no rank has a class")
    return place


def _native(logits: Tensor, target: Any, values: Any, weight: Any, sample_weight: Any, scalars: Any) -> bool:
    """Whether the kernels compute: as for one process, but for soft targets' derivatives."""
    return (
        type(logits) in PLAIN
        and logits.device.type == "cpu"
        and logits.dtype in STORAGE
        and backend.kernels() is not fallback
        and not scalars
        and not followed(weight)
        and not followed(sample_weight)
        and not soft_and_followed(target, values)
    )


def _refuse_transforms(function: str, *arguments: Any) -> None:
    """What a reduction over the ranks cannot be seen through by."""
    if transformed():
        raise RuntimeError(f"{function} does not go with torch.func; use autograd")
    if any(_composite.has_tangent(t) for t in arguments):
        raise RuntimeError(f"{function} has no forward-mode derivative; use reverse mode")


def _followed(**tensors: Any) -> str:
    return " ".join(name for name, tensor in tensors.items() if followed(tensor)) or "none"


def _state(
    agreement: Agreement, outer: tuple[int, ...], logits: Tensor, target: Any, values: Any, weight: Any,
    sample_weight: Any, call: Call, scalars: dict[str, Tensor],
) -> None:  # fmt: skip
    """Write down the facts of a call that all ranks have to agree about."""
    labelled = values is None and not target.is_floating_point()
    if values is not None:
        kind = f"sparse ({target.dtype}, {values.dtype}), {target.shape[-1]} a row"
    else:
        kind = f"{'labels' if labelled else 'soft'} ({target.dtype})"
    soft = None if labelled else target if values is None else values
    agreement.facts |= {
        "dtype": f"{logits.dtype} on {logits.device.type}",
        "the kind of target": kind,
        **{f.name: getattr(call.options, f.name) for f in fields(Options) if not f.name.endswith("_weight")},
        "weight": weight is not None,
        "sample_weight": sample_weight is not None,
        "derivatives": _followed(weight=weight, sample_weight=sample_weight, target=soft, **scalars),
    }
    agreement.own["rows"] = outer
    if labelled or values is not None:
        agreement.own[f"{CONTENTS}target"] = fingerprint(target) + fingerprint(values)
    agreement.own[f"{CONTENTS}sample_weight"] = fingerprint(sample_weight)
