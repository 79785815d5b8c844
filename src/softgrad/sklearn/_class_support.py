"""Classes whose targets have no weight: left out of the fit, and of probability 0 in the model.

Such a class comes from ``sample_weight`` or ``class_weight`` of 0, as ensembles pass them. With an intercept its
optimum lies at an intercept of minus infinity, with coefficients 0; without one it is a class like the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.sklearn._fit_data import FitData

__all__ = ["ABSENT", "ClassSupport", "fit_arguments", "supported"]

ABSENT = -700.0  # intercept of a class without weight: finite, for tools that check, and exp(-700) is a normal float64
_TRACE = 1e-290  # target weight that makes a class part of the fit and changes no sum


@dataclass(frozen=True)
class ClassSupport:
    """Classes of a fit.

    Attributes
    ----------
    n_classes : int
        All classes.
    index : array of int
        Those with a positive weight.
    """

    n_classes: int
    index: NDArray[np.intp]

    @property
    def full(self) -> bool:
        """Whether no class is left out."""
        return len(self.index) == self.n_classes

    @property
    def c_scale(self) -> float:
        """Factor of C, and of the objective, in the fit of the classes that are left.

        Two of several classes have a row of coefficients each, half the difference, whose penalty is half of that on
        one row.
        """
        return 2.0 if len(self.index) == 2 < self.n_classes else 1.0

    def positions(self) -> NDArray[np.intp]:
        """Place of each class among those that are left, 0 for the others."""
        found = np.zeros(self.n_classes, dtype=np.intp)
        found[self.index] = np.arange(len(self.index))
        return found

    def expand(self, coef: NDArray[Any], intercept: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Coefficients of all classes; leading axes are kept."""
        if self.full:
            return coef, intercept
        if len(self.index) == 2:
            coef, intercept = np.concatenate([-coef, coef], -2) / 2, np.concatenate([-intercept, intercept], -1) / 2
        all_coefs = np.zeros((*coef.shape[:-2], self.n_classes, coef.shape[-1]))
        all_intercepts = np.full((*intercept.shape[:-1], self.n_classes), ABSENT)
        all_coefs[..., self.index, :], all_intercepts[..., self.index] = coef, intercept
        return all_coefs, all_intercepts

    def restrict(self, coef: NDArray[Any], intercept: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Coefficients of the classes that are left, of a model of all."""
        if self.full:
            return coef, intercept
        coef, intercept = coef[self.index], np.maximum(intercept[self.index], ABSENT)
        return (coef[1:] - coef[:1], intercept[1:] - intercept[:1]) if len(self.index) == 2 else (coef, intercept)

    def certain(self, n_features: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The model of one class alone."""
        if self.n_classes == 2:
            return np.zeros((1, n_features)), np.array([-ABSENT if self.index[0] == 1 else ABSENT])
        return self.expand(np.zeros((1, n_features)), np.zeros(1))

    def expand_logits(self, logits: NDArray[Any]) -> NDArray[Any]:
        """Logits of all classes, minus infinity for those left out."""
        if self.full:
            return logits
        found = np.full((len(logits), self.n_classes), -np.inf, dtype=logits.dtype)
        found[:, self.index] = logits
        return found


def supported(
    totals: NDArray[np.float64], class_weight: NDArray[np.float64] | None, label_smoothing: float
) -> ClassSupport:
    """Classes with a positive weight: of their targets, or by label smoothing."""
    weights = np.ones(len(totals)) if class_weight is None else class_weight
    index = np.flatnonzero((weights > 0) & ((totals > 0) | (label_smoothing > 0)))
    if not index.size:
        raise ValueError("class_weight is zero for every class with rows: at least one must be positive")
    return ClassSupport(len(totals), index)


def fit_arguments(data: FitData, label_smoothing: float, fit_intercept: bool) -> tuple[ClassSupport, dict[str, Any]]:
    """The classes to fit, and the arguments of :func:`softgrad.regression.fit` but for the solver's options."""
    support = supported(data.targets.totals, data.class_weight, label_smoothing)
    if not support.full:
        data, label_smoothing = _soft(data, label_smoothing, support, fit_intercept)
        if fit_intercept:
            data = _restricted(data, support)
        else:
            support = replace(support, index=np.arange(support.n_classes))
    return support, {
        "targets": data.targets.values,
        "n_classes": len(support.index),
        "sample_weight": data.sample_weight,
        "class_weight": data.class_weight,
        "label_smoothing": label_smoothing,
        "offset": data.offset,
        "fit_intercept": fit_intercept,
    }


def _soft(data: FitData, label_smoothing: float, support: ClassSupport, fit_intercept: bool) -> tuple[FitData, float]:
    """Smooth the targets over all classes before some are left out; without an intercept give all a trace of weight."""
    if fit_intercept and not label_smoothing:
        return data, 0.0
    values, k = data.targets.values, data.n_classes
    soft = values.astype(np.float64) if data.targets.soft else np.eye(k)[values]
    soft = (1 - label_smoothing) * soft + label_smoothing / k * soft.sum(axis=1, keepdims=True)
    weights = data.class_weight
    if not fit_intercept:
        soft, weights = soft if weights is None else soft * weights, None
        absent = np.setdiff1d(np.arange(k), support.index)
        soft[0 if data.sample_weight is None else int(data.sample_weight.argmax()), absent] = _TRACE
    return replace(data, targets=replace(data.targets, values=soft), class_weight=weights), 0.0


def _restricted(data: FitData, support: ClassSupport) -> FitData:
    """The classes that are left; a row of another class has weight 0."""
    values, weights = data.targets.values, data.sample_weight
    if data.targets.soft:
        values = np.ascontiguousarray(values[:, support.index])
    else:
        inside = np.isin(values, support.index)
        weights = inside.astype(np.float64) if weights is None else np.where(inside, weights, 0.0)
        values = support.positions()[values]
    offset = data.offset
    if offset is not None and len(support.index) > 1:
        offset = offset[:, support.index]
    return FitData(
        data.x,
        replace(data.targets, values=values),
        weights,
        None if data.class_weight is None else data.class_weight[support.index],
        offset,
    )
