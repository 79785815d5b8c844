"""One call of the losses over ranks: validation, the ranks' agreement, and the loss of their rows.

A rank that refuses its own arguments still tells the others so, in its header; what follows the agreement fails on all
ranks alike.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from softgrad.torch import _formulas, _rows
from softgrad.torch._call import (
    Call,
    check_logits,
    check_targets,
    check_weights,
    class_axis,
    loss_dtype,
    make_call,
    outer_shape,
    soft_ignore,
    split_target,
    transformed,
)
from softgrad.torch._dispatch import (
    CodePath,
    choose_path,
    head_path,
    head_rows,
    logit_rows,
    refuse_inplace,
    total_on,
)
from softgrad.torch._formulas import RowMask, RowValues, followed, has_tangent, is_labels
from softgrad.torch._head import Plan, accumulator
from softgrad.torch._ranks.agreement import Agreement
from softgrad.torch._ranks.columns import RankColumns
from softgrad.torch._ranks.group import Place, group_of
from softgrad.torch.linear import checked_impl, checked_memory, flat_rows, honoured, layer_of, shifted


def cross_entropy_over(
    agreement: Agreement,
    name: str,
    logits: Tensor,
    target: Any,
    *,
    group: Any,
    row_groups: tuple[Any, ...] = (),
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    **options: Any,
) -> Tensor:
    """Return the cross-entropy of this rank's slice of the logits, the argument ``name`` of the caller.

    ``row_groups`` are those over which the rows of the batch are spread.
    """
    group = group_of(group)
    error: Exception | None = None
    size = 0
    try:
        _refuse_transforms(agreement.function, logits, target, weight, sample_weight)
        check_logits(logits, name)
        axis = class_axis(logits)
        target, values = split_target(target)
        call = make_call(axis, loss_dtype(logits), soft_ignore(target, values, ignore_index), **options)
        check_targets(target, values, logits.shape, axis, call.options.ignore_index, logits.device)
        check_weights(weight, sample_weight, logits.shape, axis, logits.device)
        others = (target, values, weight, sample_weight)
        path = choose_path(logits, others, call.numbers)
        if call.inplace:
            refuse_inplace(logits, path)
        size = logits.shape[axis]
        _state(agreement, outer_shape(logits.shape, axis), logits, others, call, path)
        agreement.facts |= {"inplace": call.inplace, "gradients": _followed(logits=logits)}
    except Exception as caught:
        error = caught
    place = _agree(agreement, group, logits, size, error)
    columns = RankColumns(place, row_groups)
    _formulas.check_labels(target, values, place.classes, call.options.ignore_index)
    call = replace(call, numbers=_on_slices(call.numbers, columns))

    def rows(inside: Tensor | None, mask: RowMask) -> RowValues:
        if path is CodePath.FORMULAS or 0 in place.sizes:
            options = call.formula_options
            return _formulas.row_values(logits, target, values, inside, options, axis, *mask, columns=columns)
        tensors = (logits, target, values, inside)
        return logit_rows(tensors, call, path, active=mask.active, columns=columns)

    return _formulas.loss_of_rows(rows, others, call, total_on(path), columns)


def linear_cross_entropy_over(
    agreement: Agreement,
    names: tuple[str, str, str],
    x: Tensor,
    linear_weight: Tensor,
    target: Any,
    *,
    group: Any,
    linear_bias: Tensor | None = None,
    row_groups: tuple[Any, ...] = (),
    reduce_x_grad: bool = True,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int | None = -100,
    shift: bool = False,
    max_memory: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
    torch_options: Any = None,
    impl: str | None = None,
    **options: Any,
) -> Tensor:
    """Return the cross-entropy of ``x Wᵀ + b`` where this rank has some rows of W; ``names`` are the caller's."""
    group = group_of(group)
    error: Exception | None = None
    size = 0
    try:
        _refuse_transforms(agreement.function, x, linear_weight, linear_bias, target, weight, sample_weight)
        inputs, linear_weight, linear_bias = layer_of(x, linear_weight, linear_bias, names, slices=True)
        if linear_weight.ndim != 2:
            raise ValueError(f"{names[1]} has shape {tuple(linear_weight.shape)}; it is (V_own, D)")
        if not isinstance(reduce_x_grad, bool):
            raise TypeError(f"reduce_x_grad must be True or False, not {reduce_x_grad!r}")
        target, values = split_target(target)
        if shift:
            inputs, target, values, sample_weight = shifted(inputs, target, values, sample_weight)
        ignored = -100 if ignore_index is None else ignore_index
        call = make_call(1, loss_dtype(inputs), soft_ignore(target, values, ignored), **options)
        outer, size = tuple(inputs.shape[:-1]), linear_weight.shape[0]
        check_targets(target, values, (*outer, size), len(outer), call.options.ignore_index, inputs.device)
        check_weights(weight, sample_weight, (*outer, size), len(outer), inputs.device)
        checked_memory(max_memory)
        max_rows, accumulate_dtype = honoured(torch_options, accumulate_dtype)
        accumulate_dtype = accumulator(linear_weight.dtype, accumulate_dtype)
        plan = Plan(max_memory, max_rows, checked_impl(impl), accumulate_dtype)
        others = (target, values, weight, sample_weight)
        path = head_path((inputs, linear_weight, linear_bias, *others), call, plan)
        _state(agreement, outer, inputs, others, call, path)
        agreement.facts |= {
            "features": inputs.shape[-1], "bias": linear_bias is not None, "reduce_x_grad": reduce_x_grad,
            "max_memory": max_memory, "rows of a tile": max_rows, "accumulate_dtype": accumulate_dtype,
            "gradients": _followed(**dict(zip(names, (inputs, linear_weight, linear_bias), strict=True))),
        }  # fmt: skip
        agreement.contents[names[0]] = (x,)
    except Exception as caught:
        error = caught
    place = _agree(agreement, group, x, size, error)
    columns = RankColumns(place, row_groups, sums_inputs=reduce_x_grad)
    _formulas.check_labels(
        target, values, place.classes, call.options.ignore_index, before=(len(outer) - 1, int(shift))
    )
    flat, target, values, sample_weight = flat_rows(inputs, size, target, values, sample_weight)
    call = replace(call, numbers=_on_slices(call.numbers, columns))

    def rows(inside: Tensor | None, mask: RowMask) -> RowValues:
        if path is CodePath.FORMULAS or 0 in place.sizes:
            spread = columns.vary(flat) if columns.sums_inputs else flat
            logits = torch.nn.functional.linear(spread, linear_weight, linear_bias)
            options = call.formula_options
            return _formulas.row_values(logits, target, values, inside, options, 1, *mask, columns=columns)
        tensors = (flat, linear_weight, linear_bias, target, values, inside)
        return head_rows(tensors, call, plan, mask, path=path, columns=columns)

    loss = _formulas.loss_of_rows(rows, (target, values, weight, sample_weight), call, total_on(path), columns)
    return loss.reshape(outer) if call.reduction == "none" else loss


