"""LogisticRegression: scikit-learn's signature on softgrad's fit."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from softgrad.sklearn._callbacks import with_callbacks
from softgrad.sklearn._classifier import SoftmaxClassifier
from softgrad.sklearn._logistic_options import (
    RULES,
    check_binary,
    gap_tolerance,
    join_intercept,
    part_intercept,
    penalty_of,
    warn_of_jobs,
)
from softgrad.sklearn._parameters import check_parameters

__all__ = ["LogisticClassifier", "LogisticRegression"]


class LogisticClassifier(SoftmaxClassifier):
    """Methods that both logistic regressions of scikit-learn have beside their predictions."""

    n_threads: int | None = None
    max_memory: int | None = None
    solver: str
    coef_: Any

    def set_callbacks(self, *callbacks: Any) -> Self:
        """Set callbacks of scikit-learn; the solver "liblinear" calls them at the beginning and the end only.

        Parameters
        ----------
        *callbacks : callbacks
            Instances that follow scikit-learn's protocol.

        Returns
        -------
        self
        """
        if self.solver == "liblinear":
            warnings.warn(
                f"Callbacks are only supported in {type(self).__name__} for solver='lbfgs' and its like: "
                "solver='liblinear' does not call them in its iterations",
                UserWarning,
                stacklevel=2,
            )
        super().set_callbacks(*callbacks)
        return self

    def sparsify(self) -> Self:
        """Make ``coef_`` a CSR matrix.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        self.coef_ = sparse.csr_matrix(self.coef_)
        return self

    def densify(self) -> Self:
        """Make ``coef_`` an array again.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        if hasattr(self.coef_, "toarray"):
            self.coef_ = self.coef_.toarray()
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = self.solver != "liblinear"
        return tags


class LogisticRegression(LogisticClassifier):
    """Logistic regression with the parameters and attributes of :class:`sklearn.linear_model.LogisticRegression`.

    Minimises the objective of scikit-learn, ``F = C Σ_i a_i ℓ_i + ½ ‖W‖²``, with the solver of
    :class:`SoftmaxRegression`, which is the class with softgrad's own options. What differs from scikit-learn is in
    :doc:`/how-to/from-logistic-regression`.

    Parameters
    ----------
    penalty : {"l2", None}, default="deprecated"
        Deprecated by scikit-learn 1.8: ``l1_ratio`` and ``C`` say it.
    C : float, default=1.0
        Weight of the data against the penalty; ``float("inf")`` for no penalty.
    l1_ratio : float, default=0.0
        0, the L2 penalty; others are refused.
    dual : bool, default=False
        True goes with solver="liblinear"; the optimum is the same.
    tol : float, default=1e-4
        The fit is done when the relative gap ``gap_`` is at most ``tol²``: coefficients are then within
        ``tol · sqrt(2 F)`` of the optimum.
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    intercept_scaling : float, default=1
        For solver="liblinear", which penalises the intercept divided by this number.
    class_weight : dict or "balanced", default=None
        As in :class:`SoftmaxRegression`.
    random_state : int, RandomState instance or None, default=None
        Nothing in the fit is random: the result does not depend on it.
    solver : {"lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga"}, default="lbfgs"
        All but "liblinear" name the same optimum, and the same fit. "liblinear" takes two classes, and penalises the
        intercept.
    max_iter : int, default=100
        Most outer iterations.
    verbose : int, default=0
        Print a line for each iteration.
    warm_start : bool, default=False
        Start from the last fit; "liblinear" does not.
    n_jobs : int, default=None
        Without effect, deprecated by scikit-learn 1.8.

    Attributes
    ----------
    classes_ : array (n_classes,)
        The labels, sorted.
    coef_ : array or CSR matrix (1, n_features) for two classes, else (n_classes, n_features)
        W, in the type of X; CSR after :meth:`sparsify`.
    intercept_ : array (1,) or (n_classes,)
        Zeros without an intercept.
    n_iter_ : array (1,)
        Outer iterations made.
    n_features_in_, feature_names_in_
        As in scikit-learn.
    gap_, objective_, n_passes_, history_
        As in :class:`SoftmaxRegression`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softgrad.sklearn import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = LogisticRegression().fit(X, y)
    >>> round(model.score(X, y), 2), model.gap_ <= 1e-8
    (0.97, True)
    """

    __module__ = "softgrad.sklearn"

    def __init__(
        self,
        penalty: Any = "deprecated",
        *,
        C: float = 1.0,
        l1_ratio: float | None = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: dict[Any, float] | str | None = None,
        random_state: Any = None,
        solver: str = "lbfgs",
        max_iter: int = 100,
        verbose: int = 0,
        warm_start: bool = False,
        n_jobs: int | None = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_jobs = n_jobs

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array or sparse matrix (n_rows, n_features), or a source of blocks
            The rows, as in :meth:`SoftmaxRegression.fit`.
        y : array (n_rows,)
            Labels of any kind.
        sample_weight : array (n_rows,), optional
            Row weights, not negative.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters and data, and for what softgrad does not fit; the message names it.

        Warns
        -----
        ConvergenceWarning
            When the fit ends before ``tol`` is reached.
        FutureWarning
            For parameters that scikit-learn has deprecated.
        """
        check_parameters(self, RULES)
        C = self._penalty_weight()
        warn_of_jobs(self.n_jobs)
        from softgrad.sklearn._fit_data import read_data
        from softgrad.sklearn._fitting import SolverOptions, fit_and_keep, warm_start

        data = read_data(self, X, y, sample_weight, soft=False)
        options = SolverOptions(C, gap_tolerance(self.tol), self.max_iter, self.fit_intercept)
        if self.solver != "liblinear":
            fit_and_keep(self, data, options, warm_start(self, data.targets.classes), None)
            return self
        check_binary(self.solver, data.targets.classes)
        options = SolverOptions(C, gap_tolerance(self.tol), self.max_iter, fit_intercept=False)
        joined = join_intercept(data, self.intercept_scaling) if self.fit_intercept else data
        fit_and_keep(self, joined, options, None, None, in_iterations=False)
        if self.fit_intercept:
            self.coef_, self.intercept_ = part_intercept(self.coef_, self.intercept_scaling)
        return self

    def _penalty_weight(self) -> float:
        """C of the problem, infinite without a penalty."""
        if self.l1_ratio is None and self.penalty == "deprecated":
            warnings.warn(
                "'l1_ratio=None' was deprecated in version 1.8 of scikit-learn: set 0 <= l1_ratio <= 1",
                FutureWarning,
                stacklevel=4,
            )
        if self.penalty == "elasticnet" and self.l1_ratio is None:
            raise ValueError("l1_ratio must be specified when penalty is elasticnet.")
        unpenalised = np.isinf(self.C)
        penalty_of("l1_ratio", self.penalty, self.l1_ratio, self.solver, dual=self.dual, unpenalised=unpenalised)
        if self.penalty in ("l2", None) and self.l1_ratio:
            warnings.warn(
                f"Inconsistent values: penalty={self.penalty} with l1_ratio={self.l1_ratio}; "
                f"l1_ratio parameter is only used when penalty is 'elasticnet'. Got (penalty={self.penalty})",
                UserWarning,
                stacklevel=4,
            )
        if self.penalty is not None:
            return float(self.C)
        if self.C != 1.0:
            warnings.warn("Setting penalty=None will ignore the C and l1_ratio parameters", UserWarning, stacklevel=4)
        return float("inf")
