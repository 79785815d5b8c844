"""Tensors on the CPU as batches for the kernels: views where they lie, results as fresh tensors.

Large gradients lie in huge pages (`_memory`), which cost a fraction of the page faults of PyTorch's own allocation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core import backend, fallback
from softgrad._core.arrays import Array, LogitRows, Output, adjacent, flatten
from softgrad._core.backend import Storage, TargetKind
from softgrad._core.call import build_head, settle
from softgrad._core.schedule import run_gradient, run_rows, run_statistics, streams
from softgrad._core.targets import TargetArrays, as_targets
from softgrad._core.threads import INLINE_ELEMENTS, default_threads
from softgrad._core.weights import class_weights
from softgrad.torch import _memory
from softgrad.torch._call import Call

FEW_CLASSES = 64
TILE = backend.kernels().tile
HALF = (torch.bfloat16, torch.float16)
STORAGE = {
    torch.float32: Storage.float32,
    torch.float64: Storage.float64,
    torch.bfloat16: Storage.bfloat16,
    torch.float16: Storage.float16,
}
_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.uint16),  # its bits
}


def threads_for(n_threads: int | None, elements: int) -> int:
    """Threads of a call: its own number, or no more than PyTorch was told to use; 1 for a few elements."""
    if n_threads is not None:
        return n_threads
    return 1 if elements < INLINE_ELEMENTS else min(default_threads(), torch.get_num_threads())


def array_of(tensor: Tensor) -> Array:
    """A tensor's memory as an array; bfloat16 as its bits."""
    tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


class _Lent:
    """A tensor's memory for NumPy to look at."""

    def __init__(self, tensor: Tensor) -> None:
        dtype, size = _DTYPES[tensor.dtype], tensor.element_size()
        self.tensor = tensor
        self.__array_interface__ = {
            "shape": tuple(tensor.shape), "typestr": dtype.str, "data": (tensor.data_ptr(), False),
            "strides": tuple(s * size for s in tensor.stride()), "version": 3,
        }  # fmt: skip


def lent_array_of(tensor: Tensor) -> Array:
    """`array_of`, for parameters: ``Tensor.numpy`` fixes the size of the memory, which ``fully_shard`` has to change.

    The array is for the time of the call: when the parameter is sharded again, its memory goes.
    """
    tensor = tensor.detach()
    if tensor.is_neg() or tensor.numel() == 0:
        return array_of(tensor.resolve_neg())
    return np.asarray(_Lent(tensor))


