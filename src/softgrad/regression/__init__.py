"""Softmax regression without scikit-learn: the penalised objective and the fit that minimises it (needs SciPy)."""

from __future__ import annotations

from softgrad.regression.fit import FitResult, fit
from softgrad.regression.objective import SoftmaxObjective

__all__ = ["FitResult", "SoftmaxObjective", "fit"]
