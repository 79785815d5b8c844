"""Directions of Newton's method on the exact Hessian, for few parameters: its price grows with their square.

Of many rows a sample is taken, by how much each adds (`_hessian`): a direction need not be better than the quadratic
model that it is of, and 64 rows a parameter leave an error of about an eighth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad.regression.rows._row_sums import RowSums
from softgrad.regression.solvers._newton import Direction
from softgrad.regression.solvers._state import State

Array = NDArray[Any]
Float = NDArray[np.float64]

SAMPLE = 64  # rows for each parameter
MOST_PARAMETERS = 100  # up to these the Hessian costs less than the products that would replace it

__all__ = ["MOST_PARAMETERS", "Exact"]


class Exact:
    """Solves for directions."""

    def __init__(self, problem: RowSums, state: State) -> None:
        self.problem, self.state = problem, state
        design = problem.design
        self.width = design.n_features + int(problem.fit_intercept)
        self.count = SAMPLE * problem.n_classes * self.width
        self.sampled = design.in_memory and problem.holds_prob and design.n_rows > 2 * self.count

    def __call__(self, gradient: tuple[Float, Float], damping: float) -> Direction:
        problem, kappa = self.problem, self.state.kappa
        k, p, width = problem.n_classes, problem.design.n_features, self.width
        h = problem.hessian(self.count if self.sampled else None)
        diagonal = np.arange(k * width).reshape(k, width)
        typical = max(float(np.trace(h)) / len(h), 1e-300)
        h[diagonal[:, :p].ravel(), diagonal[:, :p].ravel()] += kappa
        h[diagonal.ravel(), diagonal.ravel()] += damping
        # Nothing tells one constant for all classes from another: pin their sum, in the scale of each feature.
        shared = np.maximum(h[diagonal, diagonal].mean(axis=0), 1e-300) / k
        for a in range(k):
            for b in range(k):
                h[diagonal[a], diagonal[b]] += shared
        gw, gb = gradient
        g = np.concatenate([gw, gb[:, None]], axis=1) if problem.fit_intercept else gw
        d = _solve(h, -g.ravel()).reshape(k, width)
        d -= d.mean(axis=0)
        return Direction(
            np.ascontiguousarray(d[:, :p]),
            d[:, p].copy() if problem.fit_intercept else np.zeros(k),
            -0.5 * float(np.vdot(g, d)),
            typical,
        )


def _solve(h: Float, right: Float) -> Any:
    """Solve H d = −g in the scale of H's diagonal, a little of which is added while H is not positive definite."""
    scale = 1 / np.sqrt(np.maximum(np.diagonal(h), 1e-300))
    h *= scale[:, None]
    h *= scale
    right = right * scale
    ridge = 0.0
    for _ in range(12):
        try:
            if ridge:
                h[np.diag_indices_from(h)] += ridge
            factor = linalg.cho_factor(h, lower=True, check_finite=False)
        except linalg.LinAlgError:
            ridge = max(1e-14, 100 * ridge)
            continue
        return linalg.cho_solve(factor, right, check_finite=False) * scale
    return right * scale
