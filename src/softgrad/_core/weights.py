"""The validators of row weights and class weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from softgrad._core.arrays import Array, LogitRows, first_bad
from softgrad._core.backend import Storage


def row_weights(weights: Any, outer: tuple[int, ...], name: str = "sample_weight") -> Array | None:
    """Return the weights of rows of shape ``outer`` as a float64 vector, or None."""
    if weights is None:
        return None
    return _validated(weights, outer, np.float64, name, f"one weight for each row of logits is {outer}").reshape(-1)


def class_weights(weights: Any, rows: LogitRows, name: str = "class_weight") -> Array | None:
    """Return the weights of the classes in the arithmetic type, or None."""
    if weights is None:
        return None
    shape = rows.array.shape[1:]
    dtype = np.float64 if rows.storage is Storage.float64 else np.float32
    return _validated(weights, shape, dtype, name, f"one weight for each class is {shape}")


def _validated(weights: Any, shape: tuple[int, ...], dtype: Any, name: str, expected: str) -> Array:
    """Copy weights: the caller's may lie where the gradient goes."""
    array = np.asarray(weights)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} of dtype {array.dtype} are not numbers")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; {expected}")
    with np.errstate(over="ignore"):
        array = np.array(array, dtype=dtype, order="C")
    if (bad := first_bad(array)) is not None:
        place = ", ".join(map(str, bad))
        raise ValueError(f"{name}[{place}] is {np.asarray(weights)[bad]}; weights are finite numbers")
    return array
