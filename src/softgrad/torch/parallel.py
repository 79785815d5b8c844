"""The losses where each rank of a `torch.distributed` group has some of the classes: vocabulary parallelism.

One rule: what has a class axis (logits, the head's weight and bias, class weights, dense soft targets) is this rank's
slice, in the order of the ranks; what has rows alone (inputs of the head, labels, sparse targets, which hold global
indices, row weights) is whole, and the same on every rank.  Slices may differ in size.

A call exchanges a header of two kilobytes, in which the ranks agree, also about the contents of what
is the same on every rank, and makes two small reductions: the rows' maxima, and the sums at these
maxima; with labels and class weights a third, of the labels' weights.  The linear head sends back one
sum of the size of its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgrad.torch._documented import LOSS, documented
from softgrad.torch._ranks import call
from softgrad.torch._ranks.agreement import Agreement

__all__ = ["vocab_parallel_cross_entropy", "vocab_parallel_linear_cross_entropy"]


def _calls() -> Any:
    """Return the module that makes calls: in a graph one that interrupts it."""
    if torch.compiler.is_compiling():
        from softgrad.torch._ranks import compiled

        return compiled
    return call


def _agreement(function: str) -> Agreement:
    return Agreement(function, remedy="tensors without a class axis are the same on every rank of the group")


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

    Replaces ``cross_entropy(torch.cat(everyones_logits, 1), target)``, with the same bits of the loss on every rank,
    and this rank's columns of the gradient.

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
    Derivatives of every order, by whatever tensor, work: a vector that multiplies a gradient lies as the gradient does,
    slices for slices, and whole where that is whole.  Forward mode and ``torch.func`` are refused, and `torch.compile`
    breaks its graph here.  All ranks make the same calls, backward passes included.

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
    return _calls().cross_entropy_over(
        _agreement("vocab_parallel_cross_entropy"), "local_logits", local_logits, target, group=group, weight=weight,
        ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, sample_weight=sample_weight,
        smooth_finite_only=smooth_finite_only, logit_scale=logit_scale, softcap=softcap, temperature=temperature,
        z_loss=z_loss, inplace=inplace, n_threads=n_threads,
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
        Sum the gradient of ``x`` over the ranks, each tile of rows while the next one is computed.  Without it each
        rank gets its own classes' part, for a caller who sums it in another way.
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
    again, a tile of rows at a time, which is four matrix products instead of three.  Second derivatives, and
    derivatives by soft targets and class weights, go by way of this rank's logits.  ``weight`` is this rank's
    slice of class weights.  In half precision each rank's part of the gradient of ``x`` is summed in float32, and
    rounded once.

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
    return _calls().linear_cross_entropy_over(
        _agreement("vocab_parallel_linear_cross_entropy"), ("x", "local_weight", "bias"), x, local_weight, target,
        linear_bias=bias, group=group, reduce_x_grad=reduce_x_grad, weight=weight, ignore_index=ignore_index,
        reduction=reduction, label_smoothing=label_smoothing, sample_weight=sample_weight,
        smooth_finite_only=smooth_finite_only, logit_scale=logit_scale, softcap=softcap, temperature=temperature,
        z_loss=z_loss, shift=shift, max_memory=max_memory, accumulate_dtype=accumulate_dtype, torch_options=options,
        impl=impl, n_threads=n_threads,
    )  # fmt: skip
