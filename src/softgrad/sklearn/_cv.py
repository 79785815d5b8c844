"""SoftmaxRegressionCV: the whole path over C, and the C whose held-out rows score best."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from softgrad.sklearn._callbacks import STACK_LEVEL, with_callbacks
from softgrad.sklearn._classifier import SoftmaxClassifier
from softgrad.sklearn._folds import make_folds
from softgrad.sklearn._parameters import check_parameters, check_routed, grid
from softgrad.sklearn._routing import routed, router_of, score_by
from softgrad.sklearn._scoring import fold_score

if TYPE_CHECKING:
    from softgrad import regression
    from softgrad.sklearn._fit_data import FitData
    from softgrad.sklearn._path_fitting import FoldPaths

__all__ = ["SoftmaxRegressionCV"]


class SoftmaxRegressionCV(SoftmaxClassifier):
    """Softmax regression with C chosen by cross-validation, all values of C and all folds fitted as one problem.

    The folds share the preconditioner of the whole, and each value of C starts from the one before: a sweep costs a
    fraction of its single fits. See :class:`SoftmaxRegression` for the objective.

    Parameters
    ----------
    Cs : int or sequence of float, default=10
        Values of C; an integer is a number of values on a logarithmic scale from 1e-4 to 1e4.
    cv : int, splitter or iterable of (train, test), default=None
        The folds: their number (5 if None) for stratified folds in the order of the rows, soft labels by their
        largest; or any splitter of scikit-learn, or pairs of row numbers.
    scoring : str or callable, default=None
        What the chosen C maximises: the name of a scorer of scikit-learn, or a callable (estimator, X, y). The
        estimator it gets answers for the held-out rows only. None: accuracy, for soft labels "neg_log_loss".
    refit : bool, default=True
        True: the result is the fit of all rows at the C with the best mean score, the smallest of equals. False: as in
        scikit-learn, ``C_``, ``coef_`` and ``intercept_`` are means over the folds, each at its own best C.
    early_stop : int, default=None
        End the path when the mean score has not improved for this many values of C; the rest have NaN scores.
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    class_weight : dict or "balanced", default=None
        As in :class:`SoftmaxRegression`; "balanced" by the whole data, in every fold.
    label_smoothing : float, default=0.0
        As in :class:`SoftmaxRegression`; scores are of the labels as they are.
    standardize : bool, default=False
        Penalise each coefficient in the unit of its feature's standard deviation s_j, weighted by rows:
        ½ Σ (s_j W_kj)². That is a fit after :class:`sklearn.preprocessing.StandardScaler`, with ``coef_`` for the
        features as they are. Sparse X is not made dense.
    solver : str, default="auto"
        As in :class:`SoftmaxRegression`.
    tol : float, default=1e-6
        As in :class:`SoftmaxRegression`, for each C.
    max_iter : int, default=1000
        Most outer iterations, for each C.
    max_memory : int, default=None
        As in :class:`SoftmaxRegression`.
    random_state : int, RandomState instance or None, default=None
        Nothing in the fit is random: the result does not depend on it.
    verbose : int, default=0
        Print a line for each iteration.
    n_threads : int, default=None
        As in :class:`SoftmaxRegression`.

    Attributes
    ----------
    classes_, coef_, intercept_, n_features_in_, feature_names_in_
        As in :class:`SoftmaxRegression`.
    Cs_ : array (n_Cs,)
        The values of C, ascending.
    C_ : float
        The chosen one.
    scores_ : array (n_folds, n_Cs)
        The score of the held-out rows.
    mean_scores_ : array (n_Cs,)
        Their mean over the folds.
    coefs_paths_ : array (n_folds, n_Cs, 1 or n_classes, n_features + 1)
        Coefficients of the folds, the intercept last (and not there without one).
    path_coefs_, path_intercepts_ : arrays (n_Cs, 1 or n_classes, n_features) and (n_Cs, 1 or n_classes)
        The fits of all rows.
    path_objectives_, path_gaps_ : arrays (n_Cs,)
        Their objective, and the certified bound of its relative distance from the optimum.
    n_iter_ : array (n_Cs,)
        Their outer iterations.
    n_passes_ : float
        Passes over X that everything took, those over a fold in proportion to its rows.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softgrad.sklearn import SoftmaxRegressionCV
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegressionCV(Cs=[0.01, 1, 100], scoring="neg_log_loss").fit(X, y)
    >>> model.C_, model.scores_.shape
    (100.0, (5, 3))
    """

    __module__ = "softgrad.sklearn"  # its public name, also in files that hold it

    def __init__(
        self,
        *,
        Cs: Any = 10,
        cv: Any = None,
        scoring: Any = None,
        refit: bool = True,
        early_stop: int | None = None,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        label_smoothing: float = 0.0,
        standardize: bool = False,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 1000,
        max_memory: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
        n_threads: int | None = None,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.early_stop = early_stop
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.standardize = standardize
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.max_memory = max_memory
        self.random_state = random_state
        self.verbose = verbose
        self.n_threads = n_threads

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: ArrayLike | str | None = None,
        offset: ArrayLike | str | None = None,
        *,
        groups: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        callback: Callable[[regression.Progress], Any] | None = None,
        **params: Any,
    ) -> Self:
        """Fit all folds and all rows at every C, and choose.

        Parameters
        ----------
        X, y, sample_weight, offset, classes, callback
            As in :meth:`SoftmaxRegression.fit`. Scores are weighted by ``sample_weight``, too.
        groups : array (n_rows,), optional
            Passed to the splitter, for ``GroupKFold`` and its like.
        **params
            More metadata for the splitter and the scorer, with scikit-learn's metadata routing.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            As :meth:`SoftmaxRegression.fit` does, and for a scorer or splitter that cannot be honoured.

        Warns
        -----
        ConvergenceWarning
            When the fit of some C ends before ``tol`` is reached; it says how far it is.
        """
        check_parameters(self)
        from softgrad.sklearn._fit_data import read_data
        from softgrad.sklearn._fitting import SolverOptions
        from softgrad.sklearn._path_fitting import fit_paths, warn_unless_all_converged

        Cs = grid(self.Cs)
        data = read_data(self, X, y, sample_weight, offset, classes)
        to_splitter, to_scorer = routed(self, self.scoring, data, sample_weight, groups, params)
        folds = make_folds(self.cv, data, to_splitter)
        score = fold_score(self.scoring, data, to_scorer)
        options = SolverOptions(
            np.nan, self.tol, self.max_iter, self.fit_intercept, self.label_smoothing, self.solver, self.max_memory,
            self.n_threads, self.standardize,
        )  # fmt: skip
        paths, monitor = fit_paths(self, data, Cs, folds, score, options, callback=callback, early_stop=self.early_stop)
        self._keep(data, paths)
        monitor.end()
        warn_unless_all_converged(paths, STACK_LEVEL + 1)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None, **params: Any) -> float:
        """The score of ``scoring`` on other rows; without one, accuracy or, for soft labels, the negated log-loss.

        Parameters
        ----------
        X, y, sample_weight, offset
            As in :meth:`SoftmaxRegression.score`; an offset goes with ``scoring=None`` only.
        **params
            More metadata for the scorer, with scikit-learn's metadata routing.

        Returns
        -------
        float
        """
        to_scorer = {} if sample_weight is None else {"sample_weight": sample_weight}
        check_routed(params, "score")
        if self.scoring is None or (self.scoring == "neg_log_loss" and np.ndim(y) == 2):
            return super().score(X, y, sample_weight, offset)
        if offset is not None:
            raise ValueError(f"offset= goes with scoring=None; a scorer, here {self.scoring!r}, does not pass it on")
        return score_by(self, self.scoring, X, y, to_scorer | params)

    def get_metadata_routing(self) -> Any:
        """What is passed on: ``fit`` to the splitter and the scorer, ``score`` to the scorer, as they request it.

        Without ``scoring`` there is no scorer to ask, and ``sample_weight`` weighs the scores.

        Returns
        -------
        MetadataRouter
        """
        return router_of(self, self.scoring)

    def _keep(self, data: FitData, paths: FoldPaths) -> None:
        """Set the path and the choice as fitted attributes."""
        dtype = data.x.dtype
        parts = [paths.fold_coefs, paths.fold_intercepts[..., np.newaxis]][: 1 + self.fit_intercept]
        self.classes_ = data.targets.classes
        self.Cs_ = paths.Cs
        self.scores_ = paths.scores
        self.mean_scores_ = self.scores_.mean(axis=0)
        self.coefs_paths_ = np.concatenate(parts, axis=-1, dtype=dtype)
        self.path_coefs_ = paths.coefs.astype(dtype)
        self.path_intercepts_ = paths.intercepts.astype(dtype)
        self.path_objectives_ = paths.objectives
        self.path_gaps_ = paths.gaps
        self.n_iter_ = paths.n_iters
        self.n_passes_ = paths.n_passes
        if np.isnan(self.mean_scores_).all():
            raise ValueError(f"every score is NaN: scoring={self.scoring!r} has no value for these folds")
        if self.refit:
            best = int(np.nanargmax(self.mean_scores_))
            self.C_ = float(self.Cs_[best])
            self.coef_, self.intercept_ = self.path_coefs_[best], self.path_intercepts_[best]
            return
        best_of_folds = np.nanargmax(self.scores_, axis=1)
        folds = np.arange(len(self.scores_))
        self.C_ = float(self.Cs_[best_of_folds].mean())
        self.coef_ = paths.fold_coefs[folds, best_of_folds].mean(axis=0).astype(dtype)
        self.intercept_ = paths.fold_intercepts[folds, best_of_folds].mean(axis=0).astype(dtype)
