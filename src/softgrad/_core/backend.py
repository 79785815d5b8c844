"""Which implementation computes: the native kernels of one instruction set, or the NumPy reference.

The choice is made once, at import: the best instruction set that this processor runs, or the one that the environment
variable ``SOFTGRAD_INSTRUCTION_SET`` names.  `use` changes it for a while, for tests and comparisons.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from softgrad._core import fallback

VARIABLE = "SOFTGRAD_INSTRUCTION_SET"

_native: ModuleType | None
fallback_reason: str | None
try:
    _native, fallback_reason = import_module("softgrad._native"), None
except ImportError as error:
    _native, fallback_reason = None, f"the native kernels are not installed ({error})"

_current: ModuleType = fallback

# Enumerations and options go to either implementation.
_records: Any = fallback if _native is None else _native
Storage, TargetKind, KernelOptions = _records.Storage, _records.TargetKind, _records.Options


def available() -> tuple[str, ...]:
    """Names of the implementations that work here, best first; ``numpy`` is always the last."""
    return (*(_native.variants() if _native is not None else ()), "numpy")


def current() -> str:
    """Name of the implementation in use."""
    return "numpy" if _current is fallback or _native is None else str(_native.variant())


def kernels() -> ModuleType:
    """Return the module that computes: native or fallback, with the same classes and functions."""
    return _current


def native() -> ModuleType | None:
    """Return the native module, whatever computes; None where it is not installed."""
    return _native


def select(name: str) -> None:
    """Compute with the implementation ``name`` from now on, in the whole process."""
    global _current
    if name not in available():
        raise ValueError(f"{VARIABLE}={name!r} is not available here; choose one of {', '.join(available())}")
    if name == "numpy" or _native is None:
        _current = fallback
    else:
        _native.select(name)
        _current = _native


@contextmanager
def use(name: str) -> Iterator[None]:
    """Compute with the implementation ``name`` inside a ``with`` block, in the whole process."""
    before = current()
    select(name)
    try:
        yield
    finally:
        select(before)


select(os.environ.get(VARIABLE) or available()[0])
if current() == "numpy" and fallback_reason is None:
    fallback_reason = f"{VARIABLE}=numpy asks for it"
