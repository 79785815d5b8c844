"""Who multiplies for the linear head: NumPy's BLAS or PyTorch's, by measurement on this machine.

MKL takes a slow path on AMD's processors, where NumPy's OpenBLAS is twice as fast in float32; oneDNN multiplies
bfloat16 two to four times as fast as float32 where the processor has instructions for it, and many times slower where
it has not.  So both are timed once, for a type and a depth, on a product of some milliseconds.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softgrad._core.arrays import Array
from softgrad._core.blas import single_threaded_blas
from softgrad._core.products import NUMPY, Products
from softgrad._core.threads import fork_safe_lock
from softgrad.torch._tensors import HALF, array_of, tensor_of

VARIABLE = "SOFTGRAD_TORCH_PRODUCTS"
NAMES = ("numpy", "torch")
TRIAL = (128, 1024)  # rows and classes of the product that is timed
TRIAL_ROUNDS = 3
TIE = 0.85
USUAL_DEPTH = 512


class Widening(Products):
    """Half precision through NumPy's BLAS: float32 tiles, converted by PyTorch, which knows bfloat16."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def widen(self, array: Array, _compute: Any) -> Array:
        """Half precision as float32."""
        return tensor_of(array, self.dtype).to(torch.float32).numpy()

    def store(self, out: Array, values: Array) -> None:
        """Round once."""
        tensor_of(out, self.dtype).copy_(torch.from_numpy(values))


class TorchProducts(Products):
    """Products through PyTorch, in the storage type; half precision adds up in float32."""

    name = "torch"
    adds_bias = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def _tensor(self, array: Array) -> Tensor:
        return tensor_of(array, self.dtype)

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """PyTorch's pool as well as NumPy's: threads of ours are told so when they first multiply."""
        with single_threaded_blas(), one_torch_thread(), _outside_modes():
            yield

    def widen(self, array: Array, _compute: Any) -> Array:
        """Return what PyTorch multiplies as it is."""
        return array

    def store(self, out: Array, values: Array) -> None:
        """Round into the storage type."""
        self._tensor(out).copy_(torch.from_numpy(values))

    def multiply(self, a: Array, b: Array, out: Array) -> None:
        """``out = a b``."""
        limit_worker()
        torch.mm(self._tensor(a), self._tensor(b), out=self._tensor(out))

    def accumulate(self, a: Array, b: Array, out: Array, first: bool) -> None:
        """``out += a b``, where ``out`` may be wider."""
        limit_worker()
        into = torch.from_numpy(out)
        if into.dtype != self.dtype:
            part = torch.mm(self._tensor(a), self._tensor(b))
            into.copy_(part) if first else into.add_(part)
        elif first:
            torch.mm(self._tensor(a), self._tensor(b), out=into)
        else:
            torch.addmm(into, self._tensor(a), self._tensor(b), out=into)

    def affine(self, a: Array, b: Array, bias: Array, out: Array) -> None:
        """``out = a b + bias``, rounded once."""
        limit_worker()
        torch.addmm(self._tensor(bias), self._tensor(a), self._tensor(b), out=self._tensor(out))

    def column_sums(self, tile: Array, out: Array, first: bool) -> None:
        """``Σ_i tile_i``, in float32 beside half precision."""
        limit_worker()
        into = torch.from_numpy(out)
        sums = self._tensor(tile).sum(0, dtype=into.dtype)
        into.copy_(sums) if first else into.add_(sums)


# --- one thread a product --------------------------------------------------------------------------------------------

_worker = threading.local()


def _no_setter(_count: int) -> int:
    return 0


@cache
def _setters() -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Functions that set the threads of the calling thread alone: OpenMP's, and MKL's if PyTorch has it."""
    openmp: Callable[[int], Any] = _no_setter
    mkl: Callable[[int], Any] = _no_setter
    with suppress(ImportError, OSError):
        from threadpoolctl import ThreadpoolController

        folder = Path(torch.__file__).resolve().parent
        for library in ThreadpoolController().lib_controllers:
            if library.user_api == "openmp" and (
                Path(library.filepath).resolve().is_relative_to(folder) or openmp is _no_setter
            ):
                openmp = library.set_num_threads
        for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
            if (folder / "lib" / name).exists():
                with suppress(AttributeError):
                    mkl = ctypes.CDLL(str(folder / "lib" / name)).MKL_Set_Num_Threads_Local
    return openmp, mkl


def limit_worker() -> None:
    """Our pool's threads multiply alone, for good; the caller's limit is lifted again by `one_torch_thread`."""
    if getattr(_worker, "limited", False):
        return
    torch.get_num_threads()  # a thread's first use of PyTorch sets its number: that must be over
    openmp, mkl = _setters()
    openmp(1)
    mkl(1)
    _worker.limited = True


@contextmanager
def _outside_modes() -> Iterator[None]:
    """Hide products from the caller's modes, which would see those of one thread out of several."""
    if not (torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()):
        yield
        return
    with torch.utils._python_dispatch._disable_current_modes(), torch._C.DisableTorchFunction():
        yield


