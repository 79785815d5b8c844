"""The door of the PyTorch front-end: validate the arguments of a call, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from softgrad._core.options import Options
from softgrad._core.threads import resolve_threads
from softgrad.torch import _formulas
from softgrad.torch._formulas import RowOptions, followed

LOGITS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
LABELS = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64}
)
PLAIN = (Tensor, torch.nn.Parameter)  # other subclasses are known to PyTorch's operations alone
BUILTIN = frozenset({int, float, bool, str, type(None)})


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One validated call, beside its tensors.

    Attributes
    ----------
    options : RowOptions
        Numbers; 1 stands for a number that is a tensor which cannot be looked at.
    numbers : dict of str to Tensor
        The options that are followed by derivatives; ``z_loss`` and ``label_smoothing`` among them.
    z_loss : float
    reduction : str
    dtype : torch.dtype
        Of the loss.
    axis : int
        The class axis.
    n_threads : int or None
    inplace : bool
    """

    options: RowOptions
    numbers: dict[str, Tensor]
    z_loss: float
    reduction: str
    dtype: torch.dtype
    axis: int
    n_threads: int | None
    inplace: bool

    @property
    def formula_options(self) -> RowOptions:
        """The options with tensors in place of the numbers that are followed."""
        given: dict[str, Any] = {name: tensor for name, tensor in self.numbers.items() if name != "z_loss"}
        return self.options._replace(**given) if given else self.options

    @property
    def formula_z_loss(self) -> Any:
        """``λ``, a tensor if it is followed."""
        return self.numbers.get("z_loss", self.z_loss)


def make_call(
    axis: int,
    dtype: torch.dtype,
    ignore_index: int | None,
    reduction: str = "mean",
    label_smoothing: Any = 0.0,
    smooth_finite_only: bool = False,
    logit_scale: Any = 1.0,
    softcap: Any = None,
    temperature: Any = 1.0,
    z_loss: Any = 0.0,
    n_threads: int | None = None,
    inplace: bool = False,
) -> Call:
    """Validate the options of a call."""
    # Values of Python's own types alone are remembered: others may change, or compare equal to something else.
    given = (
        ignore_index, reduction, label_smoothing, smooth_finite_only, logit_scale, softcap, temperature, z_loss,
        n_threads, inplace,
    )  # fmt: skip
    if BUILTIN.issuperset(map(type, given)) and not torch.compiler.is_compiling():
        return _remembered(axis, dtype, *given)
    numbers: dict[str, Tensor] = {}
    arguments = (
        ignore_index, reduction, _number("label_smoothing", label_smoothing, numbers), smooth_finite_only,
        _number("logit_scale", logit_scale, numbers), _number("softcap", softcap, numbers),
        _number("temperature", temperature, numbers), _number("z_loss", z_loss, numbers), n_threads, inplace,
    )  # fmt: skip
    return _checked(axis, dtype, *arguments, numbers=numbers)


def _checked(
    axis: int, dtype: torch.dtype, ignore_index: int | None, reduction: Any, label_smoothing: Any,
    smooth_finite_only: bool, logit_scale: Any, softcap: Any, temperature: Any, z_loss: Any, n_threads: int | None,
    inplace: bool, numbers: dict[str, Tensor] | None = None,
) -> Call:  # fmt: skip
    options = Options(
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
        smooth_finite_only=smooth_finite_only, logit_scale=logit_scale, softcap=softcap, temperature=temperature,
        z_loss=z_loss,
    )  # fmt: skip
    if not isinstance(inplace, bool):
        raise TypeError(f"inplace must be True or False, not {inplace!r}")
    threads = None if n_threads is None else resolve_threads(n_threads)
    row = RowOptions(
        options.ignore_index, options.label_smoothing, options.smooth_finite_only, options.logit_scale,
        options.softcap, options.temperature,
    )  # fmt: skip
    return Call(row, numbers or {}, options.z_loss, reduction, dtype, axis, threads, inplace)


_remembered = lru_cache(maxsize=512, typed=True)(_checked)


def _number(name: str, value: Any, numbers: dict[str, Tensor]) -> Any:
    """Return a tensor of one element as the number it holds now, and note it in ``numbers`` if it is followed."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it is one number")
    # A graph cannot read a number from a tensor: the formulas take the tensor itself there.
    graph = torch.compiler.is_compiling() or _formulas.traced() or is_fake(value)
    if not (graph or followed(value)):
        return float(value.detach())
    numbers[name] = value.reshape(())
    unseen = graph or torch._C._functorch.is_functorch_wrapped_tensor(value)
    return (0.0 if name in ("label_smoothing", "z_loss") else 1.0) if unseen else float(value.detach())


# --- tensors ----------------------------------------------------------------------------------------------------------


def class_axis(logits: Tensor) -> int:
    """Return where PyTorch has the classes: the second axis, or the only one."""
    return 1 if logits.ndim > 1 else 0


def outer_shape(shape: Any, axis: int) -> tuple[int, ...]:
    """Return the shape without the class axis: one entry a row."""
    return (*shape[:axis], *shape[axis + 1 :])


def check_tensor(tensor: Any, name: str) -> None:
    """Refuse arguments that are no tensors, and DTensors, whose memory is a part of them."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(tensor).__name__}")
    if is_dtensor(tensor):
        raise TypeError(f"{name} is a DTensor, which is not supported here; hand over {name}.full_tensor()")


