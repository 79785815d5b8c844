"""LogisticRegressionCV: scikit-learn's signature on softgrad's path over C."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metadata_routing import UNUSED

from softgrad._core.threads import resolve_threads
from softgrad.sklearn._callbacks import STACK_LEVEL, with_callbacks
from softgrad.sklearn._folds import make_folds
from softgrad.sklearn._logistic import LogisticClassifier
from softgrad.sklearn._logistic_options import (
    RULES,
    check_binary,
    gap_tolerance,
    join_intercept,
    part_intercept,
    penalty_of,
)
from softgrad.sklearn._parameters import check_parameters, check_routed, is_integer, is_real
from softgrad.sklearn._routing import routed, router_of, score_by
from softgrad.sklearn._scoring import fold_score

if TYPE_CHECKING:
    from softgrad.sklearn._fit_data import FitData
    from softgrad.sklearn._path_fitting import FoldPaths

__all__ = ["LogisticRegressionCV"]


class LogisticRegressionCV(LogisticClassifier):
    """Logistic regression with the parameters and attributes of :class:`sklearn.linear_model.LogisticRegressionCV`.

    All values of C and all folds are fitted as one problem, as in :class:`SoftmaxRegressionCV`, which is the class with
    softgrad's own options. What differs from scikit-learn is in :doc:`/how-to/from-logistic-regression`.

    Parameters
    ----------
    Cs : int or sequence of float, default=10
        Values of C; an integer is a number of values on a logarithmic scale from 1e-4 to 1e4.
    l1_ratios : sequence of float, default="warn"
        Zeros, the L2 penalty; others are refused. The default is None, with scikit-learn's warning that it will be
        ``(0.0,)``.
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    cv : int, splitter or iterable of (train, test), default=None
        The folds: their number (5 if None) for stratified folds, any splitter of scikit-learn, or pairs of row numbers.
    dual : bool, default=False
        As in :class:`LogisticRegression`.
    penalty : "l2", default="deprecated"
        Deprecated by scikit-learn 1.8.
    scoring : str, callable or None, default="warn"
        What the chosen C maximises; None is accuracy, as is the default, with scikit-learn's warning that it will be
        "neg_log_loss".
    solver : {"lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga"}, default="lbfgs"
        As in :class:`LogisticRegression`.
    tol : float, default=1e-4
        As in :class:`LogisticRegression`, for each fit.
    max_iter : int, default=100
        Most outer iterations of each fit.
    class_weight : dict or "balanced", default=None
        As in :class:`SoftmaxRegression`, but every name must be a class; "balanced" by the whole data, in every fold.
    n_jobs : int, default=None
        Threads; -1 for all. None leaves the choice to softgrad.
    verbose : int, default=0
        Print a line for each iteration.
    refit : bool, default=True
        True: the fit of all rows at the C with the best mean score. False: means over the folds, each at its best C.
    intercept_scaling : float, default=1.0
        As in :class:`LogisticRegression`.
    random_state : int, RandomState instance or None, default=None
        Nothing in the fit is random: the result does not depend on it.
    use_legacy_attributes : bool, default="warn"
        Whether ``C_``, ``l1_ratio_``, ``coefs_paths_``, ``scores_`` and ``n_iter_`` repeat themselves for each class,
        as before scikit-learn 1.10. The default is True, with scikit-learn's warning that it will be False.

    Attributes
    ----------
    classes_, coef_, intercept_, n_features_in_, feature_names_in_
        As in :class:`LogisticRegression`.
    Cs_, l1_ratios_ : arrays (n_Cs,) and (n_l1_ratios,)
        The values tried, in their order.
    C_, l1_ratio_ : float, or arrays (1 or n_classes,)
        The chosen ones.
    coefs_paths_ : array (n_folds, n_l1_ratios, n_Cs, 1 or n_classes, n_features + 1), or dict by class
        Coefficients of the folds, the intercept last (and not there without one).
    scores_, n_iter_ : arrays (n_folds, n_l1_ratios, n_Cs); ``scores_`` or dict by class
        Scores of the held-out rows, and iterations of the folds' fits.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from softgrad.sklearn import LogisticRegressionCV
    >>> X, y = load_iris(return_X_y=True)
    >>> options = {"l1_ratios": (0,), "scoring": "neg_log_loss", "use_legacy_attributes": False}
    >>> model = LogisticRegressionCV(Cs=[0.01, 1, 100], **options).fit(X, y)
    >>> model.C_, model.scores_.shape, model.coefs_paths_.shape
    (100.0, (5, 1, 3), (5, 1, 3, 3, 5))
    """

    __module__ = "softgrad.sklearn"
    __metadata_request__score: ClassVar[dict[str, Any]] = {"sample_weight": UNUSED}  # the scorer's, not the estimator's

    def __init__(
        self,
        *,
        Cs: Any = 10,
        l1_ratios: Any = "warn",
        fit_intercept: bool = True,
        cv: Any = None,
        dual: bool = False,
        penalty: Any = "deprecated",
        scoring: Any = "warn",
        solver: str = "lbfgs",
        tol: float = 1e-4,
        max_iter: int = 100,
        class_weight: dict[Any, float] | str | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        refit: bool = True,
        intercept_scaling: float = 1.0,
        random_state: Any = None,
        use_legacy_attributes: Any = "warn",
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.dual = dual
        self.penalty = penalty
        self.scoring = scoring
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.refit = refit
        self.intercept_scaling = intercept_scaling
        self.random_state = random_state
        self.use_legacy_attributes = use_legacy_attributes

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None, **params: Any) -> Self:
        """Fit all folds and all rows at every C, and choose.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`LogisticRegression.fit`. Scores are weighted by ``sample_weight``, too.
        **params
            Metadata for the splitter and the scorer, with scikit-learn's metadata routing.

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
            When the fit of some C ends before ``tol`` is reached.
        FutureWarning
            For defaults and parameters that scikit-learn changes.
        """
        check_routed(params, "fit")
        check_parameters(self, RULES)
        Cs = _values(self.Cs)
        ratios, legacy = self._choices()
        from softgrad.sklearn._fit_data import read_data
        from softgrad.sklearn._fitting import SolverOptions
        from softgrad.sklearn._path_fitting import fit_paths, warn_unless_all_converged

        data = read_data(self, X, y, sample_weight, soft=False)
        self._check_class_weight(data.targets.classes)
        to_splitter, to_scorer = routed(self, self._scorer_name(), data, sample_weight, None, params)
        folds = make_folds(self.cv, data, to_splitter, every_row=True)
        scoring = None if isinstance(self.scoring, str) and self.scoring == "warn" else self.scoring
        score = fold_score(scoring, data, to_scorer)
        joined = self.solver == "liblinear"
        check_binary(self.solver, data.targets.classes)
        joined = joined and self.fit_intercept
        options = SolverOptions(
            np.nan,
            gap_tolerance(self.tol),
            self.max_iter,
            fit_intercept=self.fit_intercept and not joined,
            n_threads=self._threads(),
        )
        problem = join_intercept(data, self.intercept_scaling) if joined else data
        paths, monitor = fit_paths(self, problem, np.sort(Cs), folds, score, options)
        self._keep(data, paths, Cs, ratios, legacy=legacy)
        monitor.end()
        warn_unless_all_converged(paths, STACK_LEVEL + 1)
        return self

    def score(  # type: ignore[override]
        self, X: Any, y: Any, sample_weight: ArrayLike | None = None, **score_params: Any
    ) -> float:
        """The score of ``scoring`` on other rows: accuracy without one.

        Parameters
        ----------
        X, y, sample_weight
            As in scikit-learn.
        **score_params
            Metadata for the scorer, with scikit-learn's metadata routing.

        Returns
        -------
        float
        """
        check_routed(score_params, "score")
        given = {} if sample_weight is None else {"sample_weight": sample_weight}
        return score_by(self, self._scorer_name(), X, y, given | score_params)

    def get_metadata_routing(self) -> Any:
        """What is passed on: ``fit`` to the splitter and the scorer, ``score`` to the scorer, as they request it.

        Returns
        -------
        MetadataRouter
        """
        return router_of(self, self._scorer_name())

    def _scorer_name(self) -> Any:
        return "accuracy" if self.scoring is None or self._is_default("scoring") else self.scoring

    def _is_default(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, str) and value == "warn"

    def _choices(self) -> tuple[NDArray[Any] | None, bool]:
        """``l1_ratios`` as an array, and whether attributes repeat for each class; warns of defaults that change."""
        if self._is_default("l1_ratios"):
            _future("The default value for l1_ratios will change from None to (0.0,) in version 1.10 of scikit-learn")
        given = None if self._is_default("l1_ratios") else self.l1_ratios
        if self.penalty == "deprecated" and self.l1_ratios is None:
            _future("'l1_ratios=None' was deprecated in version 1.8 of scikit-learn: set l1_ratios=(0,)")
        if given is not None and not (
            isinstance(given, Iterable) and len(list(given)) and all(is_real(v) and 0 <= v <= 1 for v in given)
        ):
            raise ValueError(f"l1_ratios must be an array-like of numbers between 0 and 1; got (l1_ratios={given!r})")
        penalty_of("l1_ratios", self.penalty, given, self.solver, dual=self.dual, unpenalised=False)
        if given is not None and self.penalty != "deprecated":
            warnings.warn(
                f"l1_ratios parameter is only used when penalty is 'elasticnet'. Got (penalty={self.penalty})",
                UserWarning,
                stacklevel=4,
            )
        if self._is_default("scoring"):
            _future(
                "The default value of the parameter 'scoring' will change from None, i.e. accuracy, to 'neg_log_loss' "
                "in version 1.11 of scikit-learn"
            )
        if self._is_default("use_legacy_attributes"):
            _future(
                f"The fitted attributes of {type(self).__name__} will be simplified in scikit-learn 1.10. "
                "The default value of use_legacy_attributes will change from True to False"
            )
        legacy = self._is_default("use_legacy_attributes") or bool(self.use_legacy_attributes)
        return None if given is None else np.asarray(list(given)), legacy

    def _check_class_weight(self, classes: NDArray[Any]) -> None:
        if isinstance(self.class_weight, dict):
            unknown = [label for label in self.class_weight if label not in classes.tolist()]
            if unknown:
                raise ValueError(
                    f"The given class_weight dict must have the class labels as keys, but {unknown[0]!r} is none of "
                    f"{classes.tolist()}"
                )

    def _threads(self) -> int | None:
        if self.n_jobs is None or self.n_jobs > 0:
            return self.n_jobs
        return max(1, resolve_threads(None) + 1 + self.n_jobs)

    def _keep(
        self, data: FitData, paths: FoldPaths, Cs: NDArray[np.float64], ratios: NDArray[Any] | None, *, legacy: bool
    ) -> None:
        """Set the path and the choice as fitted attributes, in the order of ``Cs``."""
        order = np.searchsorted(paths.Cs, Cs)
        coefs, intercepts = paths.coefs[order], paths.intercepts[order]
        fold_coefs, fold_intercepts = paths.fold_coefs[:, order], paths.fold_intercepts[:, order]
        if self.solver == "liblinear" and self.fit_intercept:
            coefs, intercepts = part_intercept(coefs, self.intercept_scaling)
            fold_coefs, fold_intercepts = part_intercept(fold_coefs, self.intercept_scaling)
        scores, folds = paths.scores[:, order], np.arange(len(paths.scores))
        self.classes_ = data.targets.classes
        self.Cs_ = Cs
        if self.refit:
            best: Any = int(np.argmax(scores.sum(axis=0)))
            coef, intercept, C = coefs[best], intercepts[best], Cs[best]
        else:
            best = np.argmax(scores, axis=1)
            coef, intercept = fold_coefs[folds, best].mean(axis=0), fold_intercepts[folds, best].mean(axis=0)
            C = Cs[best].mean()
        self.coef_, self.intercept_ = coef.astype(data.x.dtype), intercept.astype(data.x.dtype)
        parts = [fold_coefs, fold_intercepts[..., np.newaxis]][: 1 + self.fit_intercept]
        self._arrange(np.concatenate(parts, axis=-1), scores, paths.fold_n_iters[:, order], C, ratios, legacy=legacy)

    def _arrange(
        self, dofs: Any, scores: Any, n_iter: Any, C: float, ratios: NDArray[Any] | None, *, legacy: bool
    ) -> None:
        """Set attributes in scikit-learn's shapes; every ratio is the same penalty, and has the same results."""
        n_ratios = 1 if ratios is None else len(ratios)
        self.l1_ratios_: Any = np.array([None]) if ratios is None else ratios
        if not legacy:
            found: list[Any] = [np.repeat(a[:, np.newaxis], n_ratios, axis=1) for a in (dofs, scores, n_iter)]
            self._set(float(C), 0.0, *found)
            return
        ratio = None if ratios is None and self.refit else 0.0
        names = self.classes_[1:] if len(self.classes_) == 2 else self.classes_
        if ratios is not None:
            dofs, scores, n_iter = (np.repeat(a[:, :, np.newaxis], n_ratios, axis=2) for a in (dofs, scores, n_iter))
        paths = {name: dofs[..., number, :] for number, name in enumerate(names)}
        alike = {name: scores.copy() for name in names}
        self._set(np.tile([float(C)], len(names)), np.tile([ratio], len(names)), paths, alike, n_iter[np.newaxis])

    def _set(self, C: Any, ratio: Any, paths: Any, scores: Any, n_iter: Any) -> None:
        self.C_, self.l1_ratio_, self.coefs_paths_, self.scores_, self.n_iter_ = C, ratio, paths, scores, n_iter


def _values(Cs: Any) -> NDArray[np.float64]:
    """Values of C in the order given."""
    if is_integer(Cs) and Cs >= 1:
        return np.logspace(-4, 4, int(Cs))
    values = np.asarray(Cs, dtype=np.float64) if isinstance(Cs, Iterable) and not isinstance(Cs, str) else None
    if values is None or values.ndim != 1 or not values.size or not (values > 0).all():
        raise ValueError(f"Cs must be a positive number of values, or positive values, not {Cs!r}")
    return values


def _future(message: str) -> None:
    warnings.warn(message, FutureWarning, stacklevel=5)
