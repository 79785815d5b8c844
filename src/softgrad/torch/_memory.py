"""Memory for large gradients: huge pages where the system grants them, and the block that was freed last.

A fresh N×V gradient costs more in page faults than in arithmetic, and a training step asks for the same size every
time.  So the block of a gradient is kept, once released, for the next gradient of its size: one block at a time, marked
as free, so that the system takes its pages back when it is short of memory.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 4 << 20  # smaller arrays come from the heap, which keeps them itself
HUGE_PAGE = 2 << 20
KEEPS = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")

# Its operations are single steps of the interpreter.  A lock could not be taken in a finalizer,
# which the garbage collector may run in a thread that holds it.
_kept: deque[mmap.mmap] = deque(maxlen=1)


class _Block:
    """Anonymous memory of an array, kept once the array and its tensors are released."""

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
    try:
        memory = _kept.pop()
    except IndexError:
        return None
    return memory if len(memory) == _length(size) else None  # another size would lie idle beside the new block


def _keep(memory: mmap.mmap) -> None:
    memory.madvise(mmap.MADV_FREE)
    _kept.append(memory)


def forget() -> None:
    """Give the kept block back to the system."""
    _kept.clear()


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return `numpy.empty`, in memory as above where it is large."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for length in shape:
        size *= length
    if size < LEAST_BYTES or not KEEPS:
        return np.empty(shape, dtype)
    return np.asarray(_Block(size)).view(dtype).reshape(shape)
