"""The process-wide thread limit of the BLAS, and its locks in the child of a fork."""

from __future__ import annotations

import _thread
import os
import threading
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from softgrad._core import backend

PATIENCE = 2.0  # seconds that a product of a millisecond may take before it is taken to hang

_found = False  # the BLAS libraries are known to the native module
_multiplied: threading.Event | None = None  # in the child of a fork: set when a product has returned
_multiplying = False  # that product has begun


def single_threaded_blas() -> AbstractContextManager[None]:
    """Keep NumPy's matrix products single-threaded, whatever thread calls them, until the last user leaves.

    OpenBLAS gives other float32 bits with two threads than with one, and its spinning threads slow ours.  Without the
    native module, which has the only other threads, nothing is limited.

    Notes
    -----
    Entering and leaving are one native call each, so that no interrupt falls inside; and an object that is left in
    no other way lifts the limit when it is deleted.
    """
    global _found
    refuse_after_broken_fork()
    native = backend.native()
    if native is None:
        return nullcontext()
    if not _found:
        from threadpoolctl import ThreadpoolController  # looks through every loaded library: on first need

        for library in ThreadpoolController().select(user_api="blas").lib_controllers:
            native.add_blas_library(library.filepath)
        _found = True
    limit: AbstractContextManager[None] = native.SingleThreadedBlas()
    return limit


def refuse_after_broken_fork() -> None:
    """Raise if this process was forked while another thread was inside OpenBLAS and held a lock of it.

    OpenBLAS does not renew its locks in a child, whose first product then waits for ever.  A product in a thread of its
    own finds out, once.
    """
    global _multiplying
    if _multiplied is None or _multiplied.is_set():
        return
    if not _multiplying:
        try:
            _thread.start_new_thread(_multiply, (_multiplied,))
        except (RuntimeError, MemoryError):  # no thread can be started: nothing can be found out
            return
        _multiplying = True
    if not _multiplied.wait(PATIENCE):
        raise RuntimeError(
            "this process was forked while another thread was inside a matrix product, and OpenBLAS's lock stays taken "
            "here; start processes by the method 'spawn' or 'forkserver', or fork while no thread multiplies"
        )


def _multiply(done: threading.Event) -> None:
    if (native := backend.native()) is not None:
        native.reset_blas()
    square = np.ones((192, 192), np.float32)  # smaller ones take no lock
    np.matmul(square, square, out=square.copy())
    done.set()


def _note_fork() -> None:
    global _multiplied, _multiplying
    _multiplied, _multiplying = threading.Event(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
