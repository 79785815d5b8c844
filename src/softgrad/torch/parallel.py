"""The losses where each rank of a `torch.distributed` group has some of the classes: vocabulary parallelism.

One rule: what has a class axis (logits, the head's weight and bias, class weights, dense soft targets) is this rank's
slice, in the order of the ranks; what has rows alone (inputs of the head, labels, sparse targets, which hold global
indices, row weights) is whole, and the same on every rank.  Slices may differ in size.

A call exchanges a header of two kilobytes, in which the ranks agree, and two small reductions: the rows' maxima, and the
sums at these maxima.  The linear head sends back one sum of the size of its input.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from softgrad import _backend, _fallback
from softgrad._options import Options
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
from softgrad.torch._documented import LOSS, documented
from softgrad.torch._function import transformed
from softgrad.torch._linear_function import Plan, accumulator
from softgrad.torch._parallel_function import ParallelFunction, ParallelLinearFunction, through_logits
from softgrad.torch._parallel_group import Place, agree, fingerprint, group_of
from softgrad.torch.linear import checked_impl, checked_memory, flat_rows, honoured, layer_of, shifted
from softgrad.torch.loss import PLAIN, followed, followed_scalars, loss_dtype, refuse_inplace, scalar, soft_and_followed

__all__ = ["vocab_parallel_cross_entropy", "vocab_parallel_linear_cross_entropy"]


@documented(*LOSS, "inplace", "n_threads")
def vocab_parallel_cross_entropy(
    local_logits: Tensor,
    target: Any,
    *,
    group: Any = None,
    weight: Tensor | None = None,
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
    """Cross-entropy of logits whose class axis is cut into slices, one a rank.

    Replaces ``cross_entropy(torch.cat(everyone's_logits, 1), target)``, with the same bits of the loss on every rank and
    this rank's columns of the gradient.

    Parameters
    ----------
    local_logits : Tensor
        This rank's slice of the logits: ``(C_own)``, ``(N, C_own)`` or ``(N, C_own, d_1, …)``, where the classes of the
        ranks follow one another; slices may differ in size, and may be empty.
    target : Tensor or pair of Tensors
        As in `softgrad.torch.cross_entropy`: labels and the pair ``(indices, values)`` count all classes and are the
        same on every rank; dense soft targets are this rank's slice.
    group : torch.distributed.ProcessGroup, optional
        The ranks that share the classes; by default all.
    {options}

    Returns
    -------
    Tensor
        As `softgrad.torch.cross_entropy` returns it, the same on every rank.

    Raises
    ------
    RuntimeError
        On every rank, where the ranks disagree about shapes, dtypes, options or targets, or one refuses its arguments
        (that one raises its own error): the rank is named.  Where a rank is lost, within the time-out of the group.
    IndexError
        For a label outside all classes that is not ``ignore_index``.
    ValueError
        For shapes or devices that do not fit, and an option outside its range.
    TypeError
        For an input that is no floating-point tensor, or targets that are no numbers.

    Notes
    -----
    ``weight`` is this rank's slice too, of shape (C_own,).  ``label_smoothing`` spreads over the classes of all ranks.
    Derivatives of every order, by whatever tensor, work; a function of the gradients that is differentiated again is
    the sum of the ranks' functions.  Forward mode and ``torch.func`` are refused.  All ranks make the same calls,
    backward passes included.

    Examples
    --------
    Under ``torchrun --nproc-per-node 2``, or here in a world of one:

    >>> import os, tempfile, torch
    >>> from softgrad.torch.parallel import vocab_parallel_cross_entropy
    >>> store = "file://" + os.path.join(tempfile.mkdtemp(), "store")
    >>> torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    >>> logits = torch.tensor([[2.0, 1.0, 0.1]], requires_grad=True)
    >>> vocab_parallel_cross_entropy(logits, torch.tensor([0])).backward()
    >>> logits.grad  # S − y
    tensor([[-0.3410,  0.2424,  0.0986]])
    >>> torch.distributed.destroy_process_group()

    References
    ----------
    Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism", 2019,
    section 3 (the parallel cross-entropy).
    """
    return cross_entropy_over(
        "vocab_parallel_cross_entropy", local_logits, target, group, (), weight, ignore_index, reduction,
        label_smoothing, sample_weight, smooth_finite_only, logit_scale, softcap, temperature, z_loss, inplace, n_threads,
    )  # fmt: skip


@documented(*LOSS, "shift", "max_memory", "accumulate_dtype", "torch_options", "impl", "n_threads")
def vocab_parallel_linear_cross_entropy(
    x: Tensor,
    local_weight: Tensor,
    target: Any,
    *,
    bias: Tensor | None = None,
    group: Any = None,
    reduce_x_grad: bool = True,
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
    """Cross-entropy of the logits ``o = x Wᵀ + b`` where each rank has some rows of W; no rank makes all its logits.

    Replaces ``vocab_parallel_cross_entropy(torch.nn.functional.linear(x, local_weight, bias), target)``.

    Parameters
    ----------
    x : Tensor of shape (..., D)
        Inputs of the head, the same on every rank; float32, float64, float16 or bfloat16.
    local_weight : Tensor of shape (V_own, D)
        This rank's rows of the head, of the dtype of ``x``; slices may differ in size, and may be empty.
    target : Tensor or pair of Tensors
        Labels of shape (...), or a pair ``(indices, values)`` of shape (..., k), which count all classes and are the
        same on every rank; or this rank's slice (..., V_own) of soft targets.
    bias : Tensor of shape (V_own,), optional
        This rank's slice of ``b``.
    group : torch.distributed.ProcessGroup, optional
        The ranks that share the classes; by default all.
    reduce_x_grad : bool, default True
        Sum the gradient of ``x`` over the ranks, each tile of rows while the next one is computed.  Without it each rank
        gets its own classes' part, for a caller who sums it in another way.
    {options}

    Returns
    -------
    Tensor
        As `softgrad.torch.linear_cross_entropy` returns it, the same on every rank.

    Raises
    ------
    RuntimeError
        On every rank, where the ranks disagree about shapes, dtypes, options or targets, or one refuses its arguments
        (that one raises its own error): the rank is named.  Where a rank is lost, within the time-out of the group.
    IndexError
        For a label outside all classes that is not ``ignore_index``.
    ValueError
        For shapes or devices that do not fit, an option outside its range, or too little ``max_memory`` for a row.
    TypeError
        For dtypes that differ or are no floating-point numbers.

    Notes
    -----
    Where the logits of all rows fit into ``max_memory`` they are kept for the backward pass; otherwise it makes them
    again, a tile of rows at a time, which is four matrix products instead of three.  Second derivatives, and derivatives
    by weights, temperatures and soft targets, go by way of this rank's logits.  ``weight`` is this rank's slice
    of class weights.

    Examples
    --------
    Under ``torchrun --nproc-per-node 2``, or here in a world of one:

    >>> import os, tempfile, torch
    >>> from softgrad.torch.parallel import vocab_parallel_linear_cross_entropy
    >>> store = "file://" + os.path.join(tempfile.mkdtemp(), "store")
    >>> torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    >>> x, weight = torch.ones(4, 2), torch.zeros(3, 2, requires_grad=True)
    >>> vocab_parallel_linear_cross_entropy(x, weight, torch.tensor([0, 1, 2, 0])).backward()
    >>> weight.grad[0]  # (S − y)ᵀ x
    tensor([-0.1667, -0.1667])
    >>> torch.distributed.destroy_process_group()

    References
    ----------
    Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism", 2019,
    section 3 (the parallel cross-entropy).
    """
    return linear_cross_entropy_over(
        "vocab_parallel_linear_cross_entropy", x, local_weight, target, bias, group, (), reduce_x_grad, weight,
        ignore_index, reduction, label_smoothing, sample_weight, smooth_finite_only, logit_scale, softcap, temperature,
        z_loss, shift, max_memory, accumulate_dtype, options, impl, n_threads,
    )  # fmt: skip


# --- what DTensors use as well ---------------------------------------------------------------------------------------


def cross_entropy_over(
    function: str, logits: Tensor, target: Any, group: Any, row_groups: tuple[Any, ...], weight: Tensor | None,
    ignore_index: int | None, reduction: str, label_smoothing: float, sample_weight: Tensor | None,
    smooth_finite_only: bool, logit_scale: Any, softcap: Any, temperature: Any, z_loss: Any, inplace: bool,
    n_threads: int | None,
) -> Tensor:  # fmt: skip
    """`vocab_parallel_cross_entropy`, of a batch whose rows are spread over ``row_groups``."""
    group = group_of(group)
    facts: dict[str, Any] = {"function": function}
    error: Exception | None = None
    size = 0
    try:
        _refuse_transforms(function, logits, target, weight, sample_weight)
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
        facts |= _facts(outer_shape(logits.shape, axis), logits, target, values, weight, sample_weight, call, scalars)
        facts |= {"inplace": inplace, "gradients": _followed(local_logits=logits), "kernels": native}
    except Exception as caught:  # noqa: BLE001 - the others have to hear of it
        error = caught
    place = _agree(group, logits, size, facts, error)
    _composite.check_labels(target, values, place.classes, call.options)
    tensors = (logits, target, values, weight, sample_weight)
    if native:
        return ParallelFunction.apply(*tensors, call, place, row_groups)
    return _parallel_composite.cross_entropy(tensors, call, place, row_groups, scalars)


def linear_cross_entropy_over(
    function: str, x: Tensor, linear: Tensor, target: Any, bias: Tensor | None, group: Any, row_groups: tuple[Any, ...],
    reduce_x_grad: bool, weight: Tensor | None, ignore_index: int | None, reduction: str, label_smoothing: float,
    sample_weight: Tensor | None, smooth_finite_only: bool, logit_scale: Any, softcap: Any, temperature: Any,
    z_loss: Any, shift: bool, max_memory: int | None, accumulate_dtype: torch.dtype | None, options: Any,
    impl: str | None, n_threads: int | None,
) -> Tensor:  # fmt: skip
    """`vocab_parallel_linear_cross_entropy`, of a batch whose rows are spread over ``row_groups``."""
    group = group_of(group)
    facts: dict[str, Any] = {"function": function}
    error: Exception | None = None
    size = 0
    try:
        _refuse_transforms(function, x, linear, bias, target, weight, sample_weight)
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
        facts |= _facts(outer, inputs, target, values, weight, sample_weight, call, scalars)
        facts |= {
            "features": inputs.shape[-1], "bias": bias is not None, "reduce_x_grad": reduce_x_grad,
            "max_memory": max_memory, "rows of a tile": max_rows, "accumulate_dtype": plan.accumulate_dtype,
            "gradients": _followed(x=inputs, local_weight=linear, bias=bias), "kernels": native,
        }  # fmt: skip
    except Exception as caught:  # noqa: BLE001 - the others have to hear of it
        error = caught
    place = _agree(group, x, size, facts, error)
    _composite.check_labels(target, values, place.classes, call.options, before=(len(outer) - 1, int(shift)))
    flat, target, values, sample_weight = flat_rows(inputs, size, target, values, sample_weight)
    tensors = (flat, linear, bias, target, values, weight, sample_weight)
    if native:
        loss = ParallelLinearFunction.apply(*tensors, plan, place, row_groups, reduce_x_grad)
    else:
        loss = through_logits(tensors, call, place, row_groups, scalars, reduce_x_grad)
    return loss.reshape(outer) if reduction == "none" else loss


def _agree(group: Any, tensor: Any, size: int, facts: dict[str, Any], error: Exception | None) -> Place:
    place = agree(group, tensor.device if isinstance(tensor, Tensor) else "cpu", size, facts, error)
    if place.classes == 0:
        raise ValueError("no rank has a class")
    return place


def _native(logits: Tensor, target: Any, values: Any, weight: Any, sample_weight: Any, scalars: Any) -> bool:
    """Whether the kernels compute: as for one process, but for soft targets' derivatives."""
    return (
        type(logits) in PLAIN
        and logits.device.type == "cpu"
        and logits.dtype in STORAGE
        and _backend.kernels() is not _fallback
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


def _facts(
    outer: tuple[int, ...], logits: Tensor, target: Any, values: Any, weight: Any, sample_weight: Any, call: Call,
    scalars: dict[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    """What all ranks have to agree about."""
    if values is not None:
        kind = f"sparse ({target.dtype}, {values.dtype}), {target.shape[-1]} a row"
    else:
        kind = f"{'soft' if target.is_floating_point() else 'labels'} ({target.dtype})"
    facts = {"rows": outer, "dtype": f"{logits.dtype} on {logits.device.type}", "the kind of target": kind}
    facts |= {f.name: getattr(call.options, f.name) for f in fields(Options) if not f.name.endswith("_weight")}
    facts |= {"weight": weight is not None, "sample_weight": sample_weight is not None}
    soft = values if values is not None else target if target.is_floating_point() else None
    facts["derivatives"] = _followed(weight=weight, sample_weight=sample_weight, target=soft, **scalars)
    if values is not None or not target.is_floating_point():
        facts["the contents of target"] = fingerprint(target) + fingerprint(values)
    facts["the contents of sample_weight"] = fingerprint(sample_weight)
    return facts
