"""Parameters of scikit-learn's logistic regression: their rules, their deprecations, and the problem they describe."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from softgrad.sklearn._parameters import Rules, is_integer, is_real

if TYPE_CHECKING:
    from softgrad.sklearn._fit_data import FitData

__all__ = ["RULES", "check_binary", "gap_tolerance", "join_intercept", "part_intercept", "penalty_of", "warn_of_jobs"]

SMALLEST_GAP = 1e-12  # close to what rounding leaves of a gap in float64
SOLVERS = ("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")
PENALTIES = ("l1", "l2", "elasticnet", None, "deprecated")


def _is_boolean(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _is_size(value: Any) -> bool:
    return is_integer(value) and value >= 0


RULES: Rules = {
    "penalty": (lambda v: v is None or (isinstance(v, str) and v in PENALTIES), "'l1', 'l2', 'elasticnet' or None"),
    "l1_ratio": (lambda v: v is None or (is_real(v) and 0 <= v <= 1), "in [0, 1]"),
    "dual": (_is_boolean, "True or False"),
    "tol": (lambda v: is_real(v) and v >= 0, "a number of at least 0"),
    "fit_intercept": (_is_boolean, "True or False"),
    "intercept_scaling": (lambda v: is_real(v) and 0 < v < np.inf, "a positive number"),
    "solver": (lambda v: isinstance(v, str) and v in SOLVERS, "one of " + ", ".join(map(repr, SOLVERS))),
    "max_iter": (_is_size, "an integer of at least 0"),
    "verbose": (lambda v: _is_boolean(v) or _is_size(v), "an integer of at least 0"),
    "warm_start": (_is_boolean, "True or False"),
    "n_jobs": (lambda v: v is None or (is_integer(v) and v != 0), "None or an integer, not 0"),
    "refit": (_is_boolean, "True or False"),
}


def penalty_of(name: str, given: Any, ratios: Any, solver: str, *, dual: bool, unpenalised: bool) -> None:
    """Warn of a deprecated ``penalty``, and refuse what the solver or softgrad does not fit.

    ``name`` is that of the parameter with the ``ratios``; only ratios of 0, the L2 penalty, go on.
    """
    if given == "deprecated":
        shares = np.asarray(0.0 if ratios is None else ratios, dtype=np.float64)
        penalty: str | None = "l2" if (shares == 0).all() else "l1" if (shares == 1).all() else "elasticnet"
        penalty = None if unpenalised else penalty
    else:
        penalty = given
        other = "C=np.inf" if name == "l1_ratio" else "Cs=(np.inf,)"
        warnings.warn(
            f"'penalty' was deprecated in version 1.8 of scikit-learn: leave it out, and set {name} to 0 for 'l2', to "
            f"1 for 'l1' or between for 'elasticnet', and {other} for None",
            FutureWarning,
            stacklevel=5,
        )
    if penalty not in ("l2", None) and solver not in ("liblinear", "saga"):
        raise ValueError(f"Solver {solver} supports only 'l2' or None penalties, got {penalty} penalty.")
    if dual and solver != "liblinear":
        raise ValueError(f"Solver {solver} supports only dual=False, got dual={dual}")
    if penalty == "elasticnet" and solver != "saga":
        raise ValueError(f"Only 'saga' solver supports elasticnet penalty, got solver={solver}.")
    if penalty is None and solver == "liblinear":
        raise ValueError("C=np.inf as well as penalty=None is not supported for the liblinear solver")
    if penalty in ("l1", "elasticnet"):
        raise ValueError(
            f"softgrad fits the L2 penalty only, but penalty={penalty!r} was asked for, by {name}={ratios!r}: set it "
            "to 0, or use the class of sklearn.linear_model"
        )


def check_binary(solver: str, classes: NDArray[Any]) -> None:
    """Refuse more than two classes with liblinear."""
    if solver == "liblinear" and len(classes) > 2:
        raise ValueError(
            "Only binary classification is supported. The type of the target is multiclass. The 'liblinear' solver "
            f"does not support multiclass classification, but y has {len(classes)} classes: use another solver, or "
            "wrap the estimator in a OneVsRestClassifier"
        )


def warn_of_jobs(n_jobs: int | None) -> None:
    """Warn of a parameter without effect, as scikit-learn does."""
    if n_jobs is not None:
        warnings.warn(
            f"'n_jobs' has no effect since 1.8 of scikit-learn: leave it out instead of n_jobs={n_jobs}",
            FutureWarning,
            stacklevel=4,
        )


def gap_tolerance(tol: float) -> float:
    """The relative gap at which coefficients are within about ``tol`` of the optimum.

    The objective F is 1-strongly convex in W: with a gap of tol², ½ ‖W − W*‖² ≤ F − F* ≤ tol² F*.
    """
    return float(max(tol**2, SMALLEST_GAP))


def join_intercept(data: FitData, intercept_scaling: float) -> FitData:
    """Rows with one more feature, the same in all: liblinear's intercept, which is penalised."""
    x, n = data.x, data.x.shape[0]
    column = np.full((n, 1), intercept_scaling, dtype=x.dtype)
    if not sparse.issparse(x):
        return replace(data, x=np.hstack([x, column]))
    blocks: list[Any] = [x, column]
    return replace(data, x=sparse.hstack(blocks, format="csr"))


def part_intercept(coef: NDArray[Any], intercept_scaling: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """The coefficients, and the intercept that their last one stands for."""
    return np.ascontiguousarray(coef[..., :-1]), intercept_scaling * coef[..., -1]
