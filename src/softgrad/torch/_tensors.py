"""Views of CPU tensors as arrays for the kernels, and results as tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core.arrays import Array, LogitRows, adjacent, flatten
from softgrad._core.backend import Storage, TargetKind
from softgrad._core.targets import NO_TARGETS, TargetArrays
from softgrad._core.threads import INLINE_ELEMENTS, default_threads

HALF = (torch.bfloat16, torch.float16)
STORAGE = {
    torch.float32: Storage.float32,
    torch.float64: Storage.float64,
    torch.bfloat16: Storage.bfloat16,
    torch.float16: Storage.float16,
}
ARRAY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.uint16),  # its bits
}


def threads_for(n_threads: int | None, elements: int) -> int:
    """Return the threads of a call: its own number, or at most PyTorch's setting; 1 for few elements."""
    if n_threads is not None:
        return n_threads
    return 1 if elements < INLINE_ELEMENTS else min(default_threads(), torch.get_num_threads())


def array_of(tensor: Tensor) -> Array:
    """Return a tensor's memory as an array, bfloat16 as its bits; negated and conjugate views are resolved."""
    tensor = tensor.detach()
    if tensor.is_neg() or tensor.is_conj():
        tensor = tensor.resolve_neg().resolve_conj()
    check_storage(tensor)
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()


def check_storage(tensor: Tensor) -> None:
    """Refuse a view of memory that has been freed, as by resizing its storage to 0."""
    if (tensor.is_contiguous() and has_memory(tensor)) or tensor.numel() == 0:
        return
    size = tensor.untyped_storage().nbytes()
    last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if (last + 1) * tensor.element_size() > size:
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} reaches beyond its storage of {size} bytes; it was resized"
        )


def has_memory(tensor: Tensor) -> bool:
    """Return whether a contiguous tensor lies within its storage."""
    needed = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    return bool(tensor.untyped_storage().nbytes() >= needed)


class _Lent:
    """A tensor's memory through NumPy's array interface."""

    def __init__(self, tensor: Tensor) -> None:
        dtype, size = ARRAY_DTYPES[tensor.dtype], tensor.element_size()
        self.tensor = tensor
        self.__array_interface__ = {
            "shape": tuple(tensor.shape), "typestr": dtype.str, "data": (tensor.data_ptr(), False),
            "strides": tuple(s * size for s in tensor.stride()), "version": 3,
        }  # fmt: skip


def lent_array_of(tensor: Tensor) -> Array:
    """Return `array_of` a parameter, valid during the call only.

    ``Tensor.numpy`` fixes the size of the storage, which ``fully_shard`` has to change between the passes.
    """
    tensor = tensor.detach()
    if tensor.is_neg() or tensor.numel() == 0:
        return array_of(tensor)
    check_storage(tensor)
    return np.asarray(_Lent(tensor))


def tensor_of(array: Array, dtype: torch.dtype) -> Tensor:
    """Return an array's memory as a tensor."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)


def rows_of(logits: Tensor, axis: int) -> LogitRows:
    """Return logits as rows for the kernels."""
    array = array_of(logits)
    rows = array if array.ndim == 2 and axis == 1 else flatten(array, axis)
    return LogitRows(adjacent(rows), STORAGE[logits.dtype], array.shape, axis, ARRAY_DTYPES[logits.dtype])


def targets_of(target: Tensor | None, values: Tensor | None, axis: int) -> TargetArrays:
    """Return validated targets as the kernels read them."""
    if target is None:
        return NO_TARGETS
    if values is not None:
        index, shares = array_of(target), array_of(_stored(values))
        n = math.prod(index.shape[:-1])
        index, shares = (np.ascontiguousarray(part.reshape(n, index.shape[-1])) for part in (index, shares))
        return TargetArrays(TargetKind.sparse, index, shares, STORAGE[_stored(values).dtype])
    if not target.is_floating_point():
        return TargetArrays(TargetKind.labels, np.ascontiguousarray(array_of(target).reshape(-1)))
    soft = _stored(target)
    return TargetArrays(TargetKind.dense, None, adjacent(flatten(array_of(soft), axis)), STORAGE[soft.dtype])


def _stored(values: Tensor) -> Tensor:
    """Return floating-point values in a type that the kernels read."""
    return values if values.dtype in STORAGE else values.float()


def vector_of(tensor: Tensor | None) -> Array | None:
    """Return one number a row as contiguous float64."""
    if tensor is None:
        return None
    return np.ascontiguousarray(tensor.detach().to(torch.float64).resolve_neg().numpy()).reshape(-1)


def class_vector_of(weight: Tensor | None, storage: Any) -> Array | None:
    """Return validated class weights in the arithmetic type of the kernels."""
    if weight is None:
        return None
    wide = torch.float64 if storage is Storage.float64 else torch.float32
    return np.ascontiguousarray(weight.detach().to(wide).resolve_neg().numpy())
