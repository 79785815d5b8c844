"""Who computes a call: the CPU kernels, the same as operators of a compiled graph, or PyTorch's operations.

One predicate, `choose_path`, looks at all tensors of a call.  The functions below it run the row
primitive on the chosen path, for logits and for a linear head, and make the loss of its row values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from softgrad._core import backend, fallback
from softgrad.torch import _formulas, _head, _rows, _tiles
from softgrad.torch._call import PLAIN, Call, in_forward_mode, transformed
from softgrad.torch._formulas import WHOLE, Columns, RowMask, RowValues
from softgrad.torch._head import Plan, head_sizes
from softgrad.torch._tensors import STORAGE


class CodePath(Enum):
    """Who computes a call."""

    KERNELS = "kernels"  # autograd functions on the CPU kernels
    OPERATORS = "operators"  # the same as operators of a compiled graph
    FORMULAS = "formulas"  # PyTorch's operations


def choose_path(logits: Tensor, others: Iterable[Any], numbers: dict[str, Tensor]) -> CodePath:
    """Decide who computes rows of ``logits`` (or of the inputs of a head) with all the other tensors of the call."""
    if type(logits) not in PLAIN or logits.device.type != "cpu" or logits.dtype not in STORAGE:
        return CodePath.FORMULAS
    compiling = torch.compiler.is_compiling()
    tangents = in_forward_mode()
    for tensor in others:
        if tensor is not None and type(tensor) not in PLAIN:
            return CodePath.FORMULAS
    if tangents and (compiling or any(_formulas.has_tangent(t) for t in (logits, *others))):
        return CodePath.FORMULAS
    if "label_smoothing" in numbers or backend.kernels() is fallback or transformed():
        return CodePath.FORMULAS
    if compiling:
        return CodePath.FORMULAS if numbers else CodePath.OPERATORS
    if tangents and any(_formulas.has_tangent(t) for t in numbers.values()):
        return CodePath.FORMULAS
    return CodePath.FORMULAS if _formulas.traced() else CodePath.KERNELS


def follows_targets(call: Call, target: Any, values: Any, weight: Any) -> bool:
    """Return whether derivatives by soft targets, or by class weights inside a sum, may be asked for."""
    soft = target if values is None else values
    by_soft = soft is not None and soft.requires_grad
    by_label = _formulas.is_labels(target, values) and call.options.label_smoothing == 0
    return by_soft or (weight is not None and weight.requires_grad and not by_label)


def refuse_inplace(logits: Tensor, path: CodePath) -> None:
    """Refuse to write over the logits where that cannot be right."""
    if torch.compiler.is_compiling():
        raise ValueError("inplace=True is for eager code; torch.compile decides itself what may be written over")
    if transformed() or _formulas.has_tangent(logits):
        raise ValueError("inplace=True does not go with torch.func or forward mode, which read the logits again")
    if path is not CodePath.KERNELS:
        raise ValueError("inplace=True needs plain tensors on the CPU, and no derivative by label_smoothing")
    if logits.requires_grad and logits.is_leaf:
        raise ValueError("inplace=True would write over a leaf; use it on logits that a layer computed")
    reach = 0
    for stride, length in sorted(zip(logits.stride(), logits.shape, strict=True)):
        if length > 1 and stride <= reach:
            raise ValueError("inplace=True would write to elements that share memory (an expanded or overlapping view)")
        reach += stride * (length - 1)


def total_on(path: CodePath) -> Callable[[Tensor], Tensor]:
    """Return the sum over rows that belongs to a path."""
    if path is CodePath.FORMULAS:
        return torch.sum
    if path is CodePath.OPERATORS:
        from softgrad.torch import _operators

        return _operators.total
    return _rows.native_total


# --- logits -----------------------------------------------------------------------------------------------------------


def logits_path(tensors: tuple[Any, ...], call: Call) -> CodePath:
    """Decide who computes logits; tensors are logits, target, values, class weight and sample weight."""
    path = choose_path(tensors[0], tensors[1:], call.numbers)
    if path is CodePath.OPERATORS and follows_targets(call, *tensors[1:4]):
        return CodePath.FORMULAS  # the operators lack these derivatives
    return path


def logit_rows(
    tensors: tuple[Any, ...], call: Call, path: CodePath, *, active: Tensor | None = None, by_products: bool = False,
    columns: Columns = WHOLE,
) -> RowValues:  # fmt: skip
    """Return row values of logits; tensors are logits, target, values and class weight."""
    if path is CodePath.OPERATORS:
        from softgrad.torch import _operators

        return _operators.row_values(tensors, call, active, by_products)
    numbers = (call.numbers.get(name) for name in _rows.NUMBERS)
    return RowValues(*_rows.NativeRows.apply(*tensors, *numbers, call, active, by_products, columns))


def loss_of_logits(tensors: tuple[Any, ...], call: Call) -> Tensor:
    """Return the loss of a validated call; tensors are logits, target, values, class weight and sample weight."""
    logits, target, values, weight, sample_weight = tensors
    path = logits_path(tensors, call)
    if call.inplace:
        refuse_inplace(logits, path)
    if path is CodePath.FORMULAS:
        _formulas.check_labels(target, values, logits.shape[call.axis], call.options.ignore_index)
        return _rows.formula_loss(list(tensors), call)
    followed = call.numbers or any(t is not None and t.requires_grad for t in (weight, sample_weight))
    if path is CodePath.KERNELS and not followed and _rows.makes_gradient_with_loss(logits, call):
        return _rows.LossFunction.apply(*tensors, call, torch.is_grad_enabled())

    def rows(inside: Tensor | None, mask: RowMask) -> RowValues:
        return logit_rows((logits, target, values, inside), call, path, active=mask.active)

    return _formulas.loss_of_rows(rows, tensors[1:], call, total_on(path))


# --- linear heads -----------------------------------------------------------------------------------------------------


def head_path(tensors: tuple[Any, ...], call: Call, plan: Plan) -> CodePath:
    """Decide who computes a head; tensors are x, W, b, target, values, class weight and perhaps sample weight."""
    x, linear_weight, _, target, values, weight, *_ = tensors
    path = choose_path(x, tensors[1:], call.numbers)
    if path is CodePath.FORMULAS or plan.impl == "composite":
        return CodePath.FORMULAS
    if follows_targets(call, target, values, weight):
        return CodePath.FORMULAS
    if call.numbers.keys() - {"z_loss"} and head_sizes(x, linear_weight, plan, windows=True).cols < len(linear_weight):
        return CodePath.FORMULAS  # sums over the gradient need whole rows
    return path


def head_loss(tensors: tuple[Any, ...], call: Call, plan: Plan) -> Tensor:
    """Return the loss of a validated call; tensors are x (N, D), W, b, target, values, class weight, sample weight."""
    weight, sample_weight = tensors[5:]
    path = head_path(tensors, call, plan)
    followed = call.numbers or any(t is not None and t.requires_grad for t in (weight, sample_weight))
    if path is not CodePath.FORMULAS and not followed and makes_gradients_with_loss(tensors, call, plan):
        if path is CodePath.OPERATORS:
            from softgrad.torch import _operators

            return _operators.head_loss(tensors, call, plan)
        return _head.HeadLossFunction.apply(*tensors, call, plan, torch.is_grad_enabled())

    def rows(inside: Tensor | None, mask: RowMask) -> RowValues:
        return head_rows((*tensors[:5], inside), call, plan, mask, path=path)

    return _formulas.loss_of_rows(rows, tensors[3:], call, total_on(path))


def makes_gradients_with_loss(tensors: tuple[Any, ...], call: Call, plan: Plan) -> bool:
    """Return whether `HeadLossFunction` is the best schedule: one number, whole rows, no hooks of saved tensors."""
    x, linear_weight = tensors[:2]
    return (
        call.reduction != "none"
        and head_sizes(x, linear_weight, plan, windows=True).cols == len(linear_weight)
        and (torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(True) is None)
    )


def head_rows(
    tensors: tuple[Any, ...], call: Call, plan: Plan, mask: RowMask, *, by_products: bool = False,
    path: CodePath | None = None, columns: Columns = WHOLE,
) -> RowValues:  # fmt: skip
    """Return row values of a head; tensors are x (N, D), W, b, target, values and class weight."""
    if path is None:
        path = head_path((*tensors, mask.active), call, plan)
    if path is CodePath.FORMULAS:
        return _tiles.row_values(tensors, call, mask, plan.max_memory, by_products)
    if path is CodePath.OPERATORS:
        from softgrad.torch import _operators

        return _operators.head_rows(tensors, call, plan, mask.active, by_products)
    numbers = (call.numbers.get(name) for name in _rows.NUMBERS)
    return RowValues(
        *_head.NativeHeadRows.apply(
            *tensors, *numbers, call, plan, mask.active, by_products, columns, torch.is_grad_enabled()
        )
    )
