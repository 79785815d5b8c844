"""Calls of the native module with wrong arguments.

``python garbage.py EXTENSION garbage SEED ROUNDS`` or ``python garbage.py EXTENSION race SECONDS``.

Every array ends (or begins) at a page that may not be touched, so a read or write outside it ends the process; the
sanitized extension reports it.  A call either succeeds or raises one of `REFUSALS`.  The script needs NumPy alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import random
import sys
import threading
import time
import weakref
from collections import Counter
from copy import copy
from typing import Any

import numpy as np

REFUSALS = (TypeError, ValueError, IndexError, OverflowError, BufferError, RuntimeError, AttributeError)
PAGE = mmap.PAGESIZE
NOT_HERE = {
    "run_blocks",
    "add_blas_library",
    "reset_blas",
    "SingleThreadedBlas",
}  # take no arrays: tests/core/test_threads.py

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def load(path: str) -> Any:
    """Load the extension from a file."""
    spec = importlib.util.spec_from_file_location("softgrad._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def guarded(size: int, *, at_start: bool = False) -> Any:
    """Return ``size`` bytes that begin or end at a page without access, as an array of uint8."""
    if size == 0:
        return np.empty(0, np.uint8)
    span = -(-size // PAGE) * PAGE
    whole = libc.mmap(
        None, span + 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 2**64 - 1, 0
    )
    libc.mprotect(whole, PAGE, 0)
    libc.mprotect(whole + PAGE + span, PAGE, 0)
    memory = (ctypes.c_uint8 * size).from_address(whole + PAGE + (0 if at_start else span - size))
    weakref.finalize(memory, libc.munmap, whole, span + 2 * PAGE)
    return np.frombuffer(memory, np.uint8)


class Maker:
    """Random arguments."""

    def __init__(self, native: Any, seed: int) -> None:
        self.native, self.random = native, random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.storages = list(native.Storage)
        self.dtypes = {"float32": np.float32, "float64": np.float64, "bfloat16": np.uint16, "float16": np.float16}

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def array(self, shape: Any, dtype: Any, layout: str = "") -> Any:
        """An array of random contents, of any layout that a kernel takes unless ``layout`` names one."""
        dtype, shape = np.dtype(dtype), tuple(shape)
        layout = layout or self.random.choice(["tight", "tight", "gaps", "reversed"] if len(shape) == 2 else ["tight"])
        rows, cols = (shape if len(shape) == 2 else (1, *shape)) if len(shape) in (1, 2) else (1, int(np.prod(shape)))
        gap = 0 if layout == "tight" or len(shape) != 2 else self.random.randint(0, 3)
        count = (rows - 1) * (cols + gap) + cols if rows and cols else 0
        memory = guarded(count * dtype.itemsize, at_start=self.chance(0.3)).view(dtype)
        self.fill(memory)
        if len(shape) == 2:
            steps = ((cols + gap) * dtype.itemsize, dtype.itemsize)
            made = np.lib.stride_tricks.as_strided(memory, shape, steps) if count else np.empty(shape, dtype)
            return made[::-1] if layout == "reversed" else made
        return memory.reshape(shape) if count else np.empty(shape, dtype)

    def fill(self, memory: Any) -> None:
        kind = memory.dtype.kind
        if kind == "f":
            with np.errstate(over="ignore"):
                memory[...] = self.numbers.normal(size=memory.shape) * self.random.choice([1, 1, 10, 1e30])
            if memory.size and self.chance(0.2):
                memory[self.numbers.integers(memory.size)] = self.random.choice([np.nan, np.inf, -np.inf])
        elif kind in "iu":
            high = min(np.iinfo(memory.dtype).max, self.random.choice([2, 6, 70, 40_000, 2**62]))
            memory[...] = self.numbers.integers(0, high, memory.shape, dtype=np.int64).astype(memory.dtype)
            if memory.size and kind == "i" and self.chance(0.3):
                memory[self.numbers.integers(memory.size)] = self.random.choice([-1, -100, np.iinfo(memory.dtype).min])

    def junk(self) -> Any:
        """Anything."""
        r = self.random
        kind = r.randrange(12)
        if kind == 0:
            return r.choice(
                [None, True, "float32", b"12345678" * 20, bytearray(160), memoryview(bytes(64)), object(), [1.0], {}]
            )
        if kind == 1:
            return r.choice([0, 1, -1, 3, 7, 2**31, 2**62, -(2**63), 2**63, 2**64, 10**30])
        if kind == 2:
            return r.choice([0.0, -0.0, 1.0, -2.5, 1e308, 1e-320, float("nan"), float("inf")])
        if kind == 3:
            return r.choice([*self.storages, *self.native.TargetKind, self.native.Options(), self.native.Storage, len])
        shape = [(), (0,), (3,), (6,), (3, 5), (6, 7), (6, 33), (0, 5), (3, 0), (2, 3, 4), (70,)][r.randrange(11)]
        dtype = r.choice(
            [
                "f4",
                "f8",
                "f2",
                "u2",
                "i8",
                "i4",
                "i1",
                "u8",
                "u1",
                "?",
                "c8",
                "c16",
                "O",
                "S8",
                "V8",
                "V112",
                ">f4",
                ">i8",
                "M8[s]",
            ]
        )
        made = np.zeros(shape, dtype) if dtype in ("O", "S8", "M8[s]") or dtype[0] == "V" else self.array(shape, dtype)
        return self.bend(made)

    def bend(self, array: Any) -> Any:
        """Another array of nearly the same kind."""
        r = self.random
        how = r.randrange(11)
        shape = list(array.shape)
        if how == 0 and array.ndim == 2:
            return array.T
        if how == 1 and array.ndim:
            return array[::-1]
        if how == 2 and array.ndim and array.size:
            return np.broadcast_to(array[:1], array.shape)
        if how == 3:
            array.flags.writeable = False
            return array
        if how == 4 and array.dtype.itemsize > 1 and array.size and array.dtype.kind in "fiu":  # not aligned
            raw = guarded(array.nbytes + 1)[1:] if self.chance(0.5) else guarded(array.nbytes + 1)[:-1]
            return raw.view(array.dtype).reshape(shape)
        if how == 5 and array.ndim:
            return array[..., ::2]
        if how == 6 and array.ndim and array.dtype.kind in "fiu":
            shape[r.randrange(len(shape))] += r.choice([-1, 1, 2])
            return self.array([max(0, n) for n in shape], array.dtype)
        if how == 7 and array.dtype.kind in "fiu":
            return self.array(shape, r.choice(["f4", "f8", "f2", "u2", "i8", "i4", "u1", "i1"]))
        if how == 8:
            return array[None]
        if how == 9:
            return array.reshape(-1)
        return array

    def spoil(self, value: Any) -> Any:
        """Replace an argument by another, often one that is nearly right."""
        if isinstance(value, np.ndarray) and self.chance(0.7):
            return self.bend(value)
        if type(value) is int and self.chance(0.7):
            return self.random.choice([value - 1, value + 1, -value, 0, value + 40, 2**40, 2**63 - 1, 2**63])
        return self.junk()


class Calls(Maker):
    """Valid calls of everything that the module binds."""

    def size(self) -> tuple[int, int]:
        rows = self.random.choice([0, 1, 2, 3, 5, 17, 40])
        cols = self.random.choice([1, 2, 3, 7, 16, 31, 32, 33, 65, 100, 2047, 2049])
        if self.chance(0.02):
            return self.random.choice([1, 2]), self.native.panel + self.random.choice([0, 1, 100])
        return rows if cols < 2000 else min(rows, 3), cols

    def options(self) -> Any:
        r = self.random
        return self.native.Options(
            r.choice([0.0, 0.0, 0.1, 1.0]), self.chance(0.3), r.choice([1.0, 1.0, -1.5, 1e-300, -1e-300]),
            r.choice([0.0, 0.0, 3.0]), r.choice([1.0, 1.0, 0.7]), r.choice([0.0, 0.01]),
            r.choice([None, -100, 1, 2**63 - 1]),
        )  # fmt: skip

    def target_arguments(self, rows: int, cols: int, first: int, classes: int) -> list[Any]:
        kinds, storage = self.native.TargetKind, self.random.choice(self.storages)
        kind = self.random.choice(list(kinds))
        labels = values = None
        integer = self.random.choice(["i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8"])
        width = self.random.choice([0, 1, 3])
        if kind == kinds.labels:
            labels = self.array((rows,), integer)
        if kind == kinds.sparse:
            labels = self.array((rows, width), integer)
        if kind in (kinds.dense, kinds.sparse):
            values = self.array((rows, cols if kind == kinds.dense else width), self.dtypes[storage.name])
        return [kind, labels, values, storage, first, classes]

    def weights(self, rows: int, cols: int, storage: Any) -> list[Any]:
        wide = np.float64 if storage.name == "float64" else np.float32
        a = self.array((rows,), "f8", "tight")
        if rows:
            a[self.random.randrange(rows)] = 0
        return [self.array((cols,), wide) if self.chance(0.4) else None, a if self.chance(0.4) else None]

    def head_arguments(self, rows: int, cols: int, storage: Any, *, slice_: bool = False) -> list[Any]:
        logits = self.array((rows, cols), self.dtypes[storage.name])
        first = self.random.randint(0, 5) if slice_ else 0
        classes = first + cols + self.random.randint(0, 5) if slice_ else 0
        targets = self.native.Targets(*self.target_arguments(rows, cols, first, classes))
        return [logits, storage, targets, self.options(), *self.weights(rows, cols, storage)]

    def head(self, *, slice_: bool = False) -> tuple[Any, Any, int, int, Any]:
        rows, cols = self.size()
        storage = self.random.choice(self.storages)
        arguments = self.head_arguments(rows, cols, storage, slice_=slice_)
        made = self.native.Head(*arguments)
        if self.chance(0.3):
            made.set_upstream(*(self.array((rows,), "f8") if self.chance(0.7) else None for _ in range(3)))
        return made, arguments[0], rows, cols, storage

    def output_arguments(self, rows: int, cols: int, storage: Any, logits: Any = None) -> list[Any]:
        vectors = [self.array((rows,), t) if self.chance(0.5) else None for t in ("f8", "f8", "f8", "i8", "i8", "f8")]
        grad = None
        if self.chance(0.7):
            in_place = logits is not None and self.chance(0.3) and logits.strides[0] and logits.size
            grad = logits if in_place else self.array((rows, cols), self.dtypes[storage.name])
        sums = [self.array((rows,), "f8") if self.chance(0.3) else None for _ in range(2)]
        return [rows, cols, storage, *vectors, grad, *sums, self.chance(0.2) and grad is not logits]

    def outputs(self, *arguments: Any) -> Any:
        return self.native.Outputs(*self.output_arguments(*arguments))

    def records(self, rows: int) -> Any:
        native = self.native
        dtype = np.dtype(native.statistics_fields() if self.chance(0.7) else f"V{native.statistics_size}")
        return guarded(rows * dtype.itemsize).view(dtype)

    def span(self, n: int) -> list[int]:
        lo = self.random.randint(0, n)
        return [lo, self.random.randint(lo, n)]

    def columns(self, cols: int) -> list[int]:
        lo = self.random.randrange(cols)
        return [lo, self.random.randint(lo + 1, cols)]

    def layer_arguments(self, rows: int, cols: int, dtype: Any, x_dtype: Any) -> list[Any]:
        features, padded = self.random.choice([16, 17, 33, 64]), -(-cols // 16) * 16
        x, weight = self.array((rows, features), x_dtype), self.array((features, padded), dtype)
        scratch = self.array((self.random.choice([1, 7, 72]), -(-cols // 4) * 4), dtype)
        total, sums = self.array((cols, features), dtype), self.array((cols,), "f8")
        return [x, weight, self.array((padded,), dtype), cols, scratch, total, sums]

    # --- one valid call each: the callable and its arguments ----------------------------------------------------------

    def call_Options(self) -> Any:  # noqa: N802
        return self.native.Options, [0.1, False, 1.0, 0.0, 1.0, 0.0, -100]

    def call_Targets(self) -> Any:  # noqa: N802
        rows, cols = self.size()
        return self.native.Targets, self.target_arguments(rows, cols, 0, 0)

    def call_Outputs(self) -> Any:  # noqa: N802
        return self.native.Outputs, self.output_arguments(*self.size(), self.random.choice(self.storages))

    def call_Head(self) -> Any:  # noqa: N802
        return self.native.Head, self.head_arguments(
            *self.size(), self.random.choice(self.storages), slice_=self.chance(0.3)
        )

    def call_settle(self) -> Any:
        return self.head()[0].settle, [self.chance(0.5)]

    def call_set_factors(self) -> Any:
        return self.head()[0].set_factors, [0.5, 0.25]

    def call_set_upstream(self) -> Any:
        head, _, rows, _, _ = self.head()
        return head.set_upstream, [self.array((rows,), "f8") for _ in range(3)]

    def call_rows(self) -> Any:
        head, logits, rows, cols, storage = self.head()
        return head.rows, [self.outputs(rows, cols, storage, logits), *self.span(rows)]

    def call_statistics(self) -> Any:
        head, _, rows, cols, _ = self.head(slice_=self.chance(0.3))
        lo, hi = self.span(rows)
        return head.statistics, [lo, hi, *self.columns(cols), self.chance(0.5), self.records(hi - lo)]

    def call_merge(self) -> Any:
        head, _, rows, _, _ = self.head()
        return head.merge, [self.records(rows), self.records(rows)]

    def call_finish(self) -> Any:
        head, logits, rows, cols, storage = self.head(slice_=self.chance(0.3))
        lo, hi = self.span(rows)
        return head.finish, [self.outputs(rows, cols, storage, logits), self.records(hi - lo), lo, hi]

    def call_gradient(self) -> Any:
        head, logits, rows, cols, storage = self.head(slice_=self.chance(0.3))
        lo, hi = self.span(rows)
        arguments = self.output_arguments(rows, cols, storage, logits)
        if arguments[9] is None:
            arguments[10] = self.array((rows,), "f8")
        return head.gradient, [self.native.Outputs(*arguments), self.records(hi - lo), lo, hi, *self.columns(cols)]

    def call_distribution(self) -> Any:
        head, _, rows, cols, storage = self.head()
        lo, hi = self.span(rows)
        out = self.array((rows, cols), self.dtypes[storage.name])
        more = [self.records(hi - lo), *self.columns(cols)] if self.chance(0.5) else []
        return head.distribution, [self.chance(0.5), out, lo, hi, *more]

    def call_product(self) -> Any:
        head, logits, rows, cols, storage = self.head()
        vector = self.array((rows, cols), self.dtypes[storage.name])
        out = self.random.choice([vector, logits, self.array((rows, cols), self.dtypes[storage.name])])
        return head.product, [vector, out, *self.span(rows)]

    def call_linear(self) -> Any:
        rows, cols = self.random.choice([1, 2, 17, 100]), self.random.choice([1, 2, 5, 16, 33, 60])
        storage = self.random.choice([s for s in self.storages if s.name in ("float32", "float64")])
        dtype = self.dtypes[storage.name]
        arguments = self.head_arguments(rows, cols, storage)
        layer = self.native.Linear(*self.layer_arguments(rows, cols, dtype, self.random.choice([dtype, np.float32])))
        prob = self.array((rows, cols), dtype) if self.chance(0.5) else None
        return self.native.Head(*arguments).linear, [
            arguments[0],
            self.array((rows,), "f8"),
            prob,
            layer,
            self.chance(0.5),
        ]

    def call_Linear(self) -> Any:  # noqa: N802
        dtype = self.random.choice([np.float32, np.float64])
        x_dtype = self.random.choice([dtype, np.float32])
        return self.native.Linear, self.layer_arguments(
            self.random.choice([0, 1, 9]), self.random.choice([1, 5, 33]), dtype, x_dtype
        )

    def call_forward(self) -> Any:
        _, arguments = self.call_Linear()
        out = self.array((len(arguments[0]), arguments[3]), arguments[1].dtype)
        return self.native.Linear(*arguments[: self.random.choice([4, 7])]).forward, [out]

    def call_curvature(self) -> Any:
        if self.chance(0.5):
            _, arguments = self.call_Linear()
            rows, cols, dtype = len(arguments[0]), arguments[3], arguments[1].dtype
            weight = self.array((rows,), "f8") if self.chance(0.5) else None
            return self.native.Linear(*arguments).curvature, [self.array((rows, cols), dtype), weight]
        (rows, cols), dtype = self.size(), self.random.choice([np.float32, np.float64])
        weight = self.array((rows,), "f8") if self.chance(0.5) else None
        return self.native.curvature, [self.array((rows, cols), dtype), weight, self.array((rows, cols), dtype)]

    def call_distribute(self) -> Any:
        rows, cols = self.size()
        storage = self.random.choice(self.storages)
        logits, out = (self.array((rows, cols), self.dtypes[storage.name], "tight") for _ in range(2))
        return self.native.distribute, [
            logits,
            out,
            storage,
            self.chance(0.5),
            self.random.choice([None, self.options()]),
        ]

    def call_small_batch(self) -> Any:
        rows, cols = self.size()
        storage = self.random.choice(self.storages)
        logits, grad = (self.array((rows, cols), self.dtypes[storage.name], "tight") for _ in range(2))
        labels = self.array((rows,), self.random.choice(["i8", "i4", "i2", "i1", "u1", "u8"]))
        return self.native.small_batch, [
            logits,
            storage,
            labels,
            self.options(),
            self.chance(0.5),
            self.random.choice([None, grad, logits]),
        ]

    def call_sparse_product(self) -> Any:
        rows, features, cols = (
            self.random.choice([0, 1, 9]),
            self.random.choice([1, 20]),
            self.random.choice([1, 7, 16, 33, 70]),
        )
        index, half = self.random.choice(["i4", "i8"]), self.chance(0.3)
        index = "i4" if half else index
        dtype = "f4" if half else self.random.choice(["f4", "f8"])
        counts = self.numbers.integers(0, 6, rows)
        indptr, indices = self.array((rows + 1,), index), self.array((int(counts.sum()),), index)
        indptr[...] = np.concatenate([[0], np.cumsum(counts)])
        indices[...] = self.numbers.integers(0, features, len(indices))
        if self.chance(0.3) and indices.size:
            indices[self.random.randrange(indices.size)] = self.random.choice([-1, features, features + 5, 2**31 - 1])
        data = self.array((len(indices),), self.random.choice(["f4", dtype]))
        width = -(-cols // 16) * 16 if half else cols + self.random.choice([0, 3, 8])
        return self.native.sparse_product, [
            data,
            indices,
            indptr,
            self.array((features, width), "u2" if half else dtype),
            self.array((rows, cols), dtype),
        ]

    def call_to_half(self) -> Any:
        rows, cols = self.size()
        return self.native.to_half, [self.array((rows, cols), "f4"), self.array((rows, cols), "u2")]

    def call_select(self) -> Any:
        return self.native.select, [self.random.choice(self.native.variants())]


def check_all_are_called(native: Any) -> None:
    """Fail for a function, class or method that the module binds and nothing here calls."""
    called = {name[5:] for name in dir(Calls) if name.startswith("call_")}
    bound = {name for name in dir(native) if callable(getattr(native, name)) and not name.startswith("__")} - NOT_HERE
    for name in ("Head", "Linear", "Targets", "Outputs", "Options"):
        kind = getattr(native, name)
        bound |= {m for m in dir(kind) if callable(getattr(kind, m)) and not m.startswith("__")}
    missing = bound - called - {"Storage", "TargetKind", "Settled", "variant", "variants", "statistics_fields"}
    assert not missing, f"not called: {sorted(missing)}"


def attack(native: Any, seed: int, rounds: int) -> Counter[str]:
    """Call everything ``rounds`` times, with up to two arguments spoilt; count what succeeded and what was refused."""
    check_all_are_called(native)
    calls, counts = Calls(native, seed), Counter[str]()
    names = sorted(name for name in dir(calls) if name.startswith("call_"))
    for _ in range(rounds):
        for name in names:
            function, arguments = getattr(calls, name)()
            spoilt = calls.random.choice([0, 1, 1, 2])
            for _ in range(min(spoilt, len(arguments))):
                at = calls.random.randrange(len(arguments))
                arguments[at] = calls.spoil(arguments[at])
            if spoilt and calls.chance(0.05):
                arguments = arguments[:-1] if calls.chance(0.5) else [*arguments, calls.junk()]
            with np.errstate(all="ignore"):
                try:
                    function(*arguments)
                    counts[f"{name[5:]} done"] += 1
                except REFUSALS as refusal:
                    if not spoilt and name != "call_sparse_product":  # whose indices may be outside
                        raise AssertionError(f"{name}: a valid call was refused") from refusal
                    counts[f"{name[5:]} refused"] += 1
    return counts


def misuse(native: Any) -> None:
    """Use objects that were never initialised, initialise them again, copy them and set their attributes."""
    calls = Calls(native, 1)
    for kind, made in (("Head", calls.call_Head()), ("Linear", calls.call_Linear()), ("Outputs", calls.call_Outputs())):
        bare = getattr(native, kind).__new__(getattr(native, kind))
        whole = made[0](*made[1])
        for name in dir(bare):
            if name.startswith("__"):
                continue
            try:
                method = getattr(bare, name)
                method(*[None] * 4)
            except REFUSALS:
                continue
            raise AssertionError(f"{kind}.{name} of an object that was not initialised")
        for attempt in (
            (type(whole).__init__, whole, *made[1]),
            (setattr, whole, "p", 1),
            (type(whole), whole),
            (copy, whole),
        ):
            try:
                attempt[0](*attempt[1:])
            except REFUSALS:
                continue
            raise AssertionError(f"{kind}: {attempt[0]}")


def race(native: Any, seconds: float) -> int:
    """Change labels, logits, upstreams and factors while other threads compute; return the number of calls."""
    kinds = [(s, d) for s, d in ((native.Storage.float32, np.float32), (native.Storage.float64, np.float64))]
    return sum(_race(native, *kind, width, seconds / 6) for kind in kinds for width in (7, 40, 3000))


def _race(native: Any, storage: Any, dtype: Any, width: int, seconds: float) -> int:
    rows, kinds, end = 600, native.TargetKind, time.monotonic() + seconds
    logits = guarded(rows * width * np.dtype(dtype).itemsize).view(dtype).reshape(rows, width)
    labels, sparse = guarded(rows * 8).view(np.int64), guarded(rows * 16).view(np.int64).reshape(rows, 2)
    upstream = guarded(rows * 8).view(np.float64)
    heads = [
        native.Head(logits, storage, native.Targets(kinds.labels, labels), native.Options()),
        native.Head(logits, storage, native.Targets(kinds.labels, labels), native.Options(ignore_index=-100)),
        native.Head(
            logits, storage, native.Targets(kinds.sparse, sparse, np.ones((rows, 2), np.float32)), native.Options()
        ),
    ]
    done: list[int] = []
    failures: list[BaseException] = []

    def write() -> None:
        generator = np.random.default_rng(0)
        while time.monotonic() < end:
            labels[...] = generator.integers(-(2**62), 2**62, rows)
            labels[::3] = generator.integers(0, width, len(labels[::3]))
            sparse[...] = labels[:, None]
            logits[generator.integers(rows)] = generator.choice([np.nan, np.inf, -np.inf, 1.0])
            labels[...] = 0
            for head in heads:
                head.set_upstream(upstream.copy(), None, upstream.copy())
                head.set_factors(0.5, 0.5)

    def compute() -> None:
        grad, records = np.empty_like(logits), np.zeros(rows, np.dtype(native.statistics_fields()))
        vectors = [np.empty(rows, t) for t in ("f8", "f8", "f8", "i8", "i8", "f8")]
        out = native.Outputs(rows, width, storage, *vectors, grad)
        few = native.Outputs(rows, width, storage, vectors[0], grad=grad)
        try:
            while time.monotonic() < end:
                for head in heads:
                    head.settle(True)
                    head.rows(out, 0, rows)
                    head.rows(few, 0, rows)
                    head.statistics(0, rows, 0, width, True, records)
                    head.gradient(out, records, 0, rows, 0, width)
                    done.append(1)
                native.small_batch(logits, storage, labels, native.Options(), True, grad)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=target) for target in (write, compute, compute)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return len(done)


def main() -> None:
    native = load(sys.argv[1])
    if sys.argv[2] == "race":
        print("calls", race(native, float(sys.argv[3])))
        return
    misuse(native)
    for name, count in sorted(attack(native, int(sys.argv[3]), int(sys.argv[4])).items()):
        print(name, count)


if __name__ == "__main__":
    main()
