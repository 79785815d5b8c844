"""One block as it comes from the data, checked; and what the client has to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.dask._block import Block, SharedModel
from softgrad.regression._inputs import checked_rows, feature_range, weighted_moments
from softgrad.regression.rows._blocks import as_block, check_finite
from softgrad.regression.rows._sparse import is_sparse, longest
from softgrad.sklearn._class_support import ClassSupport
from softgrad.sklearn._targets import is_missing, soft_values
from softgrad.sklearn._weights import finite_weights, read_offset

Array = NDArray[Any]
Float = NDArray[np.float64]

__all__ = ["BlockRows", "BlockSummary", "ColumnRoles", "block_of_frame", "make", "moments", "read", "summary"]


@dataclass(frozen=True)
class ColumnRoles:
    """How to read a block: of a table, the columns that are features and their type; names of what is a column."""

    features: list[Any] | None
    dtype: Any
    y: Any = None
    sample_weight: Any = None
    offset: Any = None


@dataclass(frozen=True)
class BlockRows:
    """Rows of positive weight; ``labels`` are numbers into ``known``, the labels of all rows, or soft labels."""

    n_given: int
    x: Any
    labels: Array
    known: Array | None
    weight: Float | None
    offset: Array | None


@dataclass(frozen=True)
class BlockSummary:
    """What the client has to know of a block; ``error``: why it cannot be used."""

    n_given: int
    n_rows: int = 0
    n_features: int = 0
    dtype: Any = None
    sparse: bool = False
    known: Array | None = None
    totals: Float | None = None
    least: Float | None = None  # of each feature
    most: Float | None = None
    reach: float = 0.0  # of sparse rows: no row is longer
    n_bytes: int = 0
    stored: int = 0
    weight: float = 0.0
    offset_columns: int = 0
    error: str | None = None


def read(part: Any, y: Any, weight: Any, offset: Any, columns: ColumnRoles) -> BlockRows | BlockSummary:
    """The rows of a block, or a summary that says what is wrong with it."""
    n = int(part.shape[0])
    try:
        y = part[columns.y] if columns.y is not None else y
        weight = part[columns.sample_weight] if columns.sample_weight is not None else weight
        offset = part[columns.offset] if columns.offset is not None else offset
        return _checked(block_of_frame(part, columns), columns.features, y, weight, offset)
    except (ValueError, TypeError) as wrong:
        return BlockSummary(n, error=str(wrong))


def block_of_frame(part: Any, columns: ColumnRoles) -> Any:
    """The features of a block."""
    if columns.features is None:
        return as_block(part, "X")
    frame = part[columns.features]
    return as_block(frame.to_numpy(dtype=columns.dtype, na_value=np.nan), "X")


def _checked(x: Any, names: Any, y: Any, weight: Any, offset: Any) -> BlockRows:
    n = x.shape[0]
    check_finite(x, names)
    x, _ = checked_rows(x)
    kept: Any = slice(None)
    a: Float | None = None
    if weight is not None:
        a = finite_weights(weight, n)
        assert a is not None
        if not a.all():
            kept = np.flatnonzero(a)
        a = a[kept]
    labels, known = _targets(y, n, kept)
    if offset is not None:
        shift = np.asarray(offset)
        if len(shift) != n:
            raise ValueError(f"offset has {len(shift)} rows, but X has {n}")
        width = 2 if shift.ndim == 1 or shift.shape[1] == 1 else shift.shape[1]
        offset = read_offset(offset, n, width)[kept]  # type: ignore[index]
    return BlockRows(n, x[kept] if len(labels) < n else x, labels, known, a, offset)


def _targets(y: Any, n: int, kept: Any) -> tuple[Array, Array | None]:
    values = np.asarray(y)
    if len(values) != n:
        raise ValueError(f"y has {len(values)} rows, but X has {n}")
    if values.ndim == 2 and values.shape[1] >= 2:
        if values.dtype.kind != "f":
            raise ValueError(
                f"y of shape {values.shape} and dtype {values.dtype} is neither labels, which are one-dimensional, nor "
                "soft labels, which are floats"
            )
        return soft_values(values)[kept], None
    if values.ndim > 2:
        raise ValueError(f"y has {values.ndim} dimensions: labels have one, soft labels two")
    labels = values.reshape(-1)
    missing = np.flatnonzero(_missing(y, labels))
    if missing.size:
        raise ValueError(f"Input y contains {labels[missing[0]]}: row {missing[0]} has no label")
    if labels.dtype.kind == "f":
        broken = np.flatnonzero(labels != np.floor(labels))
        if broken.size:
            raise ValueError(
                f"y[{broken[0]}] is {labels[broken[0]]}: float labels are whole numbers, "
                "soft labels have a column a class"
            )
    known, numbers = np.unique(labels, return_inverse=True)
    return numbers.astype(np.intp)[kept], known


def _missing(y: Any, labels: Array) -> Any:
    if hasattr(y, "isna"):  # of a table
        return np.asarray(y.isna()).reshape(-1)
    if labels.dtype.kind == "f":
        return ~np.isfinite(labels)
    if labels.dtype == object:
        return [is_missing(label) for label in labels.tolist()]
    return np.zeros(len(labels), dtype=bool)


def summary(rows: BlockRows | BlockSummary, *_: Any) -> BlockSummary:
    """What the client has to know of the rows."""
    if isinstance(rows, BlockSummary):
        return rows
    n, p = rows.x.shape
    a = np.ones(n) if rows.weight is None else rows.weight
    if rows.known is None:
        totals: Float = np.asarray(a @ rows.labels.astype(np.float64))
    else:
        totals = np.bincount(rows.labels, weights=a, minlength=len(rows.known)).astype(np.float64)
    least, most = feature_range(rows.x)
    reach = 0.0
    if is_sparse(rows.x):
        reach = float(np.sqrt(longest(rows.x, None) if n else 0.0)) * (1 + 1e-9)
        size = rows.x.data.nbytes + rows.x.indices.nbytes
    else:
        size = rows.x.nbytes
    columns = 0 if rows.offset is None else 1 if rows.offset.ndim == 1 else rows.offset.shape[1]
    stored = int(rows.x.nnz) if is_sparse(rows.x) else n * p
    return BlockSummary(
        rows.n_given, n, p, rows.x.dtype, is_sparse(rows.x), rows.known, totals, least, most, reach, size, stored,
        float(a.sum()), columns,
    )  # fmt: skip


def moments(rows: BlockRows, *_: Any) -> tuple[float, Float, Float]:
    """Return the weight of the rows of a block, and the mean and variance of each feature."""
    return weighted_moments(rows.x, rows.weight)


def make(rows: BlockRows, shared: tuple[SharedModel, Array, ClassSupport]) -> Block:
    """The block that the solver works on, with the classes of all blocks that have a weight."""
    model, classes, support = shared
    targets: Array
    weight, offset = rows.weight, None if rows.offset is None else rows.offset.astype(np.float64)
    if rows.known is None:
        targets = np.ascontiguousarray(rows.labels[:, support.index], dtype=np.float64)
    else:
        targets = np.searchsorted(classes, rows.known).astype(np.int64)[rows.labels]
        if not support.full:
            inside = np.isin(targets, support.index)
            weight = np.where(inside, 1.0 if weight is None else weight, 0.0)
            targets = support.positions()[targets]
    if offset is not None and not support.full:
        offset = offset[:, support.index]
    if offset is not None:
        offset = np.stack([-offset / 2, offset / 2], axis=1) if offset.ndim == 1 else np.ascontiguousarray(offset)
    return Block(rows.x, targets, weight, offset, model)
