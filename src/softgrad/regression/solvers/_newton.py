"""Damped Newton: a direction, as far along it as the loss falls, and a gradient as precise as it is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.rows._layout import inner
from softgrad.regression.rows._row_sums import RowSums
from softgrad.regression.solvers._search import search
from softgrad.regression.solvers._state import State

Array = NDArray[Any]
Float = NDArray[np.float64]

MOST_FAILURES = 8  # directions in a row on which nothing is gained

__all__ = ["Direction", "newton"]


class Direction(NamedTuple):
    """A Newton direction; what its model promises to gain, and the model's mean curvature without a penalty."""

    weight: Array
    bias: Float
    gain: float
    typical: float


def newton(problem: RowSums, state: State, find: Callable[[tuple[Float, Float], float], Direction | None]) -> None:
    """Run the state to its end with the directions that ``find`` makes of a gradient and a damping."""
    evaluation = state.evaluate()
    failures = 0
    damping = 0.0  # added to κ while the model promises more than there is
    while not state.done():
        gw, gb = evaluation.weight + state.kappa * state.weight, evaluation.bias
        direction = find((gw, gb), damping)
        if direction is None:
            return
        d, db = direction.weight.astype(np.float64, copy=False), direction.bias
        size = problem.direction(direction.weight, db)
        slope = inner(gw, d) + float(gb @ db)
        step = search(problem, state, d, slope, size)
        if step == 0.0 and not state.precise:
            evaluation = state.evaluate(precise=True)
            continue
        if step == 0.0:
            failures += 1
            damping = stronger(damping, gw, state)
            if failures > MOST_FAILURES:
                state.stalled = True
                break
            continue
        failures, typical = 0, direction.typical
        if step < 0.6:
            damping = min(max(4 * damping, 0.03 * typical, state.kappa), 10 * typical)
        elif step > 0.9:
            damping = damping / 5 if damping > 1e-4 * typical else 0.0
        problem.advance(step)
        state.move(step, d, db, direction.gain)
        state.foresee()
        evaluation = state.evaluate(known=True)


def stronger(damping: float, gradient: Float, state: State) -> float:
    """A damping with which the next direction is no longer than the point it starts from, or a tenth of the last."""
    length = float(np.linalg.norm(gradient)) / (1 + np.sqrt(state.square))
    return float(max(10 * damping, 0.01 * length))
