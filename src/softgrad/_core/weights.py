"""The validators of row weights and class weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from softgrad._core.arrays import Array, LogitRows, first_bad, plain
from softgrad._core.backend import Storage


def row_weights(weights: Any, outer: tuple[int, ...], name: str = "sample_weight") -> Array | None:
    """Return the weights of rows of shape ``outer`` as a float64 vector, or None."""
    if weights is None:
        return None
    expected = f"one weight for each row of logits is {outer}"
    return _validated(weights, outer, np.float64, name, expected, "weights are finite (0 leaves a row out)").reshape(-1)


def class_weights(weights: Any, rows: LogitRows, name: str = "class_weight") -> Array | None:
    """Return the weights of the classes in the arithmetic type, or None."""
    if weights is None:
        return None
    shape = rows.array.shape[1:]
    dtype = np.float64 if rows.storage is Storage.float64 else np.float32
    return _validated(weights, shape, dtype, name, f"one weight for each class is {shape}", "weights are finite")


def _validated(weights: Any, shape: tuple[int, ...], dtype: Any, name: str, expected: str, rule: str) -> Array:
    """Copy weights, because the caller's may lie where the gradient goes; ``expected`` and ``rule`` end messages."""
    given = plain(weights, name)
    if given.dtype.kind not in "fiub" and given.dtype.name != "bfloat16":
        raise TypeError(f"{name} of dtype {given.dtype} are not numbers")
    if given.shape != shape:
        raise ValueError(f"{name} has shape {given.shape}; {expected}")
    with np.errstate(over="ignore"):
        array = np.array(given, dtype=dtype, order="C")
    if (bad := first_bad(array)) is not None:
        place = ", ".join(map(str, bad))
        raise ValueError(f"{name}[{place}] is {given[bad]}; {rule}")
    return array
