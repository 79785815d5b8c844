"""How far to go along a direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.rows._layout import inner
from softgrad.regression.rows._row_sums import RowSums
from softgrad.regression.solvers._state import State

Float = NDArray[np.float64]

FARTHEST = 3.0  # the root mean square of a step's scores

__all__ = ["search"]


def search(problem: RowSums, state: State, d: Float, slope: float, size: float) -> float:
    """A step near the least value along the direction, from the stored scores; 0 if rounding hides every gain.

    ``size`` is that of the scores of the direction: far beyond `FARTHEST` probabilities are 0 or 1, and their
    curvature, by which the next direction is found, is lost.
    """
    kappa, here = state.kappa, state.objective
    noise = (1e-14 if problem.small else 2e-7) * abs(state.loss)
    if state.precise and -slope < noise:
        return 1.0  # float32 losses cannot tell; the next float64 evaluation does
    cross, square = inner(state.weight, d), inner(d, d)

    def value(step: float) -> float:
        there = problem.line(step) + 0.5 * kappa * (state.square + 2 * step * cross + step**2 * square)
        return float(there) if np.isfinite(there) else np.inf

    if state.precise and not problem.small:
        here = value(0.0)
    if not (np.isfinite(size) and np.isfinite(slope)):
        return 0.0
    step = 1.0 if size <= FARTHEST else FARTHEST / size
    there = value(step)
    for _ in range(60):
        if there <= here + 1e-4 * step * slope + noise:
            break
        excess = there - here - step * slope
        model = -slope * step**2 / (2 * excess) if 0 < excess < np.inf else 0.0
        step = min(0.5 * step, max(0.1 * step, model))
        there = value(step)
    else:
        return 0.0
    if -slope * step <= 1e-3 * noise and not state.precise:
        return 0.0
    if -slope < 1e-4 * abs(here):
        return step
    for _ in range(3):  # where the model is poor its least point is not the function's: go on towards that
        bend = 2 * (there - here - slope * step) / step**2
        guess = -slope / bend if bend > 0 else 4 * step
        guess = min(max(guess, 0.3 * step), 4 * step)
        if 0.8 <= guess / step <= 1.25:
            break
        other = value(guess)
        if other >= there:
            break
        step, there = guess, other
    return step
