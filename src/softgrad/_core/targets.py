"""Targets as kernels read them: labels, dense soft targets, or the top k of soft targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from softgrad._core.arrays import FLOAT32, Array, Rows, fresh, raw, same_rows, storage_of

NONE, INDEX, DENSE, SPARSE = range(4)  # csrc/kernels.h: enum Target


class Targets(NamedTuple):
    """What `Head` wants to know about targets."""

    kind: int
    labels: Array | None = None
    label_bytes: int = 8
    signed: bool = True
    values: Array | None = None
    value_storage: int = FLOAT32


NO_TARGETS = Targets(NONE)


def as_targets(targets: Any, rows: Rows) -> Targets:
    """Check and flatten the targets of these logits; index or soft is decided by the dtype."""
    if isinstance(targets, tuple):
        return _sparse(targets, rows)
    array = np.asarray(targets)
    kind = array.dtype.kind
    if kind in "iu":
        if array.shape != rows.outer:
            hint = "" if array.shape != rows.shape else " (soft targets are floating-point numbers)"
            raise ValueError(
                f"targets have shape {array.shape}; one label for each row of logits is {rows.outer}{hint}"
            )
        labels = array.reshape(-1)
        if not (labels.dtype.isnative and labels.flags.aligned):
            labels = fresh(labels)
        return Targets(INDEX, labels, labels.itemsize, kind == "i")
    if kind == "b" or array.dtype == object or kind in "USc":
        raise TypeError(f"targets of dtype {array.dtype} are neither labels (integers) nor soft targets (floats)")
    storage = storage_of(array.dtype, "targets")
    if array.shape != rows.shape:
        hint = " (labels are integers)" if array.shape == rows.outer else ""
        raise ValueError(f"soft targets have shape {array.shape}; the logits have {rows.shape}{hint}")
    return Targets(DENSE, values=raw(same_rows(array, rows, "targets")), value_storage=storage)


def _sparse(targets: tuple[Any, ...], rows: Rows) -> Targets:
    """``(indices, values)`` with a trailing axis of k entries a row; −1 pads, duplicates add up."""
    if len(targets) != 2:
        raise ValueError(f"sparse targets are a pair (indices, values); got a tuple of {len(targets)}")
    indices, values = (np.asarray(part) for part in targets)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"the indices of sparse targets are integers, not {indices.dtype}")
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    storage = storage_of(values.dtype, "values of sparse targets")
    if indices.shape != values.shape or indices.shape[:-1] != rows.outer or indices.ndim == 0:
        raise ValueError(
            f"sparse targets have indices of shape {indices.shape} and values of shape {values.shape}; "
            f"both are {(*rows.outer, 'k')} for these logits"
        )
    n, k = len(rows.array), indices.shape[-1]
    if k == 0:  # nothing to read: one padded entry says the same
        indices, values, k = np.full((n, 1), -1), np.zeros((n, 1), np.float32), 1
        storage = FLOAT32
    flat, data = fresh(indices.reshape(n, k)), fresh(values.reshape(n, k))
    return Targets(SPARSE, flat, flat.itemsize, flat.dtype.kind == "i", raw(data), storage)


def label_error(targets: Targets, row: int, rows: Rows) -> ValueError:
    """Name the first bad label: its place in the caller's array, its value, and what to do."""
    if targets.labels is None:  # as_targets gave labels wherever labels are checked
        raise AssertionError("no labels to be wrong")
    place = ", ".join(str(int(i)) for i in np.unravel_index(row, rows.outer)) if rows.outer else ""
    classes = rows.array.shape[1]
    if targets.kind == SPARSE:
        entries = targets.labels[row]
        value = next(int(v) for v in entries if not -1 <= v < classes)
        return ValueError(
            f"targets: row [{place}] has the index {value}, outside [0, {classes}) (−1 pads); nothing was computed"
        )
    value = int(targets.labels[row])
    hint = f"; ignore_index={value} would leave such rows out" if value < 0 else ""
    return ValueError(f"targets[{place}] is {value}, outside [0, {classes}); nothing was computed{hint}")
