"""Linear layer and cross-entropy in one, without the N×V matrix of logits."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from softgrad.torch import _tiled
from softgrad.torch._batch import STORAGE
from softgrad.torch._call import (
    call_of,
    check_logits,
    check_targets,
    check_weights,
    is_dtensor,
    number,
    overridden,
    soft_ignore,
    split_target,
    stands_for_logits,
)
from softgrad.torch._composite import check_labels, has_tangent
from softgrad.torch._documented import LOSS, documented
from softgrad.torch._function import transformed
from softgrad.torch._linear_function import LinearCrossEntropyFunction, Plan, accumulator
from softgrad.torch._products import NAMES
from softgrad.torch.loss import (
    PLAIN,
    autocasts,
    dispatch,
    followed,
    followed_scalars,
    in_forward_mode,
    loss_dtype,
    scalar,
    soft_and_followed,
    traced,
)

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
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    smooth_finite_only: bool = False,
    logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    z_loss: float = 0.0,
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
    ``none`` the tiles are computed again in the backward pass.  A weight of the shape (C, d_1, …, D) is taken as
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
    (tensor(1.0986, grad_fn=<LinearCrossEntropyFunctionBackward>), tensor([-0.1667, -0.1667]))

    References
    ----------
    Wijmans et al., "Cut your losses in large-vocabulary language models", 2024, section 4 (never making the logits).
    """
    if is_dtensor(linear_weight) or is_dtensor(input):
        from softgrad.torch import _dtensor

        return _dtensor.linear_cross_entropy(
            input, linear_weight, linear_bias, target, weight, sample_weight, logit_scale, temperature, shift,
            ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing,
            smooth_finite_only=smooth_finite_only, softcap=softcap, z_loss=z_loss, max_memory=max_memory,
            accumulate_dtype=accumulate_dtype, options=options, impl=impl, n_threads=n_threads,
        )  # fmt: skip
    if stands_for_logits(input):
        return overridden(linear_cross_entropy, input)
    x, linear_weight, linear_bias = layer_of(input, linear_weight, linear_bias)
    target, values = split_target(target)
    if shift:
        x, target, values, sample_weight = shifted(x, target, values, sample_weight)
    scalars = followed_scalars(logit_scale=logit_scale, temperature=temperature)
    ignored = -100 if ignore_index is None else ignore_index  # PyTorch's linear_cross_entropy says None for its default
    call = call_of(
        1,
        loss_dtype(x),
        soft_ignore(target, values, ignored),
        reduction,
        label_smoothing,
        smooth_finite_only,
        scalar("logit_scale", logit_scale, scalars),
        number("softcap", softcap),
        scalar("temperature", temperature, scalars),
        number("z_loss", z_loss),
        n_threads,
        False,
    )
    if linear_weight.ndim > 2:
        return _many_heads(x, linear_weight, linear_bias, target, values, weight, sample_weight, call, scalars)
    outer, classes = tuple(x.shape[:-1]), linear_weight.shape[0]
    check_targets(target, values, (*outer, classes), len(outer), call.options, x.device)
    if weight is not None or sample_weight is not None:
        check_weights(weight, sample_weight, (*outer, classes), len(outer), x.device)
    checked_memory(max_memory)
    max_rows, accumulate_dtype = honoured(options, accumulate_dtype)
    plan = Plan(call, max_memory, max_rows, checked_impl(impl), accumulator(linear_weight.dtype, accumulate_dtype))
    shaped = target
    flat, target, values, sample_weight = flat_rows(x, classes, target, values, sample_weight)
    try:
        loss = _dispatch((flat, linear_weight, linear_bias, target, values, weight, sample_weight), plan, scalars)
    except IndexError:  # the place in the caller's target, not among the flattened rows
        check_labels(shaped, values, classes, call.options, before=(len(outer) - 1, int(shift)))
        raise
    return loss.reshape(outer) if reduction == "none" else loss


NAMES_OF_LAYER = ("input", "linear_weight", "linear_bias")


