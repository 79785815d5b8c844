"""Directions of truncated Newton: preconditioned conjugate gradients, in float32 where there is much to multiply.

CG ends when an iteration adds little to what the model already gained (Nash and Sofer 1990).  Newton's method refines:
float32 products find a direction, and a float64 gradient decides where it leads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.preconditioners._choice import preconditioner_of
from softgrad.regression.rows._layout import add, inner
from softgrad.regression.rows._row_sums import RowSums
from softgrad.regression.solvers._newton import Direction
from softgrad.regression.solvers._state import State

Array = NDArray[Any]
Float = NDArray[np.float64]

MOST_PRODUCTS = 250
MODEL_RATE = 0.15  # CG ends when its newest step gained less than this share of the mean step
EARLY_RATE = 0.4  # the same while the model itself is far from the loss
LIGHT_RATE = 0.05  # the same where the penalty is most of the curvature, and the loss nearly its model
RENEWED = 1.5  # of its price a preconditioner has to have been used for before it is made anew
SAMPLE, MOST_SAMPLED = 2.0, 16.0
SLOW = 10  # products of a direction that ask for a larger sample

__all__ = ["Truncated", "conjugate_gradients"]


@dataclass
class Kept:
    """A preconditioner, and how it has served."""

    preconditioner: Any
    sample: float = SAMPLE  # rows of a block for each feature
    spent: int = 0  # Hessian products since it was made
    coarse: bool = False  # whether a larger sample would be better


class Truncated:
    """Finds directions with a preconditioner that is kept while it serves, for the next fit of a path as well."""

    def __init__(self, problem: RowSums, state: State) -> None:
        self.problem, self.state = problem, state

    def __call__(self, gradient: tuple[Float, Float], damping: float) -> Direction | None:
        problem, state, kept = self.problem, self.state, self.state.preconditioner
        due = kept is not None and kept.spent >= RENEWED * kept.preconditioner.price
        if kept is None or (due and (kept.coarse or kept.preconditioner.is_stale(problem))):
            sample = SAMPLE if kept is None else kept.sample * (1 + kept.coarse)
            kept = state.preconditioner = Kept(preconditioner_of(problem, state.kappa, sample), sample)
        kept.preconditioner.set_penalty(state.kappa, damping)
        if kept.preconditioner.light:
            rate = LIGHT_RATE
        else:
            rate = EARLY_RATE if state.gain > 0.05 * state.objective else MODEL_RATE
        d, db, gain, products = conjugate_gradients(
            problem, state.kappa, damping, gradient, kept.preconditioner, rate=rate
        )
        kept.spent += products
        kept.coarse = kept.coarse or (products > SLOW and kept.sample < MOST_SAMPLED)
        if state.patience is not None and products > state.patience:
            state.handed_over = True
            return None
        free = problem.fit_intercept
        return Direction(d, db if free else np.zeros_like(gradient[1]), gain, kept.preconditioner.typical)


def conjugate_gradients(
    problem: RowSums,
    kappa: float,
    damping: float,
    gradient: tuple[Float, Float],
    precondition: Any,
    *,
    rate: float,
) -> tuple[Array, Float, float, int]:
    """Solve (H + damping) d = −g until an iteration adds little to what the quadratic model already gained."""
    single = problem.dtype
    rounding = 1e-7 if single is np.float32 else 1e-13
    center = precondition.center.astype(single)
    free = problem.fit_intercept
    moved = free and bool(center.any())
    gw, gb = gradient
    r = (-(gw - np.outer(gb, precondition.center)) if moved else -gw).astype(single, copy=False)
    rb = -gb if free else np.zeros_like(gb)
    d, db = np.zeros_like(r), np.zeros_like(rb)
    z, zb = precondition(r, rb)
    q, qb = z.astype(single, copy=False), (zb if free else np.zeros_like(rb)).copy()
    rz = inner(r, q) + float(rb @ zb)
    gain, products = 0.0, 0
    while products < MOST_PRODUCTS and rz > 0:
        hq, hb = problem.product(q, (qb - q @ center) if moved else qb)
        products += 1
        if moved:
            hq -= np.outer(hb, center)
        if not free:
            hb = np.zeros_like(hb)
        curved = hq.astype(single, copy=False)
        add(curved, kappa + damping, q)
        hb = hb + damping * qb
        bend = inner(q, curved) + float(qb @ hb)
        if not bend > 0:
            break
        step = rz / bend
        add(d, step, q)
        db += step * qb
        add(r, -step, curved)
        rb = rb - step * hb
        gained = 0.5 * step * rz
        gain += gained
        if products * gained <= max(rate, products * rounding) * gain:
            break
        z, zb = precondition(r, rb)
        z = z.astype(single, copy=False)
        fresh = inner(r, z) + float(rb @ zb)
        add(z, fresh / rz, q)
        q = z
        qb = (zb + fresh / rz * qb) if free else qb
        rz = fresh
    shift = db - d @ center if moved else db
    return d, np.asarray(shift, dtype=np.float64), gain, products
