"""The one thread pool, and the one process-wide BLAS thread limit.

Kernels release the interpreter, so plain threads run them in parallel.  The caller always works too: a batch that finds
the pool busy is computed by its caller alone, so any number of callers may share the pool and none waits for another.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

VARIABLE = "SOFTGRAD_NUM_THREADS"
MOST_THREADS = 256
INLINE_ELEMENTS = 100_000  # waking a thread costs as much as this many logits

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()
_inside = threading.local()  # .worker is set where blocks are being computed: parallel code inside runs inline


def _forget_pool() -> None:
    """A forked child has none of its parent's threads, and a lock in an unknown state."""
    global _pool, _pool_lock, _limit
    _pool, _pool_lock, _limit = None, threading.Lock(), _BlasLimit()
    _inside.__dict__.clear()


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="softgrad")
        return _pool


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


class _Job:
    """Blocks that any thread may take the next of."""

    def __init__(self, work: Callable[[int], Any], count: int) -> None:
        self.work: Callable[[int], Any] | None = work
        self.count = count
        self.tickets = itertools.count()  # next() is one step under the interpreter's lock
        self.failures: list[BaseException] = []

    def drain(self) -> None:
        """Compute blocks until none is left or one has failed."""
        work = self.work
        if work is None:
            return
        _inside.worker = True
        if _limit.users:
            _limit.limit_this_thread()
        try:
            while not self.failures and (i := next(self.tickets)) < self.count:
                work(i)
        except BaseException as error:
            self.failures.append(error)
        finally:
            _inside.worker = False

    def wait(self, future: Future[None]) -> None:
        """Wait to the end even when Ctrl-C arrives meanwhile: the thread still writes into the caller's buffers."""
        while True:
            try:
                future.result()
                return
            except KeyboardInterrupt as interrupt:
                self.failures.append(interrupt)


def run_blocks(work: Callable[[int], Any], count: int, n_threads: int) -> None:
    """Call ``work(0) … work(count − 1)``, each once, from up to ``n_threads`` threads of which the caller is one.

    The first exception is raised again after every thread has stopped, so that no buffer is written to any more;
    blocks that had not begun are left out.
    """
    if n_threads <= 1 or count <= 1 or getattr(_inside, "worker", False):
        for i in range(count):
            work(i)
        return
    job = _Job(work, count)
    pool = _executor()
    others = [pool.submit(job.drain) for _ in range(min(n_threads, count) - 1)]
    job.drain()
    for future in others:
        if not future.cancel():
            job.wait(future)
    job.work = None  # a cancelled call stays in the pool's queue for a while: it must not keep the caller's arrays
    if job.failures:
        raise job.failures[0]


class _BlasLimit:
    """Counts who wants single-threaded products: the first sets the process's limit, the last lifts it.

    A BLAS on OpenMP has a limit for each thread instead: every user sets its own, and the pool's threads keep theirs.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.shared: list[Any] = []  # libraries with one limit for the process
        self.own: list[Any] = []  # libraries with a limit for each thread
        self.before: list[int] = []
        self.found = False

    def _find(self) -> None:
        from threadpoolctl import ThreadpoolController  # looks through every loaded library: on first need

        for library in ThreadpoolController().select(user_api="blas").lib_controllers:
            per_thread = getattr(library, "threading_layer", None) == "openmp"
            (self.own if per_thread else self.shared).append(library)
        self.found = True

    def enter(self) -> list[int]:
        with self.lock:
            if not self.found:
                self._find()
            self.users += 1
            if self.users == 1:
                self.before = [library.get_num_threads() for library in self.shared]
                for library in self.shared:
                    _set_threads(library, 1)
        mine = [library.get_num_threads() for library in self.own]
        self.limit_this_thread()
        return mine

    def limit_this_thread(self) -> None:
        for library in self.own:
            library.set_num_threads(1)

    def leave(self, mine: list[int]) -> None:
        for library, count in zip(self.own, mine, strict=True):
            library.set_num_threads(count)
        with self.lock:
            self.users -= 1
            if self.users == 0:
                for library, count in zip(self.shared, self.before, strict=True):
                    _set_threads(library, count)


def _set_threads(library: Any, count: int) -> None:
    """Set a process's limit from any thread.

    Since 3.7 threadpoolctl lets only the thread that was first change OpenBLAS's, and silently ignores the others; the
    last to leave here need not be the first who came.
    """
    release = getattr(type(library), "clear_controlling_thread", None)
    if release is not None:
        release(force=True)
    library.set_num_threads(count)
    if release is not None:
        release()


_limit = _BlasLimit()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Keep NumPy's matrix products single-threaded, whatever thread calls them, until the last user leaves.

    OpenBLAS gives other float32 bits with two threads than with one, and its spinning threads slow ours.
    """
    limit = _limit
    mine = limit.enter()
    try:
        yield
    finally:
        limit.leave(mine)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
default_threads()  # a variable that cannot be read is refused at import, not at the first large batch
