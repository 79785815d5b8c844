"""One fit at one C, of every class: from validated data to fitted attributes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from softgrad import regression
from softgrad.sklearn._callbacks import STACK_LEVEL, Monitor
from softgrad.sklearn._class_support import ClassSupport, fit_arguments
from softgrad.sklearn._fit_data import FitData

__all__ = ["SolverOptions", "fit_and_keep", "keep_result", "warm_start", "warn_unless_converged"]

_HISTORY = [
    ("iteration", np.int64), ("objective", np.float64), ("gap", np.float64),
    ("passes", np.float64), ("seconds", np.float64), ("step", np.float64),
]  # fmt: skip


@dataclass(frozen=True)
class SolverOptions:
    """Options of :func:`softgrad.regression.fit`."""

    C: float
    tol: float
    max_iter: int
    fit_intercept: bool
    label_smoothing: float = 0.0
    solver: str = "auto"
    max_memory: int | None = None
    n_threads: int | None = None
    standardize: bool = False

    def fit(self, x: Any, arguments: dict[str, Any], support: ClassSupport, start: Any, callback: Any) -> Any:
        """Call the fit; its result is of the classes of ``support``."""
        return regression.fit(
            x,
            **arguments,
            C=self.C * support.c_scale,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
            max_memory=self.max_memory,
            n_threads=self.n_threads,
            start=start,
            callback=callback,
            coef_dtype=x.dtype,
            standardize=self.standardize,
        )


def fit_and_keep(
    estimator: Any, data: FitData, options: SolverOptions, start: Any, callback: Any, *, in_iterations: bool = True
) -> None:
    """Fit, set the fitted attributes, also of an interrupted fit, and warn if it has not converged.

    scikit-learn's callbacks are called in each iteration if ``in_iterations`` is set.
    """
    support, arguments = fit_arguments(data, options.label_smoothing, options.fit_intercept)
    start = None if start is None else support.restrict(*start)

    def reached(iteration: int) -> dict[str, Any]:
        """Fit again up to an iteration: the solver is deterministic, and its progress does not hold the model."""
        result = replace(options, max_iter=iteration).fit(data.x, arguments, support, start, None)
        return model_attributes(data, *support.expand(result.coef, result.intercept))

    most = options.max_iter if in_iterations else None
    monitor = Monitor(estimator, data, callback, most, reached=reached, scale=support.c_scale)
    if len(support.index) == 1:
        result = _certain(support, data.x.shape[1])
    elif options.max_iter == 0:
        result = _not_begun(support, arguments, data.x.shape[1], start)
    else:
        try:
            result = options.fit(data.x, arguments, support, start, monitor)
        except regression.FitInterrupted as interruption:
            result = interruption.result
            if not monitor.stopped:
                keep_result(estimator, data, support, result)
                raise
    keep_result(estimator, data, support, result)
    monitor.end()
    if not monitor.stopped:
        warn_unless_converged(result, estimator.separable_, STACK_LEVEL + 2)


def _certain(support: ClassSupport, n_features: int) -> regression.FitResult:
    """The model of data with one class: its loss is 0 to rounding."""
    coef, intercept = support.certain(n_features)
    return regression.FitResult(coef, intercept, 0, 0.0, 0.0, 0.0, [], True, "one class has all the weight", "")


def _not_begun(support: ClassSupport, arguments: dict[str, Any], n_features: int, start: Any) -> regression.FitResult:
    """The start as the result of no iteration."""
    rows = 1 if len(support.index) == 2 else len(support.index)
    coef, intercept = (np.zeros((rows, n_features)), np.zeros(rows)) if start is None else start
    if not arguments["fit_intercept"]:
        intercept = np.zeros(rows)
    message = "stopped at max_iter = 0"
    return regression.FitResult(coef, intercept, 0, 0.0, np.nan, np.inf, [], False, message, "")


def model_attributes(data: FitData, coef: NDArray[Any], intercept: NDArray[Any]) -> dict[str, Any]:
    """Attributes that predictions need."""
    return {
        "classes_": data.targets.classes,
        "coef_": coef.astype(data.x.dtype),
        "intercept_": intercept.astype(data.x.dtype),
    }


def keep_result(estimator: Any, data: FitData, support: ClassSupport, result: regression.FitResult) -> None:
    """Set the fitted attributes."""
    if len(support.index) > 1:
        coef, intercept = support.expand(result.coef, result.intercept)
    else:
        coef, intercept = result.coef, result.intercept
    for name, value in model_attributes(data, coef, intercept).items():
        setattr(estimator, name, value)
    estimator.n_iter_ = np.array([result.n_iter], dtype=np.int32)
    estimator.n_passes_ = float(result.n_passes)
    estimator.objective_ = float(result.objective) / support.c_scale
    estimator.gap_ = float(result.gap)
    estimator.separable_ = named_separation(result, data.targets.classes[support.index])
    estimator.history_ = np.array([tuple(row) for row in result.history], dtype=_HISTORY)
    estimator.history_["objective"] /= support.c_scale


def named_separation(result: regression.FitResult, labels: NDArray[Any]) -> regression.Separation | None:
    """Return the proof that there is no optimum, if there is one, with the labels of the classes."""
    found, names = result.separation, labels.tolist()
    return None if found is None else found._replace(classes=[(names[j], names[k]) for j, k in found.classes])


def warn_unless_converged(
    result: regression.FitResult, separation: regression.Separation | None, stacklevel: int
) -> None:
    """Say how far the fit is from its optimum, or why that is not known."""
    if separation is not None:
        message = f"the fit has not converged: {separation.describe()}"
    elif not result.converged:
        message = f"the fit has not converged: {result.message}; raise max_iter or tol, or scale the features"
    elif np.isnan(result.gap):
        message = f"gap_ is NaN: {result.message}"
    else:
        return
    warnings.warn(message, ConvergenceWarning, stacklevel=stacklevel)


def warm_start(estimator: Any, classes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """The last fit as a starting point, if it is a fit of the same classes and features."""
    if not (estimator.warm_start and hasattr(estimator, "coef_")):
        return None
    if not np.array_equal(classes, estimator.classes_):
        raise ValueError(
            f"warm_start=True needs the classes of the last fit, {estimator.classes_.tolist()}, but y has "
            f"{classes.tolist()}: set warm_start=False to start anew"
        )
    if estimator.coef_.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"warm_start=True needs the {estimator.coef_.shape[1]} features of the last fit, but X has "
            f"{estimator.n_features_in_}: set warm_start=False to start anew"
        )
    return estimator.coef_, estimator.intercept_
