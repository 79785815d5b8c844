"""L-BFGS in the variables of the preconditioner, in float64: the second solver, and the oracle of the first.

The function is convex, so a line search can go by slopes alone; values drown in rounding at the root of its precision,
where the certificate of an ill-conditioned problem is still far from small.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.preconditioners._kronecker import MANY_CLASSES, Kronecker
from softgrad.regression.rows._row_sums import LossAtPoint, RowSums
from softgrad.regression.solvers._state import State

Float = NDArray[np.float64]

PAIRS = 20
MOST_TRIALS = 40

__all__ = ["lbfgs"]


class _Variables:
    """v ↔ (W, b): W = M^(−1/2) v with M the Kronecker metric at the start, b that of centred rows, scaled."""

    def __init__(self, problem: RowSums, state: State) -> None:
        self.problem, self.kappa = problem, state.kappa
        self.shape = state.weight.shape
        dense = not problem.design.sparse and problem.n_classes <= MANY_CLASSES
        self.metric = Kronecker(problem) if dense else None
        if self.metric is not None:
            self.metric.set_penalty(state.kappa)
        self.center: Float = np.zeros(self.shape[1]) if self.metric is None else self.metric.center
        self.scale = 1 / np.sqrt(problem.mass / self.shape[0])

    def pack(self, weight: Float, bias: Float) -> Float:
        start = weight if self.metric is None else self.metric.root(weight, inverse=True)
        return np.concatenate([start.ravel(), (bias + weight @ self.center) / self.scale])

    def unpack(self, v: Float) -> tuple[Float, Float]:
        split = self.shape[0] * self.shape[1]
        weight = v[:split].reshape(self.shape)
        weight = weight if self.metric is None else self.metric.root(weight)
        weight = weight - weight.mean(axis=0)  # what all classes share has a penalty, and no part in a model
        if not self.problem.fit_intercept:
            return weight, np.zeros(self.shape[0])
        return weight, self.scale * v[split:] - weight @ self.center

    def evaluate(self, v: Float) -> tuple[LossAtPoint, Float, tuple[Float, Float]]:
        """The evaluation at v, the gradient in v, and the parameters."""
        weight, bias = self.unpack(v)
        found = self.problem.gradient(weight, bias, precise=True)
        slope = found.weight + self.kappa * weight
        if not self.problem.fit_intercept:
            part = np.zeros(self.shape[0])
        else:
            slope, part = slope - np.outer(found.bias, self.center), self.scale * found.bias
        slope = slope if self.metric is None else self.metric.root(slope)
        return found, np.concatenate([slope.ravel(), part]), (weight, bias)


def lbfgs(problem: RowSums, state: State) -> None:
    """Run the state to its end."""
    state.stall = 100
    state.evaluate(precise=True)
    if state.done():
        return
    variables = _Variables(problem, state)
    v = variables.pack(state.weight, state.bias)
    _, g, _ = variables.evaluate(v)
    pairs: deque[tuple[Float, Float, float]] = deque(maxlen=PAIRS)
    while not state.done():
        d = -_inverse_times(g, pairs)
        slope = float(g @ d)
        if not slope < 0:
            if not pairs:
                state.stalled = True
                return
            pairs.clear()
            continue
        first = 1.0 if pairs else min(1.0, 10 / max(float(np.linalg.norm(d)), 1e-300))
        found = _line(variables, v, d, slope, first, state.objective * (1 + 1e-12))
        if found is None:
            if not pairs:
                state.stalled = True
                return
            pairs.clear()
            continue
        step, evaluation, fresh, (weight, bias) = found
        s, change = step * d, fresh - g
        if float(s @ change) > 0:
            pairs.append((s, change, float(s @ change)))
        v, g = v + s, fresh
        state.weight, state.bias = weight, bias
        state.iteration, state.step = state.iteration + 1, step
        # Without a penalty the last gains stand for the decrement, which L-BFGS does not know.
        square = float(np.vdot(weight, weight))
        state.gain = 1000 * abs(state.objective - evaluation.loss - 0.5 * state.kappa * square)
        state.adopt(evaluation)


def _inverse_times(g: Float, pairs: deque[tuple[Float, Float, float]]) -> Float:
    """The two-loop recursion (Nocedal 1980)."""
    q = g.copy()
    shares = []
    for s, y, sy in reversed(pairs):
        share = float(s @ q) / sy
        shares.append(share)
        q -= share * y
    if pairs:
        _, y, sy = pairs[-1]
        q *= sy / float(y @ y)
    for (s, y, sy), share in zip(pairs, reversed(shares), strict=True):
        q += (share - float(y @ q) / sy) * s
    return q


def _line(variables: _Variables, v: Float, d: Float, slope: float, step: float, limit: float) -> Any:
    """Find a step with an objective of at most ``limit`` and at most half the slope; None without one."""
    low, high = 0.0, np.inf
    for _ in range(MOST_TRIALS):
        evaluation, g, parameters = variables.evaluate(v + step * d)
        now = float(g @ d)
        falls = evaluation.loss + 0.5 * variables.kappa * float(np.vdot(parameters[0], parameters[0])) <= limit
        if falls and np.isfinite(now) and abs(now) <= -0.5 * slope:
            return step, evaluation, g, parameters
        if not (falls and now < 0):
            high = step
        else:
            low = step
        if np.isinf(high):
            step *= 2
        elif low == 0.0 and np.isfinite(now):
            step *= min(0.9, max(0.1, -slope / (now - slope)))
        else:
            step = 0.5 * (low + high)
    return None
