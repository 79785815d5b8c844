"""Cross-entropy of tensors of logits: PyTorch's own signature, and softgrad's options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from softgrad.torch import _composite
from softgrad.torch._batch import STORAGE
from softgrad.torch._call import (
    Call,
    call_of,
    check_logits,
    check_targets,
    check_weights,
    class_axis,
    is_dtensor,
    number,
    overridden,
    soft_ignore,
    split_target,
    stands_for_logits,
)
from softgrad.torch._documented import LOSS, documented
from softgrad.torch._function import CrossEntropyFunction, Transformable, nested_forward, transformed

__all__ = ["cross_entropy"]


PLAIN = (Tensor, torch.nn.Parameter)  # other subclasses of Tensor are known to PyTorch's operations alone


def traced() -> bool:
    """Whether ``make_fx`` or the like records operations: it would not see the kernels'."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._len_torch_dispatch_stack()) and get_proxy_mode() is not None


def autocasts(kind: str) -> bool:
    """Whether autocast is on for a kind of device; of some it does not know it cannot be asked."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def loss_dtype(logits: Tensor) -> torch.dtype:
    """PyTorch's rule: the dtype of the input, and float32 where autocast is on."""
    if autocasts(logits.device.type) and logits.dtype in (torch.float16, torch.bfloat16):
        return torch.float32
    return logits.dtype


def followed(tensor: Any) -> bool:
    """Whether a derivative by this argument may be asked for."""
    if torch.compiler.is_compiling():  # inside torch.func or forward mode everything is composite there
        return isinstance(tensor, Tensor) and tensor.requires_grad and torch.is_grad_enabled()
    return isinstance(tensor, Tensor) and (
        (tensor.requires_grad and torch.is_grad_enabled())
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or _composite.has_tangent(tensor)
    )


def soft_and_followed(target: Tensor, values: Tensor | None) -> bool:
    """Whether a derivative by soft targets may be asked for."""
    soft = target if values is None else values
    return soft.is_floating_point() and followed(soft)


def in_forward_mode() -> bool:
    """Whether a level of forward mode is open; a graph compiled outside is not used inside, nor the reverse."""
    return bool(torch.autograd.forward_ad._current_level >= 0)


def followed_scalars(**numbers: Any) -> dict[str, Tensor]:
    """Those of the numbers that are tensors with a derivative."""
    if not any(isinstance(value, Tensor) for value in numbers.values()):
        return {}
    # A graph cannot read a number from a tensor: there the formulas take the tensor itself.
    compiling = torch.compiler.is_compiling()
    return {n: value for n, value in numbers.items() if isinstance(value, Tensor) and (compiling or followed(value))}


def scalar(name: str, value: Any, scalars: dict[str, Tensor]) -> Any:
    """The number to check; what ``torch.func`` has wrapped, or ``torch.compile`` traces, cannot be looked at."""
    unseen = name in scalars and (transformed() or torch.compiler.is_compiling())
    return 1.0 if unseen else number(name, value)


