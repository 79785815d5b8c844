"""The scikit-learn estimator: softmax regression on softgrad's kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from softgrad.loss import log_softmax, softmax
from softgrad.regression import SoftmaxObjective, fit

__all__ = ["SoftmaxRegression"]


class SoftmaxRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multinomial logistic regression with an L2 penalty.

    Minimises ``C Σ_i a_i ℓ_i + ½ ‖W‖²``, the objective of :class:`sklearn.linear_model.LogisticRegression`, so that
    ``C`` and ``tol`` mean what they mean there. The intercept is not penalised.

    Parameters
    ----------
    C : float, default=1.0
        Weight of the data against the penalty; ``float("inf")`` for no penalty.
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    class_weight : dict or "balanced", default=None
        Multiplies the weight of each row by the weight of its class (1 for a class the dict does not name).
        "balanced": inversely proportional to the total sample weight of each class.
    label_smoothing : float, default=0.0
        ε in [0, 1]: the target of a row is ``(1 − ε)`` its class plus ``ε / n_classes`` each class.
    tol : float, default=1e-4
        The fit is done when no component of the gradient of the objective divided by ``C Σ a`` exceeds it.
    max_iter : int, default=1000
        Most iterations of L-BFGS.
    warm_start : bool, default=False
        Start from the last fit. The classes and the number of features must then be the same.
    verbose : int, default=0
        Print the objective after each iteration.
    n_threads : int, default=None
        Threads of the kernels; None leaves the choice to softgrad.

    Attributes
    ----------
    classes_ : array (n_classes,)
        The labels, sorted, of the rows with a positive weight.
    coef_ : array (1, n_features) for two classes, else (n_classes, n_features)
        Of two classes, the logit of the second against the first.
    intercept_ : array (1,) or (n_classes,)
        Zeros without an intercept.
    n_iter_ : array (1,)
        Iterations made.
    objective_ : float
        The objective at the result.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array (n_features,)
        Their names, when ``X`` had names that are all strings.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softgrad.sklearn import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegression().fit(X, y)
    >>> round(model.score(X, y), 2)
    0.97
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        label_smoothing: float = 0.0,
        tol: float = 1e-4,
        max_iter: int = 1000,
        warm_start: bool = False,
        verbose: int = 0,
        n_threads: int | None = None,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.verbose = verbose
        self.n_threads = n_threads

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | None = None,
        *,
        callback: Callable[[int, float], Any] | None = None,
    ) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array (n_rows, n_features)
            float32 and float64 are kept; anything else becomes float64.
        y : array (n_rows,)
            Labels.
        sample_weight : array (n_rows,), optional
            Row weights, not negative. A row of weight 0 counts as absent, its label too.
        callback : callable (iteration, objective), optional
            Called after each iteration, counted from 1.

        Returns
        -------
        self
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), order="C")
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        weights = _row_weights(sample_weight, len(y))
        if weights is not None and not weights.all():
            kept = weights > 0
            X, y, weights = X[kept], y[kept], weights[kept]

        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least two classes, but every row with a positive weight "
                f"has the same one class: {classes.tolist()[0]!r}"
            )
        if self.class_weight is not None:
            of_class = _class_weights(self.class_weight, classes, labels, weights)
            weights = of_class[labels] if weights is None else weights * of_class[labels]

        objective = SoftmaxObjective(
            X,
            labels,
            len(classes),
            C=self.C,
            sample_weight=weights,
            fit_intercept=self.fit_intercept,
            label_smoothing=self.label_smoothing,
            n_threads=self.n_threads,
        )
        start = self._start(objective, classes) if self.warm_start and hasattr(self, "coef_") else None
        result = fit(objective, start=start, tol=self.tol, max_iter=self.max_iter, callback=self._listener(callback))
        self.classes_ = classes
        self.coef_ = result.coef.astype(X.dtype)
        self.intercept_ = result.intercept.astype(X.dtype)
        self.n_iter_ = np.array([result.n_iter], dtype=np.int32)
        self.objective_ = result.objective
        if not result.converged:
            warnings.warn(
                f"the fit has not converged: {result.message}; raise max_iter or tol, or scale the features",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Logits: (n_rows, n_classes), or (n_rows,) for two classes, then of the second against the first.

        Parameters
        ----------
        X : array (n_rows, n_features)
            The rows.

        Returns
        -------
        array
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        logits: NDArray[Any] = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each row.

        Parameters
        ----------
        X : array (n_rows, n_features)
            The rows.

        Returns
        -------
        array (n_rows,)
        """
        logits = self.decision_function(X)
        chosen = (logits > 0).astype(np.intp) if logits.ndim == 1 else logits.argmax(axis=1)
        labels: NDArray[Any] = self.classes_[chosen]
        return labels

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """The probability of each class, in the order of ``classes_``.

        Parameters
        ----------
        X : array (n_rows, n_features)
            The rows.

        Returns
        -------
        array (n_rows, n_classes)
        """
        return softmax(self._logits(X), n_threads=self.n_threads)

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """The log-probability of each class: a log-softmax, finite where the probability itself is 0 in floating point.

        Parameters
        ----------
        X : array (n_rows, n_features)
            The rows.

        Returns
        -------
        array (n_rows, n_classes)
        """
        return log_softmax(self._logits(X), n_threads=self.n_threads)

    def _logits(self, X: Any) -> NDArray[Any]:
        """One logit a class; the first of two classes has logit 0."""
        logits = self.decision_function(X)
        return logits if logits.ndim == 2 else np.stack([np.zeros_like(logits), logits], axis=1)

    def _start(self, objective: SoftmaxObjective, classes: NDArray[Any]) -> NDArray[np.float64]:
        """The last fit as a starting point, if it is a fit of the same classes and features."""
        if not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"warm_start=True needs the classes of the last fit, {self.classes_.tolist()}, but y has "
                f"{classes.tolist()}: set warm_start=False to start anew"
            )
        if self.coef_.shape[1] != objective.x.shape[1]:
            raise ValueError(
                f"warm_start=True needs the {self.coef_.shape[1]} features of the last fit, but X has "
                f"{objective.x.shape[1]}: set warm_start=False to start anew"
            )
        return objective.pack(self.coef_, self.intercept_)

    def _listener(self, callback: Callable[[int, float], Any] | None) -> Callable[[int, float], Any] | None:
        """What hears of each iteration: the caller, and the terminal when verbose."""
        if not self.verbose:
            return callback

        def listen(iteration: int, objective: float) -> None:
            print(f"iteration {iteration:5d}   objective {objective:.8g}", flush=True)
            if callback is not None:
                callback(iteration, objective)

        return listen

    def _check_parameters(self) -> None:
        """One clear message for a parameter that cannot be; scikit-learn checks parameters at fit, and so do we."""

        def demand(name: str, sound: bool, wanted: str) -> None:
            if not sound:
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

        demand("C", _is_real(self.C) and self.C > 0, "a positive number (inf for no penalty)")
        demand("tol", _is_real(self.tol) and 0 < self.tol < np.inf, "a positive number")
        demand("label_smoothing", _is_real(self.label_smoothing) and 0 <= self.label_smoothing <= 1, "in [0, 1]")
        demand("max_iter", _is_integer(self.max_iter) and self.max_iter >= 1, "an integer of at least 1")
        demand(
            "n_threads", self.n_threads is None or (_is_integer(self.n_threads) and self.n_threads >= 1), "at least 1"
        )
        balanced = isinstance(self.class_weight, str) and self.class_weight == "balanced"
        sound = self.class_weight is None or balanced or isinstance(self.class_weight, dict)
        demand("class_weight", sound, 'None, a dict of label and weight, or "balanced"')


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _row_weights(sample_weight: ArrayLike | None, n_rows: int) -> NDArray[np.float64] | None:
    """The row weights as float64, or an error that names the first bad one."""
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
    if not weights.any():
        raise ValueError("sample_weight is zero in every row: at least one weight must be positive")
    return weights


def _class_weights(
    given: dict[Any, float] | str,
    classes: NDArray[Any],
    labels: NDArray[np.intp],
    weights: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """One weight a class; "balanced" weighs rows as their repetition would."""
    if not isinstance(given, dict):
        totals = np.bincount(labels, weights=weights, minlength=len(classes)).astype(np.float64)
        return np.asarray(totals.sum() / (len(classes) * totals))
    known = classes.tolist()
    unknown = [label for label in given if label not in known]
    if unknown:
        raise ValueError(f"class_weight names {unknown[0]!r}, which is not a class in y: {known}")
    of_class = np.array([given.get(label, 1.0) for label in known], dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(of_class) & (of_class >= 0)))
    if bad.size:
        raise ValueError(f"class_weight of {known[bad[0]]!r} is {of_class[bad[0]]}: it must be finite and not negative")
    return of_class
