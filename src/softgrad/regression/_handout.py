"""The model handed out, in the caller's variables and type, and its certificate.

A solver certifies a point of its own variables.  The model handed out differs from it where it is rounded to the type
of X.  Its objective is bounded from that of the point where the change is small, and evaluated anew where it is not.
Its gap is that to the best lower bound of the optimum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softgrad.regression._inputs import ProblemVariables
from softgrad.regression.rows._layout import inner
from softgrad.regression.solvers._state import State

Float = NDArray[np.float64]

NEGLIGIBLE = 1e-2  # of tol: what a bound of the objective may add to the gap

__all__ = ["HandedOut", "hand_out"]


class HandedOut(NamedTuple):
    """A model as the caller gets it: coefficients, intercept, objective F and relative gap."""

    coef: Float
    intercept: Float
    objective: float
    gap: float


def hand_out(inputs: ProblemVariables, state: State, dtype: Any) -> HandedOut:
    """Return the model of a state, with coefficients and intercepts that ``dtype`` represents.

    Raises
    ------
    ValueError
        If a coefficient overflows ``dtype``.
    """
    coef, intercept = inputs.outer(state.weight, state.bias)
    if np.dtype(dtype) == np.float64 and inputs.shift is None and inputs.scale is None:
        return HandedOut(coef, intercept, state.objective * state.scale, state.gap)
    with np.errstate(over="ignore"):
        coef, intercept = (part.astype(dtype).astype(np.float64) for part in (coef, intercept))
    if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
        raise ValueError(f"a coefficient overflows {np.dtype(dtype)}, the type of X: scale the features")
    point = inputs.inner((coef, intercept))
    assert point is not None
    assert state.point is not None
    unit = inputs.penalised(coef)
    penalty = 0.5 * state.kappa * inner(unit, unit) / (2 if inputs.binomial else 1)
    d, db = point[0] - state.weight, point[1] - state.bias
    loss = state.loss + inner(state.point.weight, d) + float(state.point.bias @ db)
    design, rise = state.problem.design, np.inf
    if design.in_memory:  # vᵀ J v is at most the largest square of v: half of it bounds what the slope leaves out
        along = np.minimum(design.reach() * np.linalg.norm(d, axis=1), np.abs(d) @ design.column_reach())
        rise = 0.5 * state.problem.mass * float(np.square(along + np.abs(db)).max())
    if not rise <= NEGLIGIBLE * state.tol * state.objective:
        loss, rise = state.problem.gradient(*point, precise=True).loss, 0.0
    objective = loss + penalty
    return HandedOut(coef, intercept, objective * state.scale, state.relative(state.bound, objective + rise))