@documented(*LOSS, "inplace", "n_threads")
def cross_entropy(
    input: Tensor,  # noqa: A002 - PyTorch's name
    target: Any,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    smooth_finite_only: bool = False,
    logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    z_loss: float = 0.0,
    inplace: bool = False,
    n_threads: int | None = None,
) -> Tensor:
    """Cross-entropy ``−Σ_j y_j log S_j`` of logits: `torch.nn.functional.cross_entropy`, with softgrad's options.

    Replaces ``-log_softmax(input, 1).gather(1, target[:, None]).mean()``: the logits are read once in the forward pass,
    and once in the backward pass, which writes ``S − y``.

    Parameters
    ----------
    {input}
    {target}
    {options}

    Returns
    -------
    Tensor
        In nats, of the input's dtype (float32 under autocast); of the input's shape without the class axis for
        ``reduction="none"``.  Negated, that is the log-probability of each target.

    Raises
    ------
    IndexError
        For a label outside [0, C) that is not ``ignore_index``: the first is named, nothing is computed.
    ValueError
        For shapes or devices that do not fit, and an option outside its range.
    TypeError
        For an input that is no floating-point tensor, or targets that are no numbers.

    Notes
    -----
    Derivatives of any order, forward mode and ``torch.func`` work; by ``weight``, ``sample_weight``, ``temperature``,
    ``logit_scale`` and soft targets as well as by the input.  Tensors that are not on the CPU, and derivatives by
    weights or temperatures, are computed in PyTorch's own operations.  A DTensor, sharded by rows,
    by classes or both, gives a DTensor, by way of `softgrad.torch.parallel`.

    Examples
    --------
    >>> import torch
    >>> from softgrad.torch import cross_entropy
    >>> logits = torch.tensor([[2.0, 1.0, 0.1]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0]))
    >>> loss.backward()
    >>> logits.grad  # S − y
    tensor([[-0.3410,  0.2424,  0.0986]])

    References
    ----------
    Bishop, "Pattern Recognition and Machine Learning", 2006, equations 4.108 and 4.109.
    """
    if is_dtensor(input):
        from softgrad.torch import _dtensor

        return _dtensor.cross_entropy(
            input, target, weight, sample_weight, logit_scale, temperature, inplace, ignore_index=ignore_index,
            reduction=reduction, label_smoothing=label_smoothing, smooth_finite_only=smooth_finite_only,
            softcap=softcap, z_loss=z_loss, n_threads=n_threads,
        )  # fmt: skip
    if stands_for_logits(input):
        return overridden(
            cross_entropy, input, target, weight, ignore_index=ignore_index, reduction=reduction,
            label_smoothing=label_smoothing, sample_weight=sample_weight, smooth_finite_only=smooth_finite_only,
            logit_scale=logit_scale, softcap=softcap, temperature=temperature, z_loss=z_loss, inplace=inplace,
            n_threads=n_threads,
        )  # fmt: skip
    check_logits(input)
    axis = class_axis(input)
    target, values = split_target(target)
    scalars = followed_scalars(logit_scale=logit_scale, temperature=temperature)
    call = call_of(
        axis,
        loss_dtype(input),
        soft_ignore(target, values, ignore_index),
        reduction,
        label_smoothing,
        smooth_finite_only,
        scalar("logit_scale", logit_scale, scalars),
        number("softcap", softcap),
        scalar("temperature", temperature, scalars),
        number("z_loss", z_loss),
        n_threads,
        inplace,
    )
    check_targets(target, values, input.shape, axis, call.options, input.device)
    if weight is not None or sample_weight is not None:
        check_weights(weight, sample_weight, input.shape, axis, input.device)
    return dispatch(input, target, values, weight, sample_weight, call, scalars)


def dispatch(
    logits: Tensor,
    target: Tensor,
    values: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    call: Call,
    scalars: dict[str, Tensor],
) -> Tensor:
    """Choose who computes: the kernels, or PyTorch's own operations."""
    tensors = (logits, target, values, weight, sample_weight)
    native = (
        type(logits) in PLAIN
        and not (torch.compiler.is_compiling() and (in_forward_mode() or transformed()))  # the operators know neither
        and not (transformed() and nested_forward())
        and not traced()
        and logits.device.type == "cpu"
        and logits.dtype in STORAGE
        and not scalars
        and not (weight is not None and followed(weight))
        and not (sample_weight is not None and followed(sample_weight))
        and not (torch.compiler.is_compiling() and soft_and_followed(target, values))  # the operators' one gap
    )
    if call.inplace:
        refuse_inplace(logits, native)
    if not native:
        _composite.check_labels(target, values, logits.shape[call.axis], call.options)
        return _composite.cross_entropy(tensors, call.options, call.axis, call.dtype, scalars)
    if transformed():
        return Transformable.apply(*tensors, call)
    if torch.compiler.is_compiling():
        from softgrad.torch import _compiled

        return _compiled.cross_entropy(tensors, call)
    return CrossEntropyFunction.apply(*tensors, call, torch.is_grad_enabled())


def refuse_inplace(logits: Tensor, native: bool) -> None:
    """Say at once where writing over the logits cannot be right."""
    if not native:
        raise ValueError("inplace=True needs logits on the CPU, and no derivative by weights or temperature")
    if transformed() or _composite.has_tangent(logits):
        raise ValueError("inplace=True does not go with torch.func or forward mode, which read the logits again")
    if logits.requires_grad and logits.is_leaf:
        raise ValueError("inplace=True would write over a leaf; use it on logits that a layer computed")
    if torch.compiler.is_compiling():
        raise ValueError("inplace=True is for eager code; torch.compile decides itself what may be written over")
    reach = 0
    for stride, length in sorted(zip(logits.stride(), logits.shape, strict=True)):
        if length > 1 and stride <= reach:
            raise ValueError("inplace=True would write to elements that share memory (an expanded or overlapping view)")
        reach += stride * (length - 1)
