"""The folds of a cross-validation, as pairs of row numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from softgrad.sklearn._fit_data import FitData

__all__ = ["Fold", "make_folds"]

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


def make_folds(cv: Any, data: FitData, parameters: dict[str, Any], *, every_row: bool = False) -> list[Fold]:
    """Training and held-out rows of each fold.

    Rows of weight 0 are in no fold, neither for a splitter nor in folds given as row numbers, unless ``every_row`` is
    set. Soft labels are stratified by their largest.
    """
    from sklearn.model_selection import check_cv

    kept = None
    if data.sample_weight is not None and not every_row and not data.sample_weight.all():
        kept = np.flatnonzero(data.sample_weight)
    own = data.targets.own_classes() if kept is None else data.targets.own_classes()[kept]
    splitter = check_cv(cv, own, classifier=True)
    folds = []
    if hasattr(cv, "split") or not hasattr(cv, "__iter__"):
        x = data.x if data.in_memory else np.zeros((data.n_rows, 1))
        if kept is not None:
            x, parameters = x[kept], {name: _kept(value, kept, data.n_rows) for name, value in parameters.items()}
        numbers = np.arange(data.n_rows) if kept is None else kept
        for number, (train, test) in enumerate(splitter.split(x, own, **parameters)):
            folds.append(_checked(number, numbers[train], numbers[test]))
        return folds
    numbers = np.arange(data.n_rows)
    for number, (train, test) in enumerate(splitter.split()):
        pair = [numbers[part] for part in (train, test)]
        if kept is not None:
            pair = [part[np.isin(part, kept)] for part in pair]
        folds.append(_checked(number, *pair))
    return folds


def _checked(number: int, train: NDArray[Any], test: NDArray[Any]) -> Fold:
    for name, rows in (("training", train), ("held-out", test)):
        if not len(rows):
            raise ValueError(f"fold {number} of cv has no {name} rows with a positive weight")
    return np.asarray(train, dtype=np.intp), np.asarray(test, dtype=np.intp)


def _kept(value: Any, kept: NDArray[np.intp], n_rows: int) -> Any:
    array = np.asarray(value) if value is not None else None
    return array[kept] if array is not None and array.shape[:1] == (n_rows,) else value
