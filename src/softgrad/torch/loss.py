"""Cross-entropy of tensors of logits: PyTorch's own signature, and softgrad's options."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from softgrad.torch._call import (
    check_classes,
    check_logits,
    check_targets,
    check_weights,
    class_axis,
    foreign,
    loss_dtype,
    make_call,
    soft_ignore,
    split_target,
)
from softgrad.torch._dispatch import loss_of_logits
from softgrad.torch._documented import LOSS, documented
from softgrad.torch._legacy import legacy_reduction

__all__ = ["cross_entropy"]


@documented(*LOSS, "inplace", "n_threads")
def cross_entropy(
    input: Tensor,  # noqa: A002 - PyTorch's name
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float | Tensor = 0.0,
    *,
    sample_weight: Tensor | None = None,
    smooth_finite_only: bool = False,
    logit_scale: float | Tensor = 1.0,
    softcap: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    z_loss: float | Tensor = 0.0,
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
    Derivatives of any order, forward mode and ``torch.func`` work, by the input, soft targets, weights and every
    numeric option that is a tensor.  The CPU kernels compute the loss, and first derivatives by the input, by
    ``logit_scale``, ``softcap``, ``temperature``, ``z_loss``, ``sample_weight`` and the ``weight`` of labels; other
    derivatives, transforms, devices and subclasses of Tensor take PyTorch's operations.  A DTensor, sharded by rows,
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
    if type(input) is not Tensor and (found := foreign(input, cross_entropy)) is not None:
        return found(
            input, target, weight, ignore_index=ignore_index,
            reduction=legacy_reduction(size_average, reduce, reduction), label_smoothing=label_smoothing,
            sample_weight=sample_weight, smooth_finite_only=smooth_finite_only, logit_scale=logit_scale,
            softcap=softcap, temperature=temperature, z_loss=z_loss, inplace=inplace, n_threads=n_threads,
        )  # fmt: skip
    check_logits(input)
    axis = class_axis(input)
    check_classes(input, axis)
    target, values = split_target(target)
    call = make_call(
        axis, loss_dtype(input), soft_ignore(target, values, ignore_index),
        legacy_reduction(size_average, reduce, reduction), label_smoothing, smooth_finite_only, logit_scale, softcap,
        temperature, z_loss, n_threads, inplace,
    )  # fmt: skip
    check_targets(target, values, input.shape, axis, call.options.ignore_index, input.device)
    if weight is not None or sample_weight is not None:
        check_weights(weight, sample_weight, input.shape, axis, input.device)
    return loss_of_logits((input, target, values, weight, sample_weight), call)
