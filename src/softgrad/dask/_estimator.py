"""SoftmaxRegression on Dask's collections."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from softgrad import regression
from softgrad._core.blas import single_threaded_blas
from softgrad.dask._collections import is_collection, parts_of
from softgrad.dask._graph import let_go
from softgrad.dask._predict import lazily, scored
from softgrad.dask._read import read_blocks
from softgrad.regression._fit import check_options, solve
from softgrad.regression._inputs import ProblemVariables
from softgrad.sklearn import SoftmaxRegression as _InMemory
from softgrad.sklearn._callbacks import STACK_LEVEL, Monitor, with_callbacks
from softgrad.sklearn._fitting import keep_result, warm_start, warn_unless_converged
from softgrad.sklearn._parameters import check_parameters
from softgrad.sklearn._targets import column_names

__all__ = ["SoftmaxRegression"]


class SoftmaxRegression(_InMemory):
    """Multinomial logistic regression with an L2 penalty on Dask arrays and DataFrames, to a certified distance.

    :class:`softgrad.sklearn.SoftmaxRegression` with its rows among Dask's workers: the same objective, solver,
    certificate and attributes. Each pass is one task a block and a tree of sums, in the order of the blocks, so that
    the bits of the result do not depend on the number of workers, or on one of them being lost.

    Parameters
    ----------
    C, fit_intercept, class_weight, label_smoothing, standardize, solver, tol, max_iter
        As of :class:`softgrad.sklearn.SoftmaxRegression`.
    warm_start, random_state, verbose
        As of :class:`softgrad.sklearn.SoftmaxRegression`.
    max_memory : int, default=None
        Bytes, in all workers together, for arrays of the shape (n_rows, n_classes) that are kept beside the blocks; by
        default two, and a third if it takes no more than half of X, or 32 MB. What is not kept is computed again.
    n_threads : int, default=None
        Threads of a task; None is one, since Dask runs as many tasks at once as its workers have threads.
    cache : bool, default=True
        Keep the blocks in the workers' memory from one pass to the next. False: read them again in every pass, from
        Parquet for example, for data that do not fit there.

    Attributes
    ----------
    classes_, coef_, intercept_, n_iter_, n_passes_, objective_, gap_, history_, n_features_in_, feature_names_in_
        As of :class:`softgrad.sklearn.SoftmaxRegression`.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_iris
    >>> from softgrad.dask import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegression().fit(da.from_array(X, chunks=(50, 4)), da.from_array(y, chunks=50))
    >>> model.gap_ <= 1e-6, round(model.score(X, y), 2)
    (True, 0.97)
    """

    __module__ = "softgrad.dask"

    def __init__(
        self,
        *,
        C: float = 1.0,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        label_smoothing: float = 0.0,
        standardize: bool = False,
        solver: str = "auto",
        tol: float = 1e-6,
        max_iter: int = 1000,
        max_memory: int | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        n_threads: int | None = None,
        cache: bool = True,
    ) -> None:
        super().__init__(
            C=C,
            fit_intercept=fit_intercept,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
            standardize=standardize,
            solver=solver,
            tol=tol,
            max_iter=max_iter,
            max_memory=max_memory,
            warm_start=warm_start,
            random_state=random_state,
            verbose=verbose,
            n_threads=n_threads,
        )
        self.cache = cache

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        offset: Any = None,
        *,
        classes: ArrayLike | None = None,
        callback: Callable[[regression.Progress], Any] | None = None,
    ) -> Self:
        """Fit the model with the current Dask client, or with the scheduler that is set where there is none.

        Parameters
        ----------
        X : Dask array or DataFrame (n_rows, n_features)
            Blocks of rows, dense or CSR; float32 and float64 are kept as they are. Several columns of blocks are made
            one.
        y : Dask array, Series or DataFrame; array; or str
            Labels of any kind (n_rows,), or soft labels (n_rows, n_classes) of floats. The name of a column of X: its
            other columns are then the features. What is not Dask's is cut as X is.
        sample_weight : Dask array or Series, array or str, optional
            Row weights, not negative. A row of weight 0 adds its label to ``classes_`` and nothing
            to the fit.
        offset : Dask array (n_rows, n_classes), or (n_rows,) for two classes, array or str, optional
            Added to the logits, with no weight to be fitted.
        classes : array (n_classes,), optional
            What the columns of soft labels stand for.
        callback : callable (Progress), optional
            Called after each iteration with a :class:`softgrad.regression.Progress`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters and data; the message names the block, the row and the value.
        TypeError
            For an X that is not Dask's.
        KeyboardInterrupt
            On Ctrl-C. The attributes are then set to what had been reached, and ``warm_start`` goes on from there.

        Warns
        -----
        ConvergenceWarning
            When the fit ends before ``tol`` is reached; it says how far it is.
        """
        check_parameters(self)
        if not isinstance(self.cache, bool):
            raise ValueError(f"cache must be True or False, not {self.cache!r}")
        check_options(self.C, self.solver, self.tol, self.max_iter)
        if y is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        parts = parts_of(X, y, sample_weight, offset)
        read = read_blocks(self, parts, None if isinstance(y, str) else column_names(y), classes)
        data: Any = SimpleNamespace(x=read.problem.design, targets=read.targets)
        scale = read.support.c_scale
        monitor = Monitor(self, _collections(X, y, sample_weight), callback, self.max_iter, scale=scale)
        self._remember(read.problem.design.n_features, parts.columns.features)
        inputs = ProblemVariables(read.problem, shift=read.problem.design.shift, scale=read.problem.design.scale)
        try:
            start = warm_start(self, read.targets.classes)
            start = None if start is None else read.support.restrict(*start)
            with single_threaded_blas():
                result = solve(
                    inputs, self.C * scale, solver=self.solver, tol=self.tol, max_iter=self.max_iter,
                    start=inputs.inner(start), callback=monitor, coef_dtype=read.problem.design.dtype,
                )  # fmt: skip
        except regression.FitInterrupted as interruption:
            result = interruption.result
            if not monitor.stopped:
                keep_result(self, data, read.support, result)
                raise
        finally:
            let_go(read.kept)
            read.problem.release()
        keep_result(self, data, read.support, result)
        monitor.end()
        if not monitor.stopped:
            warn_unless_converged(result, self.separable_, STACK_LEVEL + 1)
        return self

    def _remember(self, n_features: int, names: list[Any] | None) -> None:
        self.n_features_in_ = n_features
        self._columns = names
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def decision_function(self, X: Any, offset: Any = None) -> Any:
        """Logits: (n_rows, n_classes), or (n_rows,) for two classes, then of the second against the first.

        Parameters
        ----------
        X : Dask array or DataFrame, or what :class:`softgrad.sklearn.SoftmaxRegression` takes
            The rows.
        offset : array (n_rows, n_classes), or (n_rows,) for two classes, optional
            Added to the logits, as in ``fit``.

        Returns
        -------
        Dask array, not yet computed, of a Dask collection; else a NumPy array
        """
        return self._answer("decision_function", X, offset)

    def predict(self, X: Any, offset: Any = None) -> Any:
        """The most probable class of each row.

        Parameters
        ----------
        X, offset
            As of ``decision_function``.

        Returns
        -------
        Dask array (n_rows,), not yet computed, of a Dask collection; else a NumPy array
        """
        return self._answer("predict", X, offset)

    def predict_proba(self, X: Any, offset: Any = None) -> Any:
        """The probability of each class, in the order of ``classes_``.

        Parameters
        ----------
        X, offset
            As of ``decision_function``.

        Returns
        -------
        Dask array (n_rows, n_classes), not yet computed, of a Dask collection; else a NumPy array
        """
        return self._answer("predict_proba", X, offset)

    def predict_log_proba(self, X: Any, offset: Any = None) -> Any:
        """The log-probability of each class, finite where the probability itself is 0 in floating point.

        Parameters
        ----------
        X, offset
            As of ``decision_function``.

        Returns
        -------
        Dask array (n_rows, n_classes), not yet computed, of a Dask collection; else a NumPy array
        """
        return self._answer("predict_log_proba", X, offset)

    def score(self, X: Any, y: Any, sample_weight: Any = None, offset: Any = None) -> float:
        """Accuracy for labels; for soft labels the log-loss, negated: larger is better.

        Parameters
        ----------
        X, offset
            As of ``decision_function``.
        y : labels or soft labels, as in ``fit``
            What is true.
        sample_weight : array (n_rows,), optional
            Row weights, not negative.

        Returns
        -------
        float
        """
        if not is_collection(X):
            return super().score(X, y, sample_weight, offset)
        return scored(self, X, y, sample_weight, offset)

    def _answer(self, method: str, X: Any, offset: Any) -> Any:
        if not is_collection(X):
            return getattr(_InMemory, method)(self, X, offset)
        return lazily(self, method, X, offset)

    def _resting(self) -> _InMemory:
        """The model in memory, as it is now, for tasks."""
        plain = _InMemory(n_threads=self.n_threads or 1)
        for name in ("classes_", "coef_", "intercept_", "n_features_in_"):
            if hasattr(self, name):
                setattr(plain, name, copy.copy(getattr(self, name)))
        plain._columns = None
        return plain


def _collections(X: Any, y: Any, sample_weight: Any) -> Any:
    """The collections in the place of the data that scikit-learn's callbacks are given."""
    targets = SimpleNamespace(take=lambda _: y)
    return SimpleNamespace(x=X, targets=targets, sample_weight=sample_weight, in_memory=True)
