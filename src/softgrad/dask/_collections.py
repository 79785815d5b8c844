"""X, y, weights and offsets of a call as one list of blocks: Dask's collections, cut where X is cut."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask import array as da

from softgrad.dask._graph import each
from softgrad.dask._rows import ColumnRoles, read

__all__ = ["Parts", "feature_names", "is_collection", "parts_of"]


@dataclass(frozen=True)
class Parts:
    """Delayed blocks of X, what belongs to the rows of each (None where there is none), and how to read them."""

    x: list[Any]
    y: list[Any]
    sample_weight: list[Any]
    offset: list[Any]
    columns: ColumnRoles

    def read(self) -> list[Any]:
        """The rows of each block, not yet computed."""
        return each("read", read, self.x, self.y, self.sample_weight, self.offset, shared=self.columns)


def is_collection(values: Any) -> bool:
    """Whether something is an array or a table of Dask."""
    return isinstance(values, da.Array) or _is_frame(values)


def _is_frame(values: Any) -> bool:
    """A Dask DataFrame or Series; nothing is imported to find out."""
    return not isinstance(values, da.Array) and hasattr(values, "npartitions") and hasattr(values, "to_delayed")


def feature_names(x: Any, without: list[Any]) -> list[Any] | None:
    """The columns of a table but for some."""
    return [name for name in x.columns if name not in without] if _is_frame(x) else None


def parts_of(
    x: Any, y: Any, sample_weight: Any = None, offset: Any = None, *, features: list[Any] | None = None
) -> Parts:
    """Everything by blocks of X; ``features``: the columns of a table that are features, if not all others."""
    if not is_collection(x):
        raise TypeError(
            f"X must be a Dask array or DataFrame, not {type(x).__name__}: softgrad.sklearn.SoftmaxRegression fits "
            "what is in memory, and dask.array.from_array(X, chunks=(rows, -1)) makes blocks of it"
        )
    given = {"y": y, "sample_weight": sample_weight, "offset": offset}
    taken = {name: value for name, value in given.items() if isinstance(value, str)}
    if _is_frame(x):
        if not hasattr(x, "columns") or x.ndim != 2:
            raise ValueError("X is a Series: rows of features are a DataFrame, X.to_frame()")
        columns = _columns_of(x, taken, features)
        frames = [x, *(value for value in given.values() if _is_frame(value))]
        as_they_are = len({len(_delayed(frame)) for frame in frames}) > 1
        blocks, lengths = _delayed(x, as_they_are), None
    else:
        for name, value in taken.items():
            raise ValueError(f"{name}={value!r} names a column, which needs a Dask DataFrame as X")
        if x.ndim != 2:
            raise ValueError(f"X has {x.ndim} dimension(s), not two: a block holds rows of features")
        x = x.rechunk({1: -1}) if len(x.chunks[1]) > 1 else x
        columns, as_they_are = ColumnRoles(None, None), False
        blocks = [row[0] for row in x.to_delayed()]
        lengths = None if np.isnan(x.chunks[0]).any() else x.chunks[0]
    cut = {
        name: [None] * len(blocks)
        if value is None or name in taken
        else _cut(value, name, len(blocks), lengths, as_they_are)
        for name, value in given.items()
    }
    return Parts(blocks, **cut, columns=columns)


def _columns_of(x: Any, taken: dict[str, Any], features: list[Any] | None) -> ColumnRoles:
    for name, value in taken.items():
        if value not in x.columns:
            raise ValueError(f"{name}={value!r} is not a column of X; it has {list(x.columns)}")
    names = feature_names(x, list(taken.values())) if features is None else features
    absent = [name for name in names or [] if name not in x.columns]
    if absent:
        raise ValueError(f"X has no column {absent[0]!r}, which was a feature in fit; it has {list(x.columns)}")
    dtypes = x.dtypes
    for name in names or []:
        kind = getattr(dtypes[name], "kind", "O")
        if kind not in "fiub":
            raise ValueError(f"column {name!r} of X is of dtype {dtypes[name]}: features must be real numbers")
    narrow = all(dtypes[name].kind == "f" and dtypes[name].itemsize <= 4 for name in names or [])
    return ColumnRoles(names, np.dtype(np.float32 if narrow else np.float64), **taken)


def _delayed(frame: Any, as_it_is: bool = False) -> list[Any]:
    """The partitions of a table.

    Dask makes fewer partitions of a file of which it reads few columns, so that a column may have fewer than the rest;
    ``as_it_is``: not then.
    """
    return list(frame.to_delayed(optimize_graph=not as_it_is))


def _cut(values: Any, name: str, n_blocks: int, lengths: Any, as_they_are: bool) -> list[Any]:
    """One part for each block of X."""
    if _is_frame(values):
        parts = _delayed(values, as_they_are)
    elif isinstance(values, da.Array):
        if values.ndim == 2 and len(values.chunks[1]) > 1:
            values = values.rechunk({1: -1})
        if lengths is not None and not np.isnan(values.chunks[0]).any() and values.chunks[0] != lengths:
            if sum(values.chunks[0]) != sum(lengths):
                raise ValueError(f"{name} has {sum(values.chunks[0])} rows, but X has {sum(lengths)}")
            values = values.rechunk({0: lengths})
        parts = values.to_delayed().reshape(-1).tolist()
    else:
        if lengths is None:
            raise TypeError(
                f"{name} is a {type(values).__name__}, but how many rows each block of X has is not known: give {name} "
                "as a Dask collection, or the name of a column of X"
            )
        whole = values if hasattr(values, "iloc") else np.asarray(values)
        if whole.shape[:1] != (sum(lengths),):
            raise ValueError(f"{name} has shape {whole.shape}, but X has {sum(lengths)} rows")
        edges = np.concatenate([[0], np.cumsum(lengths)])
        rows = whole.iloc if hasattr(whole, "iloc") else whole
        return [rows[lo:hi] for lo, hi in itertools.pairwise(edges)]
    if len(parts) != n_blocks:
        raise ValueError(f"{name} has {len(parts)} blocks, but X has {n_blocks}: cut both alike")
    return parts