def _on_slices(numbers: dict[str, Tensor], columns: RankColumns) -> dict[str, Tensor]:
    """Return followed numbers, of which those that transform logits meet each rank's own."""
    return {name: columns.vary(number) if name in _rows.NUMBERS else number for name, number in numbers.items()}


def _agree(agreement: Agreement, group: Any, tensor: Any, size: int, error: Exception | None) -> Place:
    place = agreement.reach(group, tensor.device if isinstance(tensor, Tensor) else "cpu", size, error)
    if place.classes == 0:
        raise ValueError("no rank has a class")
    return place


def _refuse_transforms(function: str, *arguments: Any) -> None:
    """Refuse transforms, which do not see through a reduction over the ranks."""
    if transformed():
        raise RuntimeError(f"{function} does not go with torch.func; use autograd")
    if any(has_tangent(t) for t in arguments):
        raise RuntimeError(f"{function} has no forward-mode derivative; use reverse mode")


def _followed(**tensors: Any) -> str:
    return " ".join(name for name, tensor in tensors.items() if followed(tensor)) or "none"


def _state(
    agreement: Agreement, outer: tuple[int, ...], logits: Tensor, others: tuple[Any, ...], call: Call, path: CodePath
) -> None:
    """Write down the facts of a call that all ranks have to agree about."""
    target, values, weight, sample_weight = others
    labelled = is_labels(target, values)
    if values is not None:
        kind = f"sparse ({target.dtype}, {values.dtype}), {target.shape[-1]} a row"
    else:
        kind = f"{'labels' if labelled else 'soft'} ({target.dtype})"
    soft = None if labelled else target if values is None else values
    agreement.facts |= {
        "dtype": f"{logits.dtype} on {logits.device.type}, a loss of {call.dtype}",
        "the kind of target": kind,
        **call.options._asdict(),
        "z_loss": call.z_loss,
        "reduction": call.reduction,
        "weight": weight is not None,
        "sample_weight": sample_weight is not None,
        "derivatives": _followed(weight=weight, sample_weight=sample_weight, target=soft, **call.numbers),
        "who computes": path.value,
    }
    agreement.rows = outer
    if labelled or values is not None:
        agreement.contents["target"] = (target, values)
    agreement.contents["sample_weight"] = (sample_weight,)
