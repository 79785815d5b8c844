"""The methods that `regression` compares: each makes ready for one X, and then fits it for some C to some tolerance.

All of them minimise ``C Σ_i ℓ_i + ½ ‖W‖²`` with free intercepts, which is checked: a gap is taken from the coefficients
by `optimum.objective`, never from what a method says of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness import UnavailableError

MANY = 100_000  # iterations: the tolerance decides
Run = Callable[[Sequence[float], float], "list[Fit]"]  # (Cs, tol) → one fit for each C


@dataclass(frozen=True)
class Fit:
    """What came out; passes are products ``X Wᵀ`` with ``Gᵀ X``, where a method counts them."""

    coef: Any
    intercept: Any
    passes: float | None = None


@dataclass(frozen=True)
class Method:
    """A solver in one type, and the ladder of its own tolerances."""

    solver: str
    dtype: str
    prepare: Callable[[Any, Any, int], Run]  # (X in that type, y, threads) → Run
    tols: tuple[float, ...]

    @property
    def label(self) -> str:
        return f"{self.solver} {self.dtype}"

    @property
    def family(self) -> str:
        return self.solver.split(" ")[0].rstrip(",")


def _decades(first: int, last: int, step: int = 1) -> tuple[float, ...]:
    return tuple(10.0**-exponent for exponent in range(first, last + 1, step))


# --- softgrad --------------------------------------------------------------------------------------------------------


def _softgrad(**options: Any) -> Callable[[Any, Any, int], Run]:
    def prepare(X: Any, y: Any, threads: int) -> Run:
        from softgrad.sklearn import SoftmaxRegression

        def fit(C: float, tol: float) -> Fit:
            model = SoftmaxRegression(C=C, tol=tol, n_threads=threads, **options).fit(X, y)
            return Fit(model.coef_, model.intercept_, model.n_passes_)

        return lambda Cs, tol: [fit(C, tol) for C in Cs]

    return prepare


def _softgrad_path(X: Any, y: Any, threads: int) -> Run:
    from softgrad.regression import softmax_path

    def run(Cs: Sequence[float], tol: float) -> list[Fit]:
        path = softmax_path(X, y, Cs, tol=tol, n_threads=threads)
        share = float(np.sum(path.n_passes)) / len(Cs)
        return [Fit(W, b, share) for W, b in zip(path.coefs, path.intercepts, strict=True)]

    return run


# --- scikit-learn and scikit-learn-intelex ---------------------------------------------------------------------------


def _scikit_learn(solver: str, *, warm: bool = False) -> Callable[[Any, Any, int], Run]:
    def prepare(X: Any, y: Any, threads: int) -> Run:
        from sklearn.linear_model import LogisticRegression

        if solver == "newton-cholesky":
            _check_hessian(X.shape[1], len(np.unique(y)), X.dtype.itemsize)

        def run(Cs: Sequence[float], tol: float) -> list[Fit]:
            fits = []
            model = LogisticRegression(solver=solver, tol=tol, max_iter=MANY, warm_start=warm)
            for C in Cs:  # without warm_start every fit starts from zero
                model.set_params(C=C).fit(X, y)
                # Newton-CG's iterations are outer ones, each of an unknown number of passes.
                passes = float(model.n_iter_[0]) if solver == "lbfgs" else None
                fits.append(Fit(model.coef_.copy(), model.intercept_.copy(), passes))
            return fits

        return run

    return prepare


def _check_hessian(p: int, K: int, itemsize: int) -> None:
    needed = (K * (p + 1)) ** 2 * itemsize
    if needed > 2e9:
        raise UnavailableError(f"the Hessian alone would take {needed / 1e9:.3g} GB")


def _intelex(X: Any, y: Any, threads: int) -> Run:
    if not isinstance(X, np.ndarray):
        raise UnavailableError("hands sparse data to scikit-learn")
    from sklearnex.linear_model import LogisticRegression

    def fit(C: float, tol: float) -> Fit:
        model = LogisticRegression(C=C, tol=tol, max_iter=MANY, n_jobs=threads).fit(X, y)
        return Fit(model.coef_, model.intercept_, float(model.n_iter_[0]))

    return lambda Cs, tol: [fit(C, tol) for C in Cs]


# --- Cyanure ---------------------------------------------------------------------------------------------------------


def _cyanure(solver: str) -> Callable[[Any, Any, int], Run]:
    """Its objective is ours divided by C·n, and its coefficients are ours transposed."""

    def prepare(X: Any, y: Any, threads: int) -> Run:
        import scipy.sparse
        from cyanure.estimators import Classifier

        data = X if isinstance(X, np.ndarray) else scipy.sparse.csr_matrix(X)  # it knows no csr_array

        def fit(C: float, tol: float) -> Fit:
            model = Classifier(
                loss="multiclass-logistic",
                penalty="l2",
                lambda_1=1 / (C * X.shape[0]),
                fit_intercept=True,
                solver=solver,
                tol=tol,
                max_iter=MANY,
                n_threads=threads,
                verbose=False,
            ).fit(data, y)
            return Fit(model.coef_.T, model.intercept_)

        return lambda Cs, tol: [fit(C, tol) for C in Cs]

    return prepare


# --- the tables ------------------------------------------------------------------------------------------------------


def _methods(
    *solvers: tuple[str, Callable[[Any, Any, int], Run], tuple[float, ...]],
) -> dict[str, Method]:
    both = [Method(solver, dtype, *rest) for solver, *rest in solvers for dtype in ("float32", "float64")]
    return {method.label: method for method in both}


LBFGS, GAP = _decades(2, 9), _decades(1, 9)
SINGLE = _methods(
    ("softgrad", _softgrad(), GAP),
    ("scikit-learn lbfgs", _scikit_learn("lbfgs"), LBFGS),
    ("scikit-learn newton-cg", _scikit_learn("newton-cg"), LBFGS),
    ("scikit-learn newton-cholesky", _scikit_learn("newton-cholesky"), _decades(2, 8, 2)),
    ("intelex lbfgs", _intelex, _decades(-2, 6)),  # its gradient is not divided by n
    ("cyanure auto", _cyanure("auto"), GAP),
    ("cyanure qning-ista", _cyanure("qning-ista"), GAP),  # on some data much faster than what "auto" chooses
)
SWEEP = _methods(
    ("softgrad path", _softgrad_path, GAP),
    ("scikit-learn lbfgs cold", _scikit_learn("lbfgs"), LBFGS),
    ("scikit-learn lbfgs warm", _scikit_learn("lbfgs", warm=True), LBFGS),
    ("scikit-learn newton-cg cold", _scikit_learn("newton-cg"), LBFGS),
    ("scikit-learn newton-cg warm", _scikit_learn("newton-cg", warm=True), LBFGS),
    ("scikit-learn newton-cholesky cold", _scikit_learn("newton-cholesky"), _decades(2, 8, 2)),
    ("scikit-learn newton-cholesky warm", _scikit_learn("newton-cholesky", warm=True), _decades(2, 8, 2)),
)
MEMORY = _methods(
    ("softgrad", _softgrad(), ()),
    ("softgrad, max_memory 32 MB", _softgrad(max_memory=32_000_000), ()),
    ("scikit-learn lbfgs", _scikit_learn("lbfgs"), ()),
)
METHODS = {"single": SINGLE, "sweep": SWEEP, "memory": MEMORY}
