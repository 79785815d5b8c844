"""What a block of rows must be: two-dimensional, float32 or float64, finite; and where it is not."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Block = Any  # a 2-D array or a CSR matrix of float32 or float64

__all__ = ["Block", "as_block", "check_finite", "fingerprint", "first_not_finite"]

_ROWS_AT_ONCE = 4096  # of the search for a value that is known to be there


def as_block(values: Any, place: str) -> Block:
    """A dense C-contiguous array, or CSR, of float32 or float64; float16 becomes float32, anything else float64."""
    if _is_sparse(values):
        block = values.tocsr()
        return block if block.dtype in (np.float32, np.float64) else block.astype(_kept(block.dtype, place))
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{place} has {array.ndim} dimension(s), not two: a block holds rows of features")
    return np.ascontiguousarray(array, dtype=_kept(array.dtype, place))


def _kept(dtype: np.dtype[Any], place: str) -> type[np.floating[Any]]:
    if dtype.kind not in "fiub":
        raise ValueError(f"{place} is of dtype {dtype}: features must be real numbers")
    return np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64


def first_not_finite(values: Any) -> tuple[int, int, float] | None:
    """Row, column and value of the first NaN or infinity of a 2-D array or CSR matrix; None if there is none.

    A sum is finite only if all its terms are, and costs no memory; the terms are looked at one by one only where it
    is not, which may also be an overflow.
    """
    stored = values.data if _is_sparse(values) else values
    with np.errstate(all="ignore"):
        if np.isfinite(stored.sum()):
            return None
    if stored is not values:
        bad = np.flatnonzero(~np.isfinite(stored))
        if not bad.size:
            return None
        row = int(np.searchsorted(values.indptr, bad[0], side="right")) - 1
        return row, int(values.indices[bad[0]]), float(stored[bad[0]])
    for begin in range(0, len(values), _ROWS_AT_ONCE):
        part = values[begin : begin + _ROWS_AT_ONCE]
        wrong = ~np.isfinite(part)
        if wrong.any():
            at, column = divmod(int(wrong.argmax()), part.shape[1])
            return begin + at, column, float(part[at, column])
    return None


def check_finite(values: Any, names: Any = None, first_row: int = 0) -> None:
    """Refuse NaN and infinity in X, naming the row and the column."""
    found = first_not_finite(values)
    if found is None:
        return
    row, column, value = found
    named = "" if names is None else f" ({names[column]!r})"
    kind, remedy = ("NaN", "impute it") if np.isnan(value) else ("infinity", "clip it")
    raise ValueError(
        f"Input X contains {kind}: row {first_row + row}, column {column}{named}; {remedy}, or drop the row"
    )


def fingerprint(block: Block) -> tuple[int, int]:
    """The number of rows and a checksum of the first and the last: enough to tell that the order has changed."""
    if _is_sparse(block):
        ends = [block.data[:64], block.indices[:64], block.data[-64:], block.indices[-64:]]
    else:
        ends = [block[0], block[-1]]
    checksum = 0
    for end in ends:
        checksum = zlib.crc32(_bytes(end), checksum)
    return block.shape[0], checksum


def _is_sparse(values: Any) -> bool:
    return bool(sparse.issparse(values))


def _bytes(values: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values).tobytes()
