"""Weights of rows and of classes, and offsets: checked, as the fit reads them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.sklearn._targets import FitTargets

__all__ = ["class_weights", "finite_weights", "read_offset", "row_weights"]


def row_weights(sample_weight: Any, n_rows: int) -> NDArray[np.float64] | None:
    """The row weights as float64, or an error that names the first bad one."""
    weights = finite_weights(sample_weight, n_rows)
    if weights is not None and not weights.any():
        raise ValueError("sample_weight is zero in every row: at least one weight must be positive")
    return weights


def finite_weights(sample_weight: Any, n_rows: int) -> NDArray[np.float64] | None:
    """Validate the weights of a part of the rows, all of which may be 0."""
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n_rows, weights)
    if weights.shape != (n_rows,):
        raise ValueError(f"sample_weight must have one weight a row: shape {(n_rows,)}, not {weights.shape}")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ValueError(f"sample_weight[{bad[0]}] is {weights[bad[0]]}: weights must be finite and not negative")
    return weights


def class_weights(
    given: dict[Any, float] | str | None, targets: FitTargets, stacklevel: int = 5
) -> NDArray[np.float64] | None:
    """One weight a class, 1 for a class that the dict does not name.

    "balanced": with t_k = Σ_i a_i y_ik, the weight of class k is Σ t / (K · t_k) for the K classes with t_k > 0. Names
    that are no class of y are what a subset of the rows may lack; if the dict leaves a class out as well, they are
    likely misspelt.
    """
    if given is None:
        return None
    if not isinstance(given, dict):
        present = targets.totals > 0
        shares = np.count_nonzero(present) * targets.totals
        balanced = np.ones(len(present))
        balanced[present] = targets.totals.sum() / shares[present]
        return balanced
    known = targets.classes.tolist()
    unknown = [label for label in given if label not in known]
    unnamed = [label for label in known if label not in given]
    if unknown and unnamed:
        warnings.warn(
            f"class_weight names {unknown[0]!r}, which is not a class in y, but not {unnamed[0]!r}, which is one and "
            f"has weight 1; the classes are {known}",
            UserWarning,
            stacklevel=stacklevel,
        )
    weights = np.array([given.get(label, 1.0) for label in known], dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ValueError(
            f"class_weight of {known[bad[0]]!r} is {weights[bad[0]]}: weights must be finite and not negative"
        )
    return weights


def read_offset(offset: Any, n_rows: int, n_classes: int) -> NDArray[Any] | None:
    """The offset as an array (n_rows, n_classes), or (n_rows,) for two classes, of float32 or float64."""
    if offset is None:
        return None
    values = np.asarray(offset)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    if n_classes == 2 and values.shape == (n_rows, 1):
        values = values[:, 0]
    if values.shape != (n_rows, n_classes) and not (n_classes == 2 and values.shape == (n_rows,)):
        also = f" or {(n_rows,)}" if n_classes == 2 else ""
        raise ValueError(
            f"offset must have one number for each row and class: shape {(n_rows, n_classes)}{also}, not {values.shape}"
        )
    from softgrad.regression.rows._blocks import first_not_finite

    found = first_not_finite(values.reshape(n_rows, -1))
    if found is not None:
        place = f"{found[0]}, {found[1]}" if values.ndim == 2 else f"{found[0]}"
        raise ValueError(f"offset[{place}] is {found[2]}: offsets must be finite")
    return values
