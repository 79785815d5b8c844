"""Truncated Newton: preconditioned conjugate gradients in float32, in an outer loop as precise as needed.

Each step costs a gradient, a direction and as many Hessian products as the quadratic model deserves: CG ends when an
iteration adds little to what the model already gained (Nash and Sofer 1990).  Near the end it goes on until the dual
bound of the step can certify the gap that is asked.  Newton's method refines: float32 products find a direction, and a
float64 gradient decides where it leads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression._certificate import newton_dual_value
from softgrad.regression._precondition import preconditioner_of
from softgrad.regression._problem import Problem
from softgrad.regression._state import State

Array = NDArray[Any]
Float = NDArray[np.float64]

MOST_PRODUCTS = 250
FARTHEST = 20.0  # between the scores of a step
MOST_FAILURES = 8  # directions in a row on which nothing is gained
MODEL_RATE = 0.15  # CG ends when its newest step gained less than this share of the mean step

__all__ = ["conjugate_gradients", "newton_cg", "search"]


class Direction:
    """A Newton direction and what CG knows about it."""

    def __init__(self, weight: Array, bias: Float, residual: tuple[Array, Float], gain: float, products: int) -> None:
        self.weight, self.bias, self.residual, self.gain, self.products = weight, bias, residual, gain, products


def conjugate_gradients(
    problem: Problem,
    kappa: float,
    damping: float,
    gradient: tuple[Float, Float],
    precondition: Any,
    *,
    rate: float,
    residual: float,
) -> Direction:
    """Solve (H + damping) d = −g until the model gains little more and ‖r‖² / 2κ is at most ``residual``."""
    single = problem.dtype
    rounding = 1e-7 if single is np.float32 else 1e-13
    center = precondition.center.astype(single)
    free = problem.fit_intercept
    moved = free and bool(center.any())
    gw, gb = gradient
    r = -(gw - np.outer(gb, precondition.center) if free else gw).astype(single)
    rb = -gb if free else np.zeros_like(gb)
    d, db = np.zeros_like(r), np.zeros_like(rb)
    z, zb = precondition(r, rb)
    z = z.astype(single, copy=False)
    q, qb = z.copy(), (zb if free else np.zeros_like(rb)).copy()
    rz = float(np.vdot(r, z)) + float(rb @ zb)
    gain, products = 0.0, 0
    while products < MOST_PRODUCTS and rz > 0:
        hq, hb = problem.product(q, (qb - q @ center) if free else qb)
        products += 1
        if moved:
            hq -= np.outer(hb, center)
        if not free:
            hb = np.zeros_like(hb)
        curved = hq.astype(single, copy=False)
        curved += single(kappa + damping) * q
        hb = hb + damping * qb
        bend = float(np.vdot(q, curved)) + float(qb @ hb)
        if not bend > 0:
            break
        step = rz / bend
        d += single(step) * q
        db += step * qb
        r -= single(step) * curved
        rb = rb - step * hb
        gained = 0.5 * step * rz
        gain += gained
        small = products * gained <= rate * gain
        if small and (kappa == 0 or float(np.vdot(r, r)) <= 2 * kappa * residual):
            break
        if gained <= rounding * gain:  # the type has no more to give
            break
        z, zb = precondition(r, rb)
        fresh = float(np.vdot(r, z)) + float(rb @ zb)
        q = z + single(fresh / rz) * q
        qb = (zb + fresh / rz * qb) if free else qb
        rz = fresh
    shift = db - d @ center if free else db
    return Direction(d, np.asarray(shift, dtype=np.float64), (r, rb), gain, products)


def newton_cg(problem: Problem, state: State) -> None:
    """Run the state to its end."""
    kappa, free = state.kappa, problem.fit_intercept
    evaluation = state.evaluate()
    failures = 0
    damping = 0.0  # added to κ while the model promises more than there is
    spent = 0  # Hessian products since the preconditioner was made
    while not state.done():
        precondition = state.preconditioner
        if precondition is None or (spent >= 0.6 * precondition.price and precondition.is_stale(problem)):
            precondition = state.preconditioner = preconditioner_of(problem)
            spent = 0
        precondition.set_penalty(kappa, damping)
        gw, gb = evaluation.weight + kappa * state.weight, evaluation.bias
        near = state.gap < 0.05
        direction = conjugate_gradients(
            problem,
            kappa,
            damping,
            (gw, gb),
            precondition,
            rate=MODEL_RATE,
            residual=max(0.3 * state.tol, 0.02 * state.gap) * abs(state.objective) if near else np.inf,
        )
        spent += direction.products
        d, db = direction.weight.astype(np.float64), direction.bias if free else np.zeros_like(gb)
        if state.patience is not None and direction.products > state.patience:
            state.handed_over = True
            return
        span = problem.direction(direction.weight, db)
        bound = -np.inf
        if kappa > 0:
            r, rb = direction.residual
            rw = r.astype(np.float64)
            curved_b = -rb - gb - damping * (db + d @ precondition.center) if free else np.zeros_like(gb)
            curved = -rw - (gw - np.outer(gb, precondition.center) if free else gw) - (kappa + damping) * d
            if free:
                curved += np.outer(curved_b, precondition.center)
            at, slopes = (state.weight, state.bias), (evaluation.weight, gb)
            bound = newton_dual_value(problem, kappa, evaluation.entropy, at, slopes, (curved, curved_b), (d, db), span)
        slope = float(np.vdot(gw, d)) + float(gb @ db)
        step = search(problem, state, d, slope, span)
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
        failures = 0
        typical = precondition.typical
        if step < 0.6:
            damping = min(max(4 * damping, 0.03 * typical, kappa), 10 * typical)
        elif step > 0.9:
            damping = damping / 5 if damping > 1e-4 * typical else 0.0
        problem.advance(step)
        state.move(step, d, db, direction.gain)
        state.foresee(bound)
        evaluation = state.evaluate(known=True)


def stronger(damping: float, gradient: Float, state: State) -> float:
    """A damping with which the next direction is no longer than the point it starts from, or a tenth of the last."""
    length = float(np.linalg.norm(gradient)) / (1 + np.sqrt(state.square))
    return float(max(10 * damping, 0.01 * length))


def search(problem: Problem, state: State, d: Float, slope: float, span: float) -> float:
    """A step near the least value along the direction, from the stored scores; 0 if rounding hides every gain.

    ``span`` is the distance between the scores of the direction: far beyond `FARTHEST` probabilities are 0 or 1, and
    their curvature, by which the next direction is found, is lost.
    """
    kappa, here = state.kappa, state.objective
    noise = (1e-14 if problem.small else 2e-7) * abs(state.loss)
    if state.precise and -slope < noise:
        return 1.0  # float32 losses cannot tell; the next float64 evaluation does
    cross, square = float(np.vdot(state.weight, d)), float(np.vdot(d, d))

    def value(step: float) -> float:
        there = problem.line(step) + 0.5 * kappa * (state.square + 2 * step * cross + step**2 * square)
        return float(there) if np.isfinite(there) else np.inf

    if state.precise and not problem.small:
        here = value(0.0)
    if not (np.isfinite(span) and np.isfinite(slope)):
        return 0.0
    step = 1.0 if span <= FARTHEST else FARTHEST / span
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