def check_logits(logits: Any, name: str = "input") -> None:
    """Refuse what has no softmax."""
    check_tensor(logits, name)
    if logits.dtype not in LOGITS:
        if not logits.is_floating_point():
            raise TypeError(f"{name} of dtype {logits.dtype} are not logits; they are floating-point numbers")
        raise TypeError(f"{name} of dtype {logits.dtype} is not supported; use float32, float64, float16 or bfloat16")
    if logits.layout != torch.strided or logits.is_nested:
        way = "values()" if logits.is_nested else "to_dense()"
        raise TypeError(f"{name} has the layout {logits.layout}; hand over {name}.{way}, with targets likewise")
    if logits.ndim == 0:
        raise ValueError(f"{name} needs a class axis; got a single number")


def check_classes(logits: Tensor, axis: int) -> None:
    """Refuse logits without classes."""
    if logits.shape[axis] == 0:
        raise ValueError(f"input of shape {tuple(logits.shape)} has no classes along axis {axis}")


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a DTensor, without the import, which takes longer than a loss."""
    return type(value).__name__ == "DTensor"


def split_target(target: Any) -> tuple[Any, Any]:
    """Return targets as (labels or soft targets, None), or (indices, values) of sparse ones."""
    if not isinstance(target, tuple):
        return target, None
    if len(target) != 2:
        raise ValueError(f"sparse targets are a pair (indices, values); got a tuple of {len(target)}")
    return target


def check_targets(
    target: Any, values: Any, shape: Any, axis: int, ignore_index: int | None, device: torch.device
) -> None:
    """Check shapes, dtypes and devices of targets for logits of ``shape``; the dtype tells labels from soft ones."""
    outer = outer_shape(shape, axis)
    plain = values is None and type(target) is Tensor and target.dtype is torch.int64
    if plain and target.shape == outer and target.device == device:
        return
    for name, tensor in (("target", target), ("values of the sparse target", values)):
        if tensor is None and name != "target":
            continue
        check_tensor(tensor, name)
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
    if ignore_index is not None:
        raise ValueError(f"ignore_index={ignore_index} goes with labels, and this target is soft; use sample_weight=0")


def soft_ignore(target: Any, values: Any, ignore_index: int | None) -> int | None:
    """Return None for a negative ``ignore_index``, as is the default, beside a soft target: PyTorch's rule."""
    soft = values is not None or (isinstance(target, Tensor) and target.is_floating_point())
    return None if soft and ignore_index is not None and ignore_index < 0 else ignore_index


def check_weights(weight: Any, sample_weight: Any, shape: Any, axis: int, device: torch.device) -> None:
    """Check shapes, devices and values of the weights."""
    for name, tensor, wanted in (
        ("weight", weight, (shape[axis],)),
        ("sample_weight", sample_weight, outer_shape(shape, axis)),
    ):
        if tensor is None:
            continue
        check_tensor(tensor, name)
        mask = tensor.dtype == torch.bool and name == "sample_weight"
        if not (mask or tensor.is_floating_point() or tensor.dtype in LABELS):
            raise TypeError(f"{name} of dtype {tensor.dtype} holds no real numbers")
        if tuple(tensor.shape) != tuple(wanted):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; for this input it is {tuple(wanted)}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} and the input on {device}")
        _formulas.check_finite(tensor, name)


def autocasts(kind: str) -> bool:
    """Return whether autocast is on for a kind of device; some kinds cannot be asked."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """Return PyTorch's dtype of the loss: that of the input, and float32 where autocast is on."""
    if logits.dtype in (torch.float16, torch.bfloat16) and autocasts(logits.device.type):
        return torch.float32
    return logits.dtype


def transformed() -> bool:
    """Return whether code runs inside ``torch.func``."""
    return bool(torch._C._are_functorch_transforms_active())


def in_forward_mode() -> bool:
    """Return whether a level of forward mode is open."""
    return bool(torch.autograd.forward_ad._current_level >= 0)


FOREIGN: dict[str, Callable[[], Any]] = {}  # loads the module that computes a type of tensor, by the type's name


def foreign(value: Any, function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return who computes one of this front-end's functions of a value that is not an ordinary tensor, or None.

    DTensors have a module of their own; an object with ``__torch_function__`` computes or refuses the call.
    """
    load = FOREIGN.get(type(value).__name__)
    if load is not None:
        return getattr(load(), function.__name__, None)
    if isinstance(value, Tensor) or not hasattr(type(value), "__torch_function__"):
        return None
    return lambda *arguments, **options: type(value).__torch_function__(function, (type(value),), arguments, options)
