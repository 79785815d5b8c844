"""One call of the PyTorch front-end: its options, checked once and remembered, and what its tensors must look like."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from softgrad._core.options import Options
from softgrad._core.threads import resolve_threads

LOGITS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
LABELS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What the tensors of a call do not say."""

    options: Options  # without the weights, which are tensors
    axis: int  # the class axis of the logits
    dtype: torch.dtype  # of the loss
    n_threads: int | None = None
    inplace: bool = False


def _checked(
    axis: int,
    dtype: torch.dtype,
    ignore_index: int | None,
    reduction: Any,
    label_smoothing: float,
    smooth_finite_only: bool,
    logit_scale: float,
    softcap: float | None,
    temperature: float,
    z_loss: float,
    n_threads: int | None,
    inplace: bool,
) -> Call:
    """Check the options; the same ones are checked once."""
    options = Options(
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        smooth_finite_only=smooth_finite_only,
        logit_scale=logit_scale,
        softcap=softcap,
        temperature=temperature,
        z_loss=z_loss,
    )
    if n_threads is not None:
        n_threads = resolve_threads(n_threads)
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace must be True or False, not {inplace!r}")
    return Call(options, axis, dtype, n_threads, inplace)


_remembered = lru_cache(maxsize=512, typed=True)(_checked)


def call_of(*arguments: Any) -> Call:
    """Options as `_checked` takes them, checked."""
    return (_checked if torch.compiler.is_compiling() else _remembered)(*arguments)


def number(name: str, value: Any) -> Any:
    """A tensor of one element as the number it holds; a plain number as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it is one number")
    return float(value.detach())


def class_axis(logits: Tensor) -> int:
    """Where PyTorch has the classes: the second axis, or the only one."""
    return 1 if logits.ndim > 1 else 0


def outer_shape(shape: Any, axis: int) -> tuple[int, ...]:
    """Shape without the class axis: one entry a row."""
    return (*shape[:axis], *shape[axis + 1 :])


def check_logits(logits: Any, name: str = "input") -> None:
    """Refuse what has no softmax."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"{name} of dtype {logits.dtype} are not logits; they are floating-point numbers")
    if logits.layout != torch.strided:
        raise TypeError(f"{name} has the layout {logits.layout}; hand over {name}.to_dense()")
    if logits.dtype not in LOGITS:
        raise TypeError(f"{name} of dtype {logits.dtype} is not supported; use float32, float64, float16 or bfloat16")
    if logits.ndim == 0:
        raise ValueError(f"{name} needs a class axis; got a single number")


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a DTensor, without the import, which takes longer than a loss."""
    return type(value).__name__ == "DTensor"


def refuse_dtensors(function: str, **arguments: Any) -> None:
    """Raise for a DTensor, whose memory is a part of it, where none is expected."""
    for name, value in arguments.items():
        if any(is_dtensor(part) for part in (value if isinstance(value, tuple) else (value,))):
            raise TypeError(f"{function} takes no DTensors, and {name} is one; hand over its full_tensor()")


def stands_for_logits(value: Any) -> bool:
    """Return whether a value is no tensor but has ``__torch_function__``, as those of `softgrad.torch.transformers`."""
    return not isinstance(value, Tensor) and hasattr(type(value), "__torch_function__")


def overridden(function: Any, stand_in: Any, *arguments: Any, **options: Any) -> Any:
    """Hand a call to an input that stands for logits, which computes or refuses it."""
    kind = type(stand_in)
    return kind.__torch_function__(function, (kind,), (stand_in, *arguments), options)


def split_target(target: Any) -> tuple[Any, Any]:
    """Targets as (labels or soft targets, None), or (indices, values) of sparse ones."""
    if not isinstance(target, tuple):
        return target, None
    if len(target) != 2:
        raise ValueError(f"sparse targets are a pair (indices, values); got a tuple of {len(target)}")
    return target


def check_targets(target: Any, values: Any, shape: Any, axis: int, options: Options, device: torch.device) -> None:
    """Check shapes, dtypes and devices of targets for logits of ``shape``; index or soft is decided by the dtype."""
    outer = outer_shape(shape, axis)
    for name, tensor in (("target", target), ("values of the sparse target", values)):
        if tensor is None and name != "target":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and the input on {device}")
    if values is not None:
        if target.dtype not in LABELS:
            raise TypeError(f"the indices of sparse targets are integers, not {target.dtype}")
        if not values.is_floating_point():
            raise TypeError(f"the values of sparse targets are floating-point numbers, not {values.dtype}")
        if target.shape != values.shape or tuple(target.shape[:-1]) != outer or target.ndim == 0:
            raise ValueError(
                f"sparse targets have indices of shape {tuple(target.shape)} and values of shape "
                f"{tuple(values.shape)}; both are {(*outer, 'k')} for this input"
            )
    elif target.is_floating_point():
        if target.shape != shape:
            hint = " (labels are integers)" if tuple(target.shape) == outer else ""
            raise ValueError(f"soft target has shape {tuple(target.shape)}; the input has {tuple(shape)}{hint}")
    else:
        if target.dtype not in LABELS:
            raise TypeError(f"target of dtype {target.dtype} holds neither labels (integers) nor soft targets (floats)")
        if tuple(target.shape) != outer:
            hint = " (soft targets are floating-point numbers)" if target.shape == shape else ""
            raise ValueError(
                f"target has shape {tuple(target.shape)}; one label for each row of this input is {outer}{hint}"
            )
        return
    if options.ignore_index is not None:
        raise ValueError(
            f"ignore_index={options.ignore_index} goes with labels, and this target is soft; use sample_weight=0"
        )


def soft_ignore(target: Any, values: Any, ignore_index: int | None) -> int | None:
    """PyTorch's rule: beside a soft target a negative ``ignore_index``, as is the default, means nothing."""
    soft = values is not None or (isinstance(target, Tensor) and target.is_floating_point())
    return None if soft and ignore_index is not None and ignore_index < 0 else ignore_index


def check_weights(weight: Any, sample_weight: Any, shape: Any, axis: int, device: torch.device) -> None:
    """Check shapes and devices of the weights."""
    for name, tensor, wanted in (
        ("weight", weight, (shape[axis],)),
        ("sample_weight", sample_weight, outer_shape(shape, axis)),
    ):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
        if tensor.dtype == torch.bool and name == "sample_weight":
            pass  # a mask
        elif not tensor.is_floating_point() and tensor.dtype not in LABELS:
            raise TypeError(f"{name} of dtype {tensor.dtype} holds no real numbers")
        if tuple(tensor.shape) != tuple(wanted):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; for this input it is {tuple(wanted)}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and the input on {device}")
