"""Cross-entropy of a linear layer's logits, without the N×V matrix of logits."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from softgrad.torch import _formulas
from softgrad.torch._call import (
    Call,
    autocasts,
    check_logits,
    check_targets,
    check_weights,
    foreign,
    loss_dtype,
    make_call,
    soft_ignore,
    split_target,
)
from softgrad.torch._dispatch import head_loss, loss_of_logits
from softgrad.torch._documented import LOSS, documented
from softgrad.torch._head import Plan, accumulator
from softgrad.torch._products import NAMES

__all__ = ["linear_cross_entropy"]

IMPLEMENTATIONS = (*NAMES, "composite")


@documented(*LOSS, "shift", "max_memory", "accumulate_dtype", "torch_options", "impl", "n_threads")
def linear_cross_entropy(
    input: Tensor,  # noqa: A002 - PyTorch's name
    linear_weight: Tensor,
    target: Any,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    label_smoothing: float | Tensor = 0.0,
    sample_weight: Tensor | None = None,
    smooth_finite_only: bool = False,
    logit_scale: float | Tensor = 1.0,
    softcap: float | Tensor | None = None,
    temperature: float | Tensor = 1.0,
    z_loss: float | Tensor = 0.0,
    shift: bool = False,
    max_memory: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
    options: Any = None,
    impl: str | None = None,
    n_threads: int | None = None,
) -> Tensor:
    """Cross-entropy of the logits ``o = x Wᵀ + b``, which are never all in memory.

    Replaces ``cross_entropy(torch.nn.functional.linear(input, linear_weight, linear_bias), target)``, and takes the
    arguments of `torch.nn.functional.linear_cross_entropy`.

    Parameters
    ----------
    {layer}
    {options}

    Returns
    -------
    Tensor
        As `cross_entropy` returns it; of shape (...) for ``reduction="none"``.

    Raises
    ------
    IndexError
        For a label outside [0, V) that is not ``ignore_index``: the first is named, nothing is computed.
    ValueError
        For shapes or devices that do not fit, or an option outside its range.
    TypeError
        For dtypes that differ or are no floating-point numbers.

    Notes
    -----
    For ``mean`` and ``sum`` the gradients are made in the forward pass, and only those of tensors that require one; for
    ``none``, and where an option or a weight is followed by derivatives, the tiles are computed again in the backward
    pass.  A weight of the shape (C, d_1, …, D) is taken as
    PyTorch takes it, by way of its logits; so are second derivatives, forward mode and ``torch.func``.  The gradient of
    half-precision weights is added up in float32, and stays so, over micro-batches too, with
    ``linear_weight.grad_dtype = torch.float32``.  A weight that is a DTensor, sharded by its classes, or
    an input that is one, sharded by its rows, gives a DTensor, by way of `softgrad.torch.parallel`.

    Examples
    --------
    >>> import torch
    >>> from softgrad.torch import linear_cross_entropy
    >>> x, weight = torch.ones(4, 2), torch.zeros(3, 2, requires_grad=True)
    >>> loss = linear_cross_entropy(x, weight, torch.tensor([0, 1, 2, 0]))
    >>> loss.backward()
    >>> loss, weight.grad[0]  # log 3; (S − y)ᵀ x
    (tensor(1.0986, grad_fn=<HeadLossFunctionBackward>), tensor([-0.1667, -0.1667]))

    References
    ----------
    Wijmans et al., "Cut your losses in large-vocabulary language models", 2024, section 4 (never making the logits).
    """
    for tensor in (input, linear_weight):
        if type(tensor) is not Tensor and (found := foreign(tensor, linear_cross_entropy)) is not None:
            return found(
                input, linear_weight, target, linear_bias=linear_bias, weight=weight, ignore_index=ignore_index,
                reduction=reduction, label_smoothing=label_smoothing, sample_weight=sample_weight,
                smooth_finite_only=smooth_finite_only, logit_scale=logit_scale, softcap=softcap,
                temperature=temperature, z_loss=z_loss, shift=shift, max_memory=max_memory,
                accumulate_dtype=accumulate_dtype, options=options, impl=impl, n_threads=n_threads,
            )  # fmt: skip
    x, linear_weight, linear_bias = layer_of(input, linear_weight, linear_bias)
    target, values = split_target(target)
    if shift:
        x, target, values, sample_weight = shifted(x, target, values, sample_weight)
    ignored = -100 if ignore_index is None else ignore_index  # PyTorch's linear_cross_entropy says None for its default
    call = make_call(
        1, loss_dtype(x), soft_ignore(target, values, ignored), reduction, label_smoothing, smooth_finite_only,
        logit_scale, softcap, temperature, z_loss, n_threads,
    )  # fmt: skip
    if linear_weight.ndim > 2:
        return _many_heads(x, linear_weight, linear_bias, (target, values, weight, sample_weight), call)
    outer, classes = tuple(x.shape[:-1]), linear_weight.shape[0]
    check_targets(target, values, (*outer, classes), len(outer), call.options.ignore_index, x.device)
    check_weights(weight, sample_weight, (*outer, classes), len(outer), x.device)
    checked_memory(max_memory)
    max_rows, accumulate_dtype = honoured(options, accumulate_dtype)
    plan = Plan(max_memory, max_rows, checked_impl(impl), accumulator(linear_weight.dtype, accumulate_dtype))
    _formulas.check_labels(target, values, classes, call.options.ignore_index, before=(len(outer) - 1, int(shift)))
    flat, target, values, sample_weight = flat_rows(x, classes, target, values, sample_weight)
    loss = head_loss((flat, linear_weight, linear_bias, target, values, weight, sample_weight), call, plan)
    return loss.reshape(outer) if reduction == "none" else loss


NAMES_OF_LAYER = ("input", "linear_weight", "linear_bias")


def layer_of(
    x: Any, weight: Any, bias: Any, names: tuple[str, str, str] = NAMES_OF_LAYER, *, slices: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Validate a layer's tensors; return them in autocast's type where autocast is on; a rank's slices may be empty."""
    for name, tensor in zip(names, (x, weight, bias), strict=True):
        if tensor is None and name == names[2]:
            continue
        check_logits(tensor, name)
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} and the {names[0]} on {x.device}")
    if weight.ndim < 2 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"{names[0]} has shape {tuple(x.shape)} and {names[1]} {tuple(weight.shape)}; they are (..., D) and (V, D)"
        )
    if weight.shape[0] == 0 and not slices:
        raise ValueError(f"{names[1]} of shape {tuple(weight.shape)} has no classes")
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(f"{names[2]} has shape {tuple(bias.shape)}; one number a class is {tuple(weight.shape[:-1])}")
    kind = x.device.type
    if autocasts(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = (t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, weight, bias))
    for name, tensor in ((names[1], weight), (names[2], bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"{names[0]} has dtype {x.dtype} and {name} {tensor.dtype}; convert one of them")
    return x, weight, bias


def _many_heads(x: Tensor, heads: Tensor, bias: Any, others: tuple[Any, ...], call: Call) -> Tensor:
    """Return the loss of a weight of shape (C, d_1, …, D), by way of its logits (N, C, d_1, …), as PyTorch has it."""
    if x.ndim != 2:
        raise ValueError(f"linear_weight of shape {tuple(heads.shape)} needs an input (N, D), not {tuple(x.shape)}")
    flat_bias = None if bias is None else bias.reshape(-1)
    logits = torch.nn.functional.linear(x, heads.reshape(-1, heads.shape[-1]), flat_bias)
    logits = logits.reshape(len(x), *heads.shape[:-1])
    target, values, weight, sample_weight = others
    check_targets(target, values, logits.shape, 1, call.options.ignore_index, logits.device)
    check_weights(weight, sample_weight, logits.shape, 1, logits.device)
    return loss_of_logits((logits, *others), call)


def shifted(x: Tensor, target: Any, values: Any, sample_weight: Any) -> tuple[Tensor, Any, Any, Any]:
    """Return inputs and targets of which position t predicts target t + 1."""
    if x.ndim < 2:
        raise ValueError(f"shift=True needs a sequence: input (..., T, D), not {tuple(x.shape)}")
    axis = x.ndim - 2
    later = [
        t.narrow(axis, 1, max(0, t.shape[axis] - 1)) if isinstance(t, Tensor) and t.ndim > axis else t
        for t in (target, values, sample_weight)
    ]
    return x.narrow(axis, 0, max(0, x.shape[axis] - 1)), later[0], later[1], later[2]


def honoured(options: Any, accumulate_dtype: torch.dtype | None) -> tuple[int | None, torch.dtype | None]:
    """Return ``batch_chunk_size`` and ``acc_dtype`` of PyTorch's options; refuse those without a meaning here."""
    if options is None:
        return None, accumulate_dtype
    known = {"allow_retain_graph", "batch_chunk_size", "chunking_method", "acc_policy", "acc_dtype"}
    given = {f.name: getattr(options, f.name) for f in fields(options)} if is_dataclass(options) else None
    if given is None or not known <= set(given):
        raise TypeError(f"options must be a torch.nn.LinearCrossEntropyOptions, not {type(options).__name__}")
    if given["chunking_method"] not in (None, "auto"):
        raise ValueError(
            f"options.chunking_method={given['chunking_method']!r} has no meaning here; "
            "use batch_chunk_size or max_memory"
        )
    if given["acc_policy"] not in ("auto", "accurate"):
        raise ValueError(
            f"options.acc_policy={given['acc_policy']!r} has no meaning here, where sums are always 'accurate'"
        )
    if given["acc_dtype"] is not None and accumulate_dtype not in (None, given["acc_dtype"]):
        raise ValueError(f"accumulate_dtype={accumulate_dtype} contradicts options.acc_dtype={given['acc_dtype']}")
    for name in set(given) - known:
        if given[name] is not None:
            raise ValueError(f"options.{name}={given[name]!r} is not known here")
    return given["batch_chunk_size"], accumulate_dtype or given["acc_dtype"]


def checked_memory(max_memory: Any) -> None:
    if max_memory is None:
        return
    if isinstance(max_memory, bool) or not hasattr(max_memory, "__index__"):
        raise TypeError(f"max_memory must be a whole number of bytes or None, not {max_memory!r}")
    if max_memory < 1:
        raise ValueError(f"max_memory={max_memory} is not enough for a row of logits")


def checked_impl(impl: str | None) -> str | None:
    if impl not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"impl={impl!r} is none of {', '.join(map(repr, IMPLEMENTATIONS))} or None for the fastest")
    return impl


def flat_rows(x: Tensor, classes: int, target: Any, values: Any, sample_weight: Any) -> tuple[Tensor, Any, Any, Any]:
    """Return inputs of any leading rank as (N, D), and targets and weights of their rows likewise."""
    if x.ndim == 2:
        return x, target, values, sample_weight
    n = math.prod(x.shape[:-1])
    flat = x.reshape(n, x.shape[-1])
    if values is not None:
        width = values.shape[-1]
        target, values = target.reshape(n, width), values.reshape(n, width)
    elif target is not None:
        target = target.reshape((n, classes) if target.is_floating_point() else (n,))
    return flat, target, values, None if sample_weight is None else sample_weight.reshape(n)
