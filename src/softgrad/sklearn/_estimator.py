"""SoftmaxRegression: one fit at one C."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import ArrayLike

from softgrad.sklearn._callbacks import with_callbacks
from softgrad.sklearn._classifier import SoftmaxClassifier
from softgrad.sklearn._parameters import check_parameters

if TYPE_CHECKING:
    from softgrad import regression

__all__ = ["SoftmaxRegression"]


class SoftmaxRegression(SoftmaxClassifier):
    """Multinomial logistic regression with an L2 penalty, to a certified distance from the optimum.

    Minimises ``F = C Σ_i a_i ℓ_i + ½ ‖W‖²``, the objective of :class:`sklearn.linear_model.LogisticRegression`, so
    that ``C`` means what it means there. The intercept is not penalised. Two classes have one weight vector. With
    ``y'_i = (1 − label_smoothing) y_i + label_smoothing / n_classes`` and the class weights w, the loss of a row is
    ``ℓ_i = −Σ_k w_k y'_ik log p_ik``.

    Parameters
    ----------
    C : float, default=1.0
        Weight of the data against the penalty; ``float("inf")`` for no penalty.
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    class_weight : dict or "balanced", default=None
        w: weights of the classes, 1 for a class that the dict does not name; classes that y lacks are
        ignored. "balanced": inversely proportional to the weight of each class in the data,
        ``Σ_k t_k / (n_classes · t_k)`` with ``t_k = Σ_i a_i y_ik``.
    label_smoothing : float, default=0.0
        ε in [0, 1]: the part of every target that is spread evenly over all classes.
    standardize : bool, default=False
        Penalise each coefficient in the unit of its feature's standard deviation s_j, weighted by rows:
        ½ Σ (s_j W_kj)². That is a fit after :class:`sklearn.preprocessing.StandardScaler`, with ``coef_`` for the
        features as they are. Sparse X is not made dense.
    solver : str, default="auto"
        The solver of :func:`softgrad.regression.fit`; "auto" chooses by the shape of the data.
    tol : float, default=1e-6
        The fit is done when ``gap_``, an upper bound of (F − F*) / F*, is at most this.
    max_iter : int, default=1000
        Most outer iterations.
    max_memory : int, default=None
        Bytes of working memory beside X and the result; None leaves the choice to the solver.
    warm_start : bool, default=False
        Start from the last fit, also from an interrupted one. The classes and features must then be the same.
    random_state : int, RandomState instance or None, default=None
        Nothing in the fit is random: the result does not depend on it. It is here for tools that set it.
    verbose : int, default=0
        Print a line for each iteration.
    n_threads : int, default=None
        Threads to use, with the same result bits for any number; None leaves the choice to softgrad.

    Attributes
    ----------
    classes_ : array (n_classes,)
        The labels, sorted; for soft labels the names of the columns, in order. A class whose rows all have weight 0 has
        probability 0: coefficients 0 and intercept -700.
    coef_ : array (1, n_features) for two classes, else (n_classes, n_features)
        W, in the type of X. Of two classes, for the logit of the second against the first.
    intercept_ : array (1,) or (n_classes,)
        Zeros without an intercept.
    n_iter_ : array (1,)
        Outer iterations made.
    n_passes_ : float
        Passes over X that they took: one is a product with X and one with its transpose.
    objective_ : float
        F at the result (Σ_i a_i ℓ_i when C is inf).
    gap_ : float
        (F − F*) / F* of this model, in the type of its coefficients, is at most this: certified by a point of the dual
        problem or by the Newton decrement. inf if neither gives a bound; NaN when C is inf and the classes are
        separable, or the Hessian, with more than 1500 parameters, is too large for the proof.
    separable_ : softgrad.regression.Separation or None
        When C is inf, a proof that the classes are separable and the fit has no optimum: a direction along which no
        row loses, the rows and labels that gain. None where there is an optimum, or no proof was found.
    history_ : structured array (n_iter,)
        One row an iteration: iteration, objective, gap, passes, seconds, step. ``pandas.DataFrame(model.history_)``
        makes a table of it.
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
    >>> model.gap_ <= 1e-6
    True

    Soft labels are floats, a column for each class; here half of every label is taken away and spread evenly:

    >>> import numpy as np
    >>> soft = 0.5 * np.eye(3)[y] + 0.5 / 3
    >>> model = SoftmaxRegression().fit(X, soft, classes=["setosa", "versicolor", "virginica"])
    >>> model.predict(X[:1]).tolist()
    ['setosa']
    """

    __module__ = "softgrad.sklearn"  # its public name, also in files that hold it

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
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.standardize = standardize
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.max_memory = max_memory
        self.warm_start = warm_start
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
        classes: ArrayLike | None = None,
        callback: Callable[[regression.Progress], Any] | None = None,
    ) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array or sparse matrix (n_rows, n_features), or a source of blocks
            float32 and float64, in C or Fortran order, are kept as they are, also on disk (:class:`numpy.memmap`);
            other numbers become float64, sparse matrices CSR. Data larger than memory: a ``pyarrow.dataset.Dataset``,
            an object whose ``__iter__`` gives blocks of rows, the same each time, or a
            :class:`softgrad.regression.RowBlocks`.
        y : array (n_rows,), or (n_rows, n_classes) of floats, or str
            Labels of any kind, or soft labels: non-negative weights of the classes, at least two columns, rows that
            sum to 1 or not. Of a dataset, the name of a column; its other columns are then the features.
        sample_weight : array (n_rows,) or str, optional
            Row weights a_i, not negative, or the name of a column of a dataset. A row of weight 0 adds its
            label to ``classes_`` and nothing to the fit.
        offset : array (n_rows, n_classes), or (n_rows,) for two classes, or str, optional
            Added to the logits, with no weight to be fitted; one number a row is the logit of the second class
            against the first. A model that was fitted with an offset wants one to predict, too.
        classes : array (n_classes,), optional
            What the columns of soft labels stand for; not for a table, whose columns have names. 0, 1, … if not given.
        callback : callable (Progress), optional
            Called after each iteration with a :class:`softgrad.regression.Progress`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For invalid parameters and data; the message names the argument, the row and the value.
        TypeError
            For an X that can be read only once, such as a generator.
        KeyboardInterrupt
            On Ctrl-C. The attributes are then set to what had been reached, and ``warm_start`` goes on from there.

        Warns
        -----
        ConvergenceWarning
            When the fit ends before ``tol`` is reached; it says how far it is.
        """
        check_parameters(self)
        from softgrad.sklearn._fit_data import read_data
        from softgrad.sklearn._fitting import SolverOptions, fit_and_keep, warm_start

        data = read_data(self, X, y, sample_weight, offset, classes)
        options = SolverOptions(
            self.C, self.tol, self.max_iter, self.fit_intercept, self.label_smoothing, self.solver, self.max_memory,
            self.n_threads, self.standardize,
        )  # fmt: skip
        fit_and_keep(self, data, options, warm_start(self, data.targets.classes), callback)
        return self
