"""Answers for a collection: one task a block, which asks the model in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from dask import array as da
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from softgrad.dask._collections import parts_of
from softgrad.dask._graph import collect, each
from softgrad.dask._rows import BlockRows, BlockSummary, ColumnRoles, block_of_frame
from softgrad.sklearn._targets import column_names

Array = NDArray[Any]

__all__ = ["lazily", "scored"]


def lazily(model: Any, method: str, X: Any, offset: Any) -> Any:
    """A Dask array of what a method answers for each block."""
    check_is_fitted(model)
    parts = parts_of(X, None, None, offset, features=model._columns)
    plain = model._resting()
    if isinstance(X, da.Array) and X.shape[1] != model.n_features_in_:
        raise ValueError(f"X has {X.shape[1]} features, but the model was fitted with {model.n_features_in_}")
    some = getattr(plain, method)(np.zeros((1, model.n_features_in_), _dtype_of(X)))
    tasks = each(method.replace("_", "-"), _answer, parts.x, parts.offset, shared=(plain, method, parts.columns))
    known = isinstance(X, da.Array)
    lengths = X.chunks[0] if known else [np.nan] * len(tasks)
    answers = [
        da.from_delayed(task, (rows, *some.shape[1:]), meta=some[:0]) for task, rows in zip(tasks, lengths, strict=True)
    ]
    return da.concatenate(answers, allow_unknown_chunksizes=True)


def _dtype_of(X: Any) -> Any:
    """float32 where the model will see float32."""
    dtypes = [X.dtype] if isinstance(X, da.Array) else list(X.dtypes)
    narrow = all(getattr(d, "kind", "O") == "f" and d.itemsize <= 4 for d in dtypes)
    return np.float32 if narrow else np.float64


def _answer(part: Any, offset: Any, shared: tuple[Any, str, ColumnRoles]) -> Any:
    model, method, columns = shared
    rows = block_of_frame(part, columns)
    if not rows.shape[0]:
        return getattr(model, method)(np.zeros((1, rows.shape[1]), rows.dtype))[:0]
    return getattr(model, method)(rows, offset)


def scored(model: Any, X: Any, y: Any, sample_weight: Any, offset: Any) -> float:
    """The mean over all rows."""
    check_is_fitted(model)
    columns = None if isinstance(y, str) else column_names(y)
    if columns is not None and columns != model.classes_.tolist():
        raise ValueError(f"y has the columns {columns}, but the classes of the fit are {model.classes_.tolist()}")
    parts = parts_of(X, y, sample_weight, offset, features=model._columns)
    found = collect(each("score", _score, parts.read(), shared=model._resting()))
    first_row = 0
    for number, (_, _, n, error) in enumerate(found):
        if error is not None:
            raise ValueError(f"block {number}, whose first row is row {first_row} of X: {error}")
        first_row += n
    total = sum(weight for _, weight, _, _ in found)
    return float(sum(value for value, _, _, _ in found) / total) if total else float("nan")


def _score(rows: BlockRows | BlockSummary, model: Any) -> tuple[float, float, int, str | None]:
    """The weighted sum over a block, and the weight of its rows."""
    if isinstance(rows, BlockSummary):
        return 0.0, 0.0, rows.n_given, rows.error
    n = rows.x.shape[0]
    if not n:
        return 0.0, 0.0, rows.n_given, None
    a = np.ones(n) if rows.weight is None else rows.weight
    try:
        if rows.known is not None:
            right = model.predict(rows.x, rows.offset) == rows.known[rows.labels]
            return float(a @ right), float(a.sum()), rows.n_given, None
        if rows.labels.shape[1] != len(model.classes_):
            raise ValueError(f"y has {rows.labels.shape[1]} columns, but the fit had {len(model.classes_)} classes")
        logs = model.predict_log_proba(rows.x, rows.offset)
        value = np.einsum("ij,ij->i", rows.labels, logs, dtype=np.float64)
        return float(a @ value), float(a @ rows.labels.sum(axis=1, dtype=np.float64)), rows.n_given, None
    except ValueError as wrong:
        return 0.0, 0.0, rows.n_given, str(wrong)
