"""What y is: labels of any kind, or soft labels, a matrix of non-negative weights with a column for each class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

__all__ = ["FitTargets", "as_array", "column_names", "is_missing", "read_targets", "soft_values"]

_AT_ONCE = 1 << 22  # elements of soft labels that are looked at together


@dataclass(frozen=True)
class FitTargets:
    """y as the fit reads it.

    Attributes
    ----------
    values : array (n_rows,) of integers, or (n_rows, n_classes) of float32 or float64
        Labels in [0, n_classes), or soft labels.
    classes : array (n_classes,)
        What the labels stand for: sorted labels, or the names of the columns of soft labels.
    totals : array (n_classes,)
        Σ_i a_i y_ik, the weight of each class.
    """

    values: NDArray[Any]
    classes: NDArray[Any]
    totals: NDArray[np.float64]

    @property
    def soft(self) -> bool:
        """Whether the values are soft labels."""
        return self.values.ndim == 2

    def own_classes(self) -> NDArray[np.intp]:
        """The number of the class of each row; of soft labels, of the largest, the first of equals."""
        return np.asarray(self.values.argmax(axis=1) if self.soft else self.values, dtype=np.intp)

    def take(self, rows: NDArray[np.intp] | slice) -> NDArray[Any]:
        """Labels as they were given, or soft labels, of some rows."""
        return self.values[rows] if self.soft else self.classes[self.values[rows]]


def read_targets(
    y: Any,
    n_rows: int,
    *,
    weights: NDArray[np.float64] | None,
    classes: Any,
    estimator: str,
) -> FitTargets:
    """Validate y; the label of a row of weight 0 is a class, too, as in scikit-learn."""
    values = as_array(y)
    if len(values) != n_rows:
        raise ValueError(f"Found input variables with inconsistent numbers of samples: {[n_rows, len(values)]}")
    if values.ndim == 2:
        values = soft_values(values)
        return _soft_targets(values, _column_classes(y, values.shape[1], classes), weights)
    if classes is not None:
        raise ValueError("classes= names the columns of soft labels; y holds labels, and those are the classes")
    return _hard_targets(values, weights, estimator)


def _hard_targets(values: NDArray[Any], weights: NDArray[np.float64] | None, estimator: str) -> FitTargets:
    known, labels = np.unique(values, return_inverse=True)
    if len(known) < 2:
        raise ValueError(
            f"{estimator} needs at least two classes, but every row has the same one class: {known.tolist()[0]!r}"
        )
    labels = labels.astype(np.intp, copy=False)
    totals = np.bincount(labels, weights=weights, minlength=len(known)).astype(np.float64)
    return FitTargets(labels, known, totals)


def soft_values(values: NDArray[Any]) -> NDArray[Any]:
    """Soft labels as float32 or float64, or an error that names the first bad one."""
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.float64)
    for first, part in _parts(values):
        if part.min(initial=0) >= 0 and part.max(initial=0) < np.inf:
            continue
        row, column = np.argwhere(~((part >= 0) & (part < np.inf)))[0]
        raise ValueError(
            f"y[{first + row}, {column}] is {part[row, column]}: soft labels must be finite and not negative"
        )
    return values


def as_array(y: Any) -> NDArray[Any]:
    """Labels as a vector, or soft labels as the matrix of floats that they are."""
    if type(y) is np.ndarray and y.ndim == 1 and y.dtype.kind in "iubU" and len(y):
        return y  # nothing to convert and nothing missing: the checks below take longer than a small fit
    values = np.asarray(check_array(y, ensure_2d=False, dtype=None, ensure_all_finite=False, input_name="y"))
    if values.ndim == 2 and values.shape[1] >= 2:
        if values.dtype.kind == "f":
            return values
        raise ValueError(
            f"y of shape {values.shape} and dtype {values.dtype} is neither labels, which are one-dimensional, nor "
            "soft labels, which are floats; several labels a row are not supported. For soft labels, convert it: "
            "y.astype(float)"
        )
    labels = column_or_1d(values, warn=True)
    missing = _missing(labels)
    if missing.size:
        raise ValueError(f"Input y contains {labels[missing[0]]}: row {missing[0]} has no label")
    check_classification_targets(labels)
    return np.asarray(labels)


def _missing(labels: NDArray[Any]) -> NDArray[np.intp]:
    if labels.dtype.kind == "f":
        return np.flatnonzero(~np.isfinite(labels))
    if labels.dtype == object:
        return np.flatnonzero([is_missing(label) for label in labels.tolist()])
    return np.empty(0, dtype=np.intp)


def is_missing(label: Any) -> bool:
    """Whether a label is None, NaN, NaT or pandas.NA."""
    try:
        return label is None or bool(label != label)
    except TypeError:  # pandas.NA has no truth value
        return True


def column_names(y: Any) -> list[Any] | None:
    """Names of the columns of a table of soft labels; None of one column, which holds labels, and of anything else."""
    names = getattr(y, "column_names", None)  # of pyarrow, whose columns are the data
    if names is None:
        names = getattr(y, "columns", None)
    return None if names is None or callable(names) or len(names) < 2 else list(names)


def _column_classes(y: Any, n_columns: int, classes: Any) -> NDArray[Any]:
    """The names of the columns: of a table its own, else those given, else 0, 1, 2 and so on."""
    own = column_names(y)
    if classes is None:
        names = np.arange(n_columns) if own is None else np.asarray(own)
    else:
        names = np.asarray(list(classes))
        if own is not None and own != names.tolist():
            raise ValueError(f"the columns of y are {own}, but classes= names {names.tolist()}: leave classes= out")
    if names.shape != (n_columns,):
        raise ValueError(f"y has {n_columns} columns, but classes= names {len(names)}: {names.tolist()}")
    if len(np.unique(names)) < n_columns:
        raise ValueError(f"two columns of y have the same class: {names.tolist()}")
    return names


def _soft_targets(values: NDArray[Any], classes: NDArray[Any], weights: NDArray[np.float64] | None) -> FitTargets:
    totals = np.zeros(values.shape[1])
    for first, part in _parts(values):
        totals += (np.ones(len(part)) if weights is None else weights[first : first + len(part)]) @ part.astype(
            np.float64
        )
    empty = np.flatnonzero(totals == 0)
    if empty.size:
        raise ValueError(
            f"class {classes.tolist()[empty[0]]!r}, column {empty[0]} of y, is empty: its soft labels are 0 in every "
            "row with a positive weight; leave the column out"
        )
    return FitTargets(values, classes, totals)


def _parts(values: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Some rows at a time, so that soft labels larger than memory stay where they are."""
    step = max(1, _AT_ONCE // max(1, values.shape[1]))
    for first in range(0, len(values), step):
        yield first, values[first : first + step]
