"""Targets as kernels read them: labels, dense soft targets, or the entries of sparse soft targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from softgrad._core import backend
from softgrad._core.arrays import Array, LogitRows, fresh, plain, raw, same_rows, storage_of
from softgrad._core.backend import Storage, TargetKind


class TargetArrays(NamedTuple):
    """Validated targets of some rows."""

    kind: Any = TargetKind.none
    labels: Array | None = None  # (N,), or indices (N, k)
    values: Array | None = None  # (N, V) or (N, k)
    storage: Any = Storage.float32  # of the values

    def part(self, lo: int, hi: int) -> TargetArrays:
        """Targets of the rows [lo, hi)."""
        labels, values = self.labels, self.values
        return self._replace(
            labels=None if labels is None else labels[lo:hi], values=None if values is None else values[lo:hi]
        )

    def record(self, first: int = 0, classes: int = 0) -> Any:
        """Build the kernels' record; ``first`` and ``classes`` describe a slice of the classes."""
        return backend.kernels().Targets(self.kind, self.labels, self.values, self.storage, first, classes)


NO_TARGETS = TargetArrays()


def as_targets(targets: Any, rows: LogitRows, name: str = "targets") -> TargetArrays:
    """Validate and flatten the targets of these logits; the dtype decides between labels and soft targets."""
    if isinstance(targets, tuple):
        return _sparse(targets, rows, name)
    array = plain(targets, name)
    kind = array.dtype.kind
    if kind in "iu":
        if array.shape != rows.outer:
            hint = "" if array.shape != rows.shape else " (soft targets are floating-point numbers)"
            raise ValueError(f"{name} have shape {array.shape}; one label for each row of logits is {rows.outer}{hint}")
        labels = array.reshape(-1)
        if not (labels.dtype.isnative and labels.flags.aligned):
            labels = fresh(labels)
        return TargetArrays(TargetKind.labels, labels)
    if kind == "b" or array.dtype == object or kind in "USc":
        raise TypeError(f"{name} of dtype {array.dtype} are neither labels (integers) nor soft targets (floats)")
    storage = storage_of(array.dtype, name)
    if array.shape != rows.shape:
        hint = " (labels are integers)" if array.shape == rows.outer else ""
        raise ValueError(f"soft {name} have shape {array.shape}; the logits have {rows.shape}{hint}")
    return TargetArrays(TargetKind.dense, values=raw(same_rows(array, rows, name)), storage=storage)


def _sparse(targets: tuple[Any, ...], rows: LogitRows, name: str) -> TargetArrays:
    """``(indices, values)`` with a trailing axis of k entries a row; −1 pads, duplicates add up."""
    if len(targets) != 2:
        raise ValueError(f"sparse {name} are a pair (indices, values); got a tuple of {len(targets)}")
    indices, values = (
        plain(targets[0], f"the indices of sparse {name}"),
        plain(targets[1], f"the values of sparse {name}"),
    )
    if indices.dtype.kind not in "iu":
        raise TypeError(f"the indices of sparse {name} are integers, not {indices.dtype}")
    if values.dtype.kind in "iu":
        values = values.astype(np.float64)
    storage = storage_of(values.dtype, f"the values of sparse {name}")
    if indices.shape != values.shape or indices.shape[:-1] != rows.outer or indices.ndim == 0:
        raise ValueError(
            f"sparse {name} have indices of shape {indices.shape} and values of shape {values.shape}; "
            f"both are {(*rows.outer, 'k')} for these logits"
        )
    n, k = len(rows.array), indices.shape[-1]
    return TargetArrays(TargetKind.sparse, fresh(indices.reshape(n, k)), raw(fresh(values.reshape(n, k))), storage)


def label_error(targets: TargetArrays, row: int, rows: LogitRows, classes: int, name: str = "targets") -> ValueError:
    """Build the error that names the first label outside the classes: its place in the caller's array and its value."""
    assert targets.labels is not None  # as_targets gave labels wherever labels are checked
    place = ", ".join(str(int(i)) for i in np.unravel_index(row, rows.outer)) if rows.outer else ""
    if targets.kind is TargetKind.sparse:
        value = next((int(v) for v in targets.labels[row] if not -1 <= v < classes), None)
        return ValueError(
            f"{name}: row [{place}] has the index {value}, outside [0, {classes}) (−1 pads); nothing was computed"
        )
    value = int(targets.labels[row])
    hint = f"; ignore_index={value} would leave such rows out" if value < 0 else ""
    return ValueError(f"{name}[{place}] is {value}, outside [0, {classes}); nothing was computed{hint}")