def layer_of(
    x: Any, weight: Any, bias: Any, names: tuple[str, str, str] = NAMES_OF_LAYER
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The layer's tensors, checked, in autocast's type where autocast is on."""
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
    if weight.shape[0] == 0 and names is NAMES_OF_LAYER:  # a rank's slice may be empty
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


def _many_heads(
    x: Tensor, heads: Tensor, bias: Any, target: Any, values: Any, weight: Any, sample_weight: Any, call: Any,
    scalars: Any,
) -> Tensor:  # fmt: skip
    """A weight of shape (C, d_1, …, D): logits (N, C, d_1, …) and their loss, as PyTorch has it."""
    if x.ndim != 2:
        raise ValueError(f"linear_weight of shape {tuple(heads.shape)} needs an input (N, D), not {tuple(x.shape)}")
    flat_bias = None if bias is None else bias.reshape(-1)
    logits = torch.nn.functional.linear(x, heads.reshape(-1, heads.shape[-1]), flat_bias)
    logits = logits.reshape(len(x), *heads.shape[:-1])
    check_targets(target, values, logits.shape, 1, call.options, logits.device)
    check_weights(weight, sample_weight, logits.shape, 1, logits.device)
    return dispatch(logits, target, values, weight, sample_weight, call, scalars)


def shifted(x: Tensor, target: Any, values: Any, sample_weight: Any) -> tuple[Tensor, Any, Any, Any]:
    """Position t predicts target t + 1: the causal language model's targets."""
    if x.ndim < 2:
        raise ValueError(f"shift=True needs a sequence: input (..., T, D), not {tuple(x.shape)}")
    axis = x.ndim - 2
    later = [
        t.narrow(axis, 1, max(0, t.shape[axis] - 1)) if isinstance(t, Tensor) and t.ndim > axis else t
        for t in (target, values, sample_weight)
    ]
    return x.narrow(axis, 0, max(0, x.shape[axis] - 1)), later[0], later[1], later[2]


def honoured(options: Any, accumulate_dtype: torch.dtype | None) -> tuple[int | None, torch.dtype | None]:
    """What PyTorch's ``LinearCrossEntropyOptions`` mean here; what means nothing here is refused by name."""
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
    """Inputs of any leading rank as (N, D), and what belongs to their rows likewise."""
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


def _dispatch(tensors: tuple[Any, ...], plan: Plan, scalars: dict[str, Tensor]) -> Tensor:
    """Choose who computes: tiles through the kernels, tiles in PyTorch's operations, or the logits and their loss."""
    x, weight, bias, target, values, class_weight, sample_weight = tensors
    tracing_tangents = torch.compiler.is_compiling() and in_forward_mode()
    weights = any(t is not None and followed(t) for t in (class_weight, sample_weight))
    soft = soft_and_followed(target, values)
    # A graph cannot hold the tiles' own derivatives.
    compiled = torch.compiler.is_compiling() and (bool(scalars) or weights or soft or plan.impl == "composite")
    if transformed() or tracing_tangents or compiled or has_tangent(x) or has_tangent(weight) or has_tangent(bias):
        logits = torch.nn.functional.linear(x, weight, bias)
        return dispatch(logits, target, values, class_weight, sample_weight, plan.call, scalars)
    odd = type(x) not in PLAIN or type(weight) not in PLAIN or traced()
    if (
        odd
        or scalars
        or weights
        or soft
        or plan.impl == "composite"
        or x.device.type != "cpu"
        or x.dtype not in STORAGE
    ):
        check_labels(target, values, len(weight), plan.call.options)
        return _tiled.linear_cross_entropy(tensors, plan.call, scalars, plan.max_memory)
    if torch.compiler.is_compiling():
        from softgrad.torch import _compiled

        return _compiled.linear_cross_entropy(tensors, plan)
    return LinearCrossEntropyFunction.apply(*tensors, plan, torch.is_grad_enabled())