@contextmanager
def one_torch_thread() -> Iterator[None]:
    openmp, mkl = _setters()
    before = torch.get_num_threads()
    openmp(1)
    mkl_before = mkl(1) or 0
    nested, _worker.limited = getattr(_worker, "limited", False), True
    try:
        yield
    finally:
        openmp(before)
        mkl(mkl_before)
        _worker.limited = nested


# --- the choice ------------------------------------------------------------------------------------------------------

_chosen: dict[tuple[torch.dtype, int], tuple[str, dict[str, float]]] = {}
_lock = fork_safe_lock()


def made(name: str, dtype: torch.dtype) -> Products:
    """Products of a name for a storage type."""
    if name == "torch":
        return TorchProducts(dtype)
    return Widening(dtype) if dtype in HALF else NUMPY


def _half_is_native(dtype: torch.dtype) -> bool:
    """Whether PyTorch multiplies this type with instructions of its own; without, it is much slower."""
    name = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    with suppress(AttributeError, RuntimeError):
        return bool(getattr(torch.ops.mkldnn, name)())
    return False


def _time(products: Products, dtype: torch.dtype, depth: int) -> float:
    rows, classes = TRIAL
    x, w = (np.full((n, depth), 0.01, np.float32) for n in TRIAL)
    compute = np.float64 if dtype == torch.float64 else np.float32
    stored = [array_of(torch.from_numpy(array).to(dtype)) for array in (x, w)]
    with products.single_threaded():
        xs = products.widen(stored[0], compute)
        out = np.empty((rows, classes), xs.dtype)
        times = []
        for _ in range(TRIAL_ROUNDS):
            start = time.perf_counter()
            products.multiply(xs, products.widen(stored[1], compute).T, out)
            times.append(time.perf_counter() - start)
    return min(times)


def _measured(dtype: torch.dtype, depth: int) -> dict[str, float] | None:
    """Time the products in a thread of its own, out of sight of the caller's modes, such as flop counters."""
    times: dict[str, float] = {}

    done = threading.Event()

    def measure() -> None:
        try:
            times.update({name: _time(made(name, dtype), dtype, depth) for name in NAMES})
        finally:
            done.set()

    try:
        _thread.start_new_thread(measure, ())
    except RuntimeError:  # no thread can start: at exit, or for want of memory
        return None
    done.wait()
    return times if len(times) == len(NAMES) else None


def choose(dtype: torch.dtype, depth: int, impl: str | None = None) -> Products:
    """The faster of NumPy's and PyTorch's products for this type and a depth like this one, or the one asked for."""
    asked = impl or os.environ.get(VARIABLE) or None
    if asked is not None:
        if asked not in NAMES:
            origin = "impl" if impl else VARIABLE
            raise ValueError(f"{origin}={asked!r} is none of {', '.join(map(repr, NAMES))}")
        return made(asked, dtype)
    if dtype in HALF and not _half_is_native(dtype):
        return made("numpy", dtype)
    near = 1 << max(0, min(depth, 1024) - 1).bit_length()  # depths up to the next power of two share a measurement
    key = dtype, near
    with _lock:
        if key not in _chosen:
            times = _measured(dtype, near)
            if times is None:
                return made("numpy", dtype)
            # A tie goes to NumPy's, so that noise does not change a machine's bits from one process to the next.
            _chosen[key] = ("torch" if times["torch"] < TIE * times["numpy"] else "numpy", times)
        return made(_chosen[key][0], dtype)


def report(*, measure: bool = False) -> dict[str, str]:
    """Who multiplies for `linear_cross_entropy` on this machine, and the times that decided it.

    Parameters
    ----------
    measure : bool, default False
        Measure the usual types at a depth of 512 as well; otherwise only what calls have asked for so far is reported.

    Returns
    -------
    dict
        From type and depth to ``numpy`` or ``torch`` and the milliseconds of each.

    Examples
    --------
    >>> from softgrad.torch import products
    >>> all(choice.startswith(("numpy", "torch")) for choice in products().values())
    True
    """
    found = {}
    if measure:
        for dtype in (torch.float32, torch.bfloat16):
            if dtype in HALF and not _half_is_native(dtype):
                found[_named(dtype, USUAL_DEPTH)] = "numpy (in float32: no instructions for this type here)"
            else:
                choose(dtype, USUAL_DEPTH)
    for (dtype, depth), (name, times) in _chosen.items():
        shown = ", ".join(f"{who} {1e3 * seconds:.2f} ms" for who, seconds in times.items())
        found[_named(dtype, depth)] = f"{name} ({shown})"
    if asked := os.environ.get(VARIABLE):
        found[VARIABLE] = asked
    return found


def _named(dtype: torch.dtype, depth: int) -> str:
    return f"{str(dtype).removeprefix('torch.')} depth {depth}"
