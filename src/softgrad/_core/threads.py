"""How many threads compute, and what they share: blocks of work, and locks that survive a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from softgrad._core import backend

VARIABLE = "SOFTGRAD_NUM_THREADS"
MOST_THREADS = 256  # as in csrc/pool.h
INLINE_ELEMENTS = 100_000  # waking a thread costs as much as this many logits


def default_threads() -> int:
    """``SOFTGRAD_NUM_THREADS``, or the number of processors that this process may run on."""
    text = os.environ.get(VARIABLE)
    if text:
        if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= MOST_THREADS:
            raise ValueError(f"{VARIABLE}={text!r} is not a whole number from 1 to {MOST_THREADS}")
        return int(text)
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        count = os.cpu_count() or 1
    return min(count, MOST_THREADS)


def resolve_threads(n_threads: int | None, elements: int | None = None) -> int:
    """Return the number of threads a call may use: its own ``n_threads``, the default, or 1 for a few elements."""
    if n_threads is None:
        return 1 if elements is not None and elements < INLINE_ELEMENTS else default_threads()
    if isinstance(n_threads, bool) or not hasattr(n_threads, "__index__"):
        raise TypeError(f"n_threads must be a whole number or None, not {n_threads!r}")
    if not 1 <= n_threads <= MOST_THREADS:
        raise ValueError(f"n_threads={n_threads} is outside [1, {MOST_THREADS}]")
    return int(n_threads)


def run_blocks(work: Callable[[int], object], count: int, n_threads: int) -> None:
    """Call ``work(0) … work(count − 1)``, each once, from up to ``n_threads`` threads of which the caller is one.

    The threads are the native module's (csrc/pool.h); without it the caller works alone.  After an exception or an
    interrupt no further block begins, and it is raised when no thread is inside a block.
    """
    native = backend.native()
    if native is not None:
        native.run_blocks(work, count, n_threads)
        return
    for i in range(count):
        work(i)


def fork_safe_lock() -> threading.Lock:
    """Return a lock that is free in the child of a fork, whoever held it in the parent.

    What it protects may then be half changed: use it where every state that an owner passes through is a valid one.
    """
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock


default_threads()  # a variable that cannot be read is refused at import, not at the first large batch
