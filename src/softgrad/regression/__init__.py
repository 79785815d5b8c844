"""Softmax regression without scikit-learn: the penalised objective and the solvers that minimise it (needs SciPy)."""

from __future__ import annotations

from softgrad.regression._fit import FitInterrupted, FitResult, fit
from softgrad.regression.certificates._separation import Separation
from softgrad.regression.path import CrossValidation, PathResult, cross_validate_path, softmax_path
from softgrad.regression.rows._sources import RowBlocks
from softgrad.regression.solvers._state import Progress

__all__ = [
    "CrossValidation",
    "FitInterrupted",
    "FitResult",
    "PathResult",
    "Progress",
    "RowBlocks",
    "Separation",
    "cross_validate_path",
    "fit",
    "softmax_path",
]
