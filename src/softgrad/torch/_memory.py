"""Memory for large gradients: huge pages where the system grants them, and the block that was freed last.

A fresh N×V gradient costs more in page faults than in arithmetic, and a training step asks for the same size every
time.  So the block of a gradient that nobody holds any more is kept for the next gradient of its size: one block at a
time, and only lent: the system is told that it may take the pages back whenever it is short of memory.
"""

from __future__ import annotations

import mmap
import threading
from typing import Any

import numpy as np

from softgrad._core.arrays import Array

LEAST_BYTES = 4 << 20  # smaller arrays come from the heap, which keeps them itself
HUGE_PAGE = 2 << 20
LENDS = hasattr(mmap, "MADV_FREE") and hasattr(
    mmap, "MADV_HUGEPAGE"
)  # else a kept block would be lost to everybody else

_lock = threading.Lock()
_kept: list[mmap.mmap] = []


class _Block:
    """Anonymous memory that an array lies in; kept when the array and its tensors are gone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = _taken(size) or _mapped(size)
        view = np.frombuffer(self.memory, np.uint8)
        start = view.ctypes.data
        self.offset = -start % HUGE_PAGE
        self.__array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (start + self.offset, False), "version": 3,
        }  # fmt: skip

    def __del__(self) -> None:
        _keep(self.memory)


def _length(size: int) -> int:
    return -(-size // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, _length(size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _taken(size: int) -> mmap.mmap | None:
    with _lock:
        if _kept and len(_kept[0]) == _length(size):
            return _kept.pop()
        _kept.clear()  # of another size: it would lie idle beside the new block
    return None


def _keep(memory: mmap.mmap) -> None:
    memory.madvise(mmap.MADV_FREE)
    with _lock:
        _kept[:] = [memory]


def forget() -> None:
    """Give the kept block back to the system."""
    with _lock:
        _kept.clear()


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """`numpy.empty`, in memory as above where it is large."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size < LEAST_BYTES or not LENDS:
        return np.empty(shape, dtype)
    return np.asarray(_Block(size)).view(dtype).reshape(shape)
