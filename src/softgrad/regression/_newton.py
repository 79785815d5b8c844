"""Damped Newton on the exact Hessian, for few parameters: its price grows with their square, its iterations do not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad.regression._newton_cg import MOST_FAILURES, search, stronger
from softgrad.regression._problem import Problem
from softgrad.regression._state import State

Float = NDArray[np.float64]

__all__ = ["newton"]


def newton(problem: Problem, state: State) -> None:
    """Run the state to its end."""
    kappa, k = state.kappa, problem.n_classes
    p, width = problem.design.n_features, problem.design.n_features + int(problem.fit_intercept)
    damping, failures = 0.0, 0
    evaluation = state.evaluate(precise=True)
    while not state.done():
        h = problem.hessian()
        diagonal = np.arange(k * width).reshape(k, width)
        h[diagonal[:, :p].ravel(), diagonal[:, :p].ravel()] += kappa
        h[diagonal.ravel(), diagonal.ravel()] += damping
        typical = max(float(np.trace(h)) / len(h), 1e-300)
        for a in range(k):  # nothing tells one constant for all classes from another: pin their sum
            for b in range(k):
                h[diagonal[a], diagonal[b]] += typical / k
        gw, gb = evaluation.weight + kappa * state.weight, evaluation.bias
        g = np.concatenate([gw, gb[:, None]], axis=1) if problem.fit_intercept else gw
        d = _solve(h, -g.ravel(), typical).reshape(k, width)
        d -= d.mean(axis=0)
        dw, db = np.ascontiguousarray(d[:, :p]), (d[:, p].copy() if problem.fit_intercept else np.zeros(k))
        span = problem.direction(dw, db)
        slope = float(np.vdot(gw, dw)) + float(gb @ db)
        step = search(problem, state, dw, slope, span)
        if step == 0.0:
            failures += 1
            damping = stronger(damping, gw, state)
            if failures > MOST_FAILURES:
                state.stalled = True
                break
            continue
        failures, damping = 0, damping / 10 if damping > 1e-12 * typical else 0.0
        state.move(step, dw, db, -0.5 * slope)
        evaluation = state.evaluate()


def _solve(h: Float, right: Float, typical: float) -> Any:
    """Solve H d = −g; a little of the identity more each time H is not positive in floating point."""
    ridge = 0.0
    for _ in range(12):
        try:
            if ridge:
                h[np.diag_indices_from(h)] += ridge
            factor = linalg.cho_factor(h, lower=True, check_finite=False)
        except linalg.LinAlgError:
            ridge = max(1e-14 * typical, 100 * ridge)
            continue
        return linalg.cho_solve(factor, right, check_finite=False)
    return right / typical
