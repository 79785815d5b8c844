"""The caller's arrays as the rows that kernels read: any shape, any class axis, any memory order.

Nothing is copied that a kernel can read where it is; nothing is written that the caller did not hand over for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softgrad._core.backend import Storage

Array = NDArray[Any]

# Dtypes that have been met; bfloat16 (ml_dtypes) has no dtype object until its owner is imported.
STORAGE: dict[Any, Any] = {
    np.dtype("f4"): Storage.float32,
    np.dtype("f8"): Storage.float64,
    np.dtype("f2"): Storage.float16,
}


class LogitRows(NamedTuple):
    """Logits as (N, V) for the kernels, and the way back."""

    array: Array  # what kernels read; bfloat16 as its bits in uint16
    storage: Any
    shape: tuple[int, ...]  # the caller's
    axis: int
    dtype: np.dtype[Any]  # the caller's, integers promoted

    @property
    def outer(self) -> tuple[int, ...]:
        """The caller's shape without the class axis: one entry a row."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    @property
    def result_dtype(self) -> type[np.floating[Any]]:
        """Return the type of losses and by-products: float64 for float64 logits, else float32."""
        return np.float64 if self.storage is Storage.float64 else np.float32


def plain(value: Any, name: str) -> Array:
    """Return an argument as an ordinary array; refuse masks and missing values."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array; pass {name}.filled(...), with numbers in place of the masked entries"
        )
    if _has_missing(value):
        raise ValueError(f"{name} has missing values; fill them or drop their rows")
    return np.asarray(value)


def _has_missing(value: Any) -> bool:
    """Return whether an array of Arrow, Polars or a pandas extension type has entries without a value."""
    if (count := getattr(value, "null_count", None)) is not None:
        return bool(np.sum(np.asarray(count() if callable(count) else count)))
    if not hasattr(value, "isna"):
        return False
    extension = [not isinstance(dtype, np.dtype) for dtype in (value.dtypes if value.ndim == 2 else [value.dtype])]
    return any(extension) and bool(np.asarray(value.isna()).reshape(len(value), -1)[:, extension].any())


def storage_of(dtype: np.dtype[Any], name: str) -> Any:
    """Return how the kernels call a floating dtype."""
    storage = STORAGE.get(dtype)
    if storage is None:
        native = dtype.newbyteorder("=")
        if native not in STORAGE and dtype.name == "bfloat16":
            STORAGE[native] = Storage.bfloat16
        if native not in STORAGE:
            raise TypeError(f"{name} of dtype {dtype} are not supported; use float32, float64, float16 or bfloat16")
        storage = STORAGE[native]
    return storage


def adjacent(rows: Array) -> Array:
    """The array itself if kernels can read it, or a copy: aligned, native, columns adjacent, rows whole items apart."""
    size = rows.itemsize
    if rows.flags.c_contiguous and rows.flags.aligned and rows.dtype.isnative:
        return rows
    usable = rows.flags.aligned and rows.dtype.isnative and rows.strides[0] % size == 0
    if usable and (rows.shape[1] == 1 or rows.strides[1] == size):
        return rows
    return fresh(rows)


def fresh(array: Array) -> Array:
    """Copy into memory of its own: C order, native, aligned (`numpy.ascontiguousarray` keeps what is not aligned)."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def flatten(array: Array, axis: int) -> Array:
    """(…, V, …) as (N, V): a view where NumPy can make one."""
    if axis != array.ndim - 1:
        array = np.moveaxis(array, axis, -1)
    if array.ndim == 2:
        return array
    count = 1
    for length in array.shape[:-1]:
        count *= length
    return array.reshape(count, array.shape[-1])


def raw(array: Array) -> Array:
    """What the buffer protocol can pass on: bfloat16 as bits."""
    return array.view(np.uint16) if STORAGE.get(array.dtype) is Storage.bfloat16 else array


