"""The folds of a cross-validation, as pairs of row numbers of the rows that are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.sources import RowBlocks
from softgrad.sklearn._fit_data import FitData

__all__ = ["Fold", "make_folds"]

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


def make_folds(cv: Any, problem: FitData, n_rows: int, parameters: dict[str, Any]) -> list[Fold]:
    """Training and held-out rows of each fold.

    Rows of weight 0 count as absent: a splitter never sees them, and they are taken out of folds that are given as
    row numbers of the data as it was handed over. Soft labels are stratified by their largest.
    """
    from sklearn.model_selection import check_cv  # late:

    own = problem.targets.own_classes()
    splitter = check_cv(cv, own, classifier=True)
    if hasattr(cv, "split") or not hasattr(cv, "__iter__"):
        x = np.zeros((problem.n_rows, 1)) if isinstance(problem.x, RowBlocks) else problem.x
        kept = problem.kept
        if kept is not None:
            parameters = {name: _kept(value, kept, n_rows) for name, value in parameters.items()}
        folds = splitter.split(x, own, **parameters)
        return [_checked(number, train, test) for number, (train, test) in enumerate(folds)]
    numbers = np.arange(n_rows)
    if problem.kept is not None:
        numbers = np.full(n_rows, -1)
        numbers[problem.kept] = np.arange(problem.n_rows)
    folds = []
    for number, (train, test) in enumerate(splitter.split()):
        pair = (numbers[np.arange(n_rows)[part]] for part in (train, test))
        folds.append(_checked(number, *(part[part >= 0] for part in pair)))
    return folds


def _checked(number: int, train: NDArray[Any], test: NDArray[Any]) -> Fold:
    for name, rows in (("training", train), ("held-out", test)):
        if not len(rows):
            raise ValueError(f"fold {number} of cv has no {name} rows with a positive weight")
    return np.asarray(train, dtype=np.intp), np.asarray(test, dtype=np.intp)


def _kept(value: Any, kept: NDArray[np.intp], n_rows: int) -> Any:
    array = np.asarray(value) if value is not None else None
    return array[kept] if array is not None and array.shape[:1] == (n_rows,) else value
