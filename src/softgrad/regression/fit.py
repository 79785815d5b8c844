"""The fit: L-BFGS on the objective, and an honest account of how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize

from softgrad.regression.objective import SoftmaxObjective

Float = NDArray[np.float64]

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """A fitted model and how the fit ended.

    Attributes
    ----------
    coef, intercept : arrays (n_rows_free, P) and (n_rows_free,), float64
        One row a class, or one row alone for two classes: the logit of the second against the first.
    n_iter : int
        Iterations of the optimiser.
    objective : float
        C Σ a ℓ + ½‖W‖² at the result (Σ a ℓ when C is ``inf``).
    gradient_norm : float
        Largest absolute component of the gradient of the objective over C Σ a: what ``tol`` is compared with.
    converged : bool
        Whether the fit stopped because it was done, not because it ran out of iterations or failed.
    message : str
        Why it stopped.
    """

    coef: Float
    intercept: Float
    n_iter: int
    objective: float
    gradient_norm: float
    converged: bool
    message: str


def fit(
    objective: SoftmaxObjective,
    *,
    start: Float | None = None,
    tol: float = 1e-4,
    max_iter: int = 1000,
    callback: Callable[[int, float], Any] | None = None,
) -> FitResult:
    """Minimise the objective.

    Parameters
    ----------
    objective : SoftmaxObjective
        What to minimise.
    start : array (objective.size,), optional
        Where to start (see :meth:`SoftmaxObjective.pack`); zeros if not given.
    tol : float
        The fit is done when no component of the gradient of the scaled objective exceeds it.
    max_iter : int
        Most iterations.
    callback : callable (iteration, objective), optional
        Called after each iteration, counted from 1, with the objective reached.

    Returns
    -------
    FitResult

    Raises
    ------
    ValueError
        For a ``tol`` or ``max_iter`` that cannot be, and for features so large that the objective overflows.
    """
    if not tol > 0:
        raise ValueError(f"tol must be positive, not {tol}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, not {max_iter}")
    iteration = 0

    def value_and_gradient(parameters: Float) -> tuple[float, Float]:
        value, gradient = objective(parameters)
        if not (np.isfinite(value) and np.isfinite(gradient).all()):
            raise ValueError(
                f"the objective or its gradient became {value if np.isnan(value) else 'infinite'} in iteration "
                f"{iteration + 1}: the features, up to {np.abs(objective.x).max(initial=0):.3g}, are too large for "
                f"{objective.x.dtype}; scale them"
            )
        return value, gradient

    def report(intermediate_result: OptimizeResult) -> None:  # SciPy passes the result to this very name
        nonlocal iteration
        iteration += 1
        if callback is not None:
            callback(iteration, float(intermediate_result.fun) * objective.scale)

    result = minimize(
        value_and_gradient,
        np.zeros(objective.size) if start is None else start,
        method="L-BFGS-B",
        jac=True,
        callback=report,
        # ftol: a fall of the value that float64 cannot tell from rounding; maxfun must not end a fit before max_iter.
        options={"maxiter": max_iter, "maxfun": 50 * max_iter, "maxls": 50, "gtol": tol, "ftol": 64 * 2.0**-52},
    )
    coef, intercept = objective.unpack(result.x)
    gradient_norm = float(np.abs(result.jac).max(initial=0.0))
    precision = float(np.sqrt(np.finfo(objective.x.dtype).eps))
    converged, message = _verdict(result, gradient_norm, tol, max_iter, precision)
    return FitResult(
        coef=coef.copy(),
        intercept=intercept.copy(),
        n_iter=int(result.nit),
        objective=float(result.fun) * objective.scale,
        gradient_norm=gradient_norm,
        converged=converged,
        message=message,
    )


def _verdict(
    result: OptimizeResult, gradient_norm: float, tol: float, max_iter: int, precision: float
) -> tuple[bool, str]:
    """Whether the fit is done, and why it stopped, in words.

    ``precision`` is the root of the data type's rounding: below such a gradient the value is flat to its last digits,
    and that a line search then fails says nothing.
    """
    if gradient_norm <= tol:
        return True, f"the largest gradient component, {gradient_norm:.3g}, is within tol = {tol:g}"
    if result.status == 0 or (result.status == 2 and gradient_norm <= precision):
        return True, f"the objective no longer falls in floating point; largest gradient component {gradient_norm:.3g}"
    if result.status == 1:
        reason = f"stopped at max_iter = {max_iter}"
    else:
        reason = "the line search found no lower point"
    return False, f"{reason}; largest gradient component {gradient_norm:.3g}, tol = {tol:g}"