def as_rows(logits: Any, axis: int = -1, name: str = "logits") -> LogitRows:
    """Logits in any layout as rows; integers become float64."""
    array = plain(logits, name)
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    storage = storage_of(array.dtype, name)
    ndim = array.ndim
    if ndim == 0:
        raise ValueError(f"{name} need a class axis; got a single number")
    if not hasattr(axis, "__index__") or not -ndim <= axis < ndim:
        raise ValueError(f"axis={axis!r} is outside the {ndim} dimensions of {name}")
    axis = int(axis) % ndim
    if array.shape[axis] == 0:
        raise ValueError(f"{name} of shape {array.shape} have no classes along axis {axis}")
    return LogitRows(raw(adjacent(flatten(array, axis))), storage, array.shape, axis, array.dtype.newbyteorder("="))


def same_rows(array: Array, rows: LogitRows, name: str) -> Array:
    """Flatten another array of the logits' shape in the same way, keeping its dtype."""
    if array.shape != rows.shape:
        raise ValueError(f"{name} have shape {array.shape}; the logits have {rows.shape}")
    return adjacent(flatten(array, rows.axis))


def as_vectors(vector: Any, rows: LogitRows, name: str = "vector") -> Array:
    """Validate and flatten vectors of the logits' shape, in the logits' type."""
    array = plain(vector, name)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} of dtype {array.dtype} holds no real numbers")
    return raw(same_rows(array.astype(rows.dtype, copy=False), rows, name))


def check_writable(array: Any, name: str) -> None:
    """Refuse a buffer of the caller's that a result cannot be written into."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a NumPy array, not {type(array).__name__}")
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only")
    if array.size and any(s == 0 and n > 1 for s, n in zip(array.strides, array.shape, strict=True)):
        raise ValueError(f"{name} repeats its elements (a stride of 0); hand over an array of its own")


class Output:
    """Where a result of the logits' shape goes: fresh memory, the caller's ``out``, or by way of a copy."""

    def __init__(
        self, rows: LogitRows, out: Any, *, may_alias: tuple[Array, ...] = (), allocate: Callable[..., Array] = np.empty
    ) -> None:
        self.target: Array
        if out is None:
            moved = rows.shape[: rows.axis] + rows.shape[rows.axis + 1 :] + (rows.shape[rows.axis],)
            fresh = allocate(moved, rows.dtype)
            self.target = fresh if rows.axis == len(moved) - 1 else np.moveaxis(fresh, -1, rows.axis)
            self.rows, self.copies = raw(fresh.reshape(rows.array.shape)), False
            return
        check_writable(out, "out")
        if out.shape != rows.shape or out.dtype != rows.dtype:
            raise ValueError(
                f"out has shape {out.shape} and dtype {out.dtype}; the result has {rows.shape} and {rows.dtype}"
            )
        self.target = out
        flat = flatten(out, rows.axis)
        direct = np.may_share_memory(flat, out) and adjacent(flat) is flat
        # Writing while reading is safe only where each element is written over itself.
        clash = any(_overlaps(flat if direct else out, other, direct) for other in (rows.array, *may_alias))
        self.copies = clash or not direct
        self.rows = np.empty(rows.array.shape, rows.array.dtype) if self.copies else raw(flat)
        self._rows = rows

    def deliver(self) -> Array:
        """Return the caller's array, filled."""
        if self.copies:
            flat = self.rows.view(self._rows.dtype)
            moved = (
                self.target
                if self._rows.axis == self.target.ndim - 1
                else np.moveaxis(self.target, self._rows.axis, -1)
            )
            moved[...] = flat.reshape(moved.shape)
        return self.target


def _overlaps(out: Array, other: Array, direct: bool) -> bool:
    """Whether they share memory otherwise than element for element."""
    if not np.may_share_memory(out, other):
        return False
    same = (
        direct
        and out.ctypes.data == other.ctypes.data
        and out.strides == other.strides
        and out.shape == other.shape
        and out.itemsize == other.itemsize
    )
    return not same


def first_bad(values: Array) -> tuple[int, ...] | None:
    """Index of the first value that is not finite, or None."""
    bad = ~np.isfinite(values)
    return None if not bad.any() else tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