def tensor_of(array: Array, dtype: torch.dtype) -> Tensor:
    """The way back."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def rows_of(logits: Tensor, axis: int) -> LogitRows:
    """Logits as rows for the kernels."""
    array = array_of(logits)
    if array.shape[axis] == 0:
        raise ValueError(f"input of shape {tuple(array.shape)} has no classes along axis {axis}")
    rows = array if array.ndim == 2 and axis == 1 else flatten(array, axis)
    return LogitRows(adjacent(rows), STORAGE[logits.dtype], array.shape, axis, _DTYPES[logits.dtype])


def targets_of(target: Tensor, values: Tensor | None, rows: LogitRows) -> TargetArrays:
    """Targets as the kernels read them; shapes and dtypes have been checked."""
    array = array_of(target)
    if values is not None:
        n, k = len(rows.array), array.shape[-1]
        if k == 0 or values.dtype is not torch.bfloat16:
            return as_targets((array, array_of(values.float() if k == 0 else values)), rows)
        index = np.ascontiguousarray(array.reshape(n, k))
        data = np.ascontiguousarray(array_of(values).reshape(n, k))
        return TargetArrays(TargetKind.sparse, index, data, Storage.bfloat16)
    if not target.is_floating_point():
        labels = array.reshape(-1)
        return TargetArrays(TargetKind.labels, labels)
    if target.dtype not in STORAGE:
        array = array_of(target.float())
    storage = STORAGE.get(target.dtype, Storage.float32)
    return TargetArrays(TargetKind.dense, values=adjacent(flatten(array, rows.axis)), storage=storage)


def weights_of(tensor: Tensor | None) -> Array | None:
    if tensor is None:
        return None
    return tensor.detach().to(torch.float64).numpy()


def row_weights_of(sample_weight: Tensor | None) -> Array | None:
    """Row weights in float64, checked."""
    weights = weights_of(sample_weight)
    if weights is None:
        return None
    if not np.isfinite(weights).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(weights))[0])
        raise ValueError(f"sample_weight{list(place)} is {weights[place]}; weights are finite (0 leaves a row out)")
    return np.ascontiguousarray(weights).reshape(-1)


def remembered(classes: int) -> int:
    """Bytes a row that a forward pass keeps for the gradient: few classes are computed again more quickly."""
    kernels = backend.kernels()
    return 0 if kernels is fallback or classes <= FEW_CLASSES else int(kernels.statistics_size)


def _float32(total: Any) -> Array:
    with np.errstate(over="ignore"):
        return np.array(total, dtype=np.float32)


def at_once(logits: Tensor, call: Call) -> bool:
    """Whether the gradient is best made with the loss: from the same exponentials, where a row is one tile."""
    return call.options.reduction != "none" and logits.shape[call.axis] <= TILE and not call.inplace


def made_at_once(tensors: Sequence[Any], call: Call, upstream: Tensor, unit: Tensor | None) -> Tensor | None:
    """The gradient of a batch of that kind: ``unit``, or the same made again, times what comes from above.

    None where that would round half precision twice.
    """
    scale = float(upstream)
    if scale != 1.0 and tensors[0].dtype in HALF:
        return None
    gradient = Batch(tensors, call).gradient(None) if unit is None else unit
    return gradient if scale == 1.0 else gradient.mul_(scale)


class Batch:
    """One batch of logits, and the passes over it."""

    def __init__(
        self,
        tensors: Sequence[Any],
        call: Call,
        upstream: Tensor | None = None,
    ) -> None:
        logits, target, values, weight, sample_weight = tensors
        options = call.options
        self.options, self.dtype = options, logits.dtype
        self.rows = rows = rows_of(logits, call.axis)
        self.targets = targets_of(target, values, rows)
        self.n, self.cols = rows.array.shape
        self.n_threads = threads_for(call.n_threads, rows.array.size)
        self.weights = class_weights(weights_of(weight), rows, "weight")
        a = row_weights_of(sample_weight)
        if upstream is not None and options.reduction == "none":
            g = upstream.detach().to(torch.float64).numpy().reshape(-1)
            # A row of weight 0 stays ignored whatever comes from above.
            a = g if a is None else np.where(a == 0, 0.0, a * g)
            a = np.ascontiguousarray(a)
        self.head = build_head(rows.array, rows.storage, self.targets, options.record(), self.weights, a)
        try:
            self.factors = settle(self.head, rows, self.targets, options)
        except ValueError as error:  # as PyTorch, an IndexError, with PyTorch's name of the argument
            raise IndexError(str(error).replace("targets", "target", 1)) from None
        if upstream is not None and options.reduction != "none" and not self.factors.empty_mean:
            scale = float(upstream)
            self.head.set_factors(self.factors.ce_factor * scale, self.factors.z_factor * scale)

    def results(self, losses: Array | None, grad: Array | None, *, stream: bool = False) -> Any:
        """Where the kernels write."""
        return backend.kernels().Outputs(self.n, self.cols, self.rows.storage, losses, grad=grad, stream=stream)

    def loss_and_gradient(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient for an upstream of one."""
        losses = np.empty(self.n)
        grad = self.gradient(None, losses=losses)
        return self.reduce(losses, dtype), grad

    def losses(self, keep: bool) -> tuple[Array, Array | None]:
        """Row losses in float64, factors applied, and, if asked for, what a gradient can be computed from later."""
        losses = np.empty(self.n)
        if not keep or not remembered(self.cols) or self.n == 0:
            results = self.results(losses, None)
            run_rows(lambda lo, hi: self.head.rows(results, lo, hi), self.n, self.cols, self.n_threads)
            return losses, None
        return losses, run_statistics(self.head, self.results(losses, None), self.n, self.cols, self.n_threads)

    def gradient(self, stats: Array | None, out: Array | None = None, losses: Array | None = None) -> Tensor:
        """``∂L/∂o``, from the statistics of the forward pass or from scratch, into ``out`` or fresh memory."""
        to = Output(self.rows, out, allocate=_memory.empty)
        grad = to.rows
        if self.factors.empty_mean:
            grad[...] = 0
        else:
            self._gradient_rows(stats, grad, losses)
        return tensor_of(to.deliver(), self.dtype)

    def _gradient_rows(self, stats: Array | None, grad: Array, losses: Array | None) -> None:
        results = self.results(losses, grad, stream=streams(grad) and grad.ctypes.data != self.rows.array.ctypes.data)
        if stats is None:
            run_rows(lambda lo, hi: self.head.rows(results, lo, hi), self.n, self.cols, self.n_threads)
        else:
            run_gradient(self.head, results, stats, self.n, self.cols, self.n_threads)

    def product(self, vector: Tensor) -> Tensor:
        """``H v`` of the loss by the logits."""
        v = adjacent(flatten(array_of(vector.to(self.dtype)), self.rows.axis))
        to = Output(self.rows, None)
        if self.factors.empty_mean:
            to.rows[...] = 0
        else:
            run_rows(lambda lo, hi: self.head.product(v, to.rows, lo, hi), self.n, self.cols, self.n_threads)
        return tensor_of(to.deliver(), self.dtype)

    def reduce(self, losses: Array, dtype: torch.dtype) -> Tensor:
        """The loss as a tensor."""
        if self.options.reduction == "none":
            outer = self.rows.outer
            return torch.from_numpy(losses).reshape(outer).to(dtype)
        if self.factors.empty_mean:
            return torch.tensor(float("nan"), dtype=dtype)
        with np.errstate(invalid="ignore"):  # infinities of both signs, of which the NaN tells
            total = losses.sum() if self.n > 1 else losses[0] if self.n else 0.0
        if dtype is torch.float32:
            return torch.from_numpy(_float32(total))
        return torch.tensor(total, dtype=dtype)
