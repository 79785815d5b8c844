"""State of a fit: its point, the objective there, the best lower bound, and the record of its iterations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.certificates._bounds import decrement_excess, dual_value, has_decrement_bound
from softgrad.regression.rows._layout import inner
from softgrad.regression.rows._row_sums import LossAtPoint, RowSums

Float = NDArray[np.float64]

SEPARABLE = 1e-9  # a mean loss that only separable data reach, without a penalty
ROUNDED = 1e-12  # of the objective: a gain near what rounding hides
STALL = 12  # iterations in float64 without progress
MOST_PROOFS = 4  # with a penalty: bounds from a Newton decrement, where the dual problem gives none

__all__ = ["Progress", "State"]


class Progress(NamedTuple):
    """One iteration of a fit.

    Attributes
    ----------
    iteration : int
        Counted from 1; the starting point is not told.
    objective : float
        C Σ a ℓ + ½‖W‖², or Σ a ℓ for C = inf.
    gap : float
        The least upper bound so far of (objective − optimum) / optimum; inf before there is one.
    passes : float
        Products with the rows so far: one is ``X @ W`` and ``X.T @ G``.
    seconds : float
        Since the fit began.
    step : float
        The length of the step that led here, 1 for all of Newton's.
    """

    iteration: int
    objective: float
    gap: float
    passes: float
    seconds: float
    step: float


class State:
    """State of a fit of one problem at one penalty, shared by its solvers.

    Inside a solver the objective is f = Σ a ℓ + ½ κ ‖W‖² with κ = 1 / C; users see F = scale · f.

    A solver calls ``evaluate`` at the start and then, until ``done``: ``move`` with a direction and a step, and
    ``evaluate`` again (or ``adopt`` with an evaluation that it made itself).  After the last solver, ``finish``
    evaluates the point in float64 if that has not been done, and ``prove`` may raise the bound once more.

    Attributes
    ----------
    problem, kappa, scale, tol, max_iter, callback
        As given.
    preconditioner : object or None
        Of conjugate gradients; made by the solver that needs one, and kept for the next fit of a path.
    weight, bias : arrays (K, P) and (K,), float64
        The point.  Their means over the classes are 0.
    point : LossAtPoint or None
        The last evaluation of the loss and its gradient.
    loss, square, objective : float
        Σ a ℓ, ‖W‖² and f there.
    iteration, step, gain : int, float, float
        Steps taken; the length of the last one; what the quadratic model expected it to gain.
    bound, gap : float
        The best lower bound of min f that was computed in float64, and the relative gap that it leaves.
    rough : float
        The best bound that was computed in float32: it only decides when to go on in float64.
    precise, evaluated_precisely : bool
        Whether the next evaluation is in float64, and whether the last one was.
    best, since_best : float, int
        The least objective so far, and float64 evaluations since the objective or the gap got better.
    stall : int
        So many of them end the fit.
    stalled, separable, polished : bool
        The fit ended without progress; without a penalty, the loss has become negligible, as only separable data allow;
        without a penalty, the extra step after convergence was taken.
    provable, proofs : bool, int
        Whether a Newton decrement may bound min f, and how often it was computed.
    patience : int or None
        Products of one run of conjugate gradients after which the exact Hessian is cheaper.
    handed_over : bool
        Whether a run exceeded ``patience``.
    history : list of Progress
        One record an iteration.
    started, passes_before : float
        Time and passes of the problem when the fit began.
    """

    def __init__(
        self,
        problem: RowSums,
        weight: Float,
        bias: Float,
        *,
        kappa: float,
        scale: float,
        tol: float,
        max_iter: int,
        callback: Callable[[Progress], Any] | None,
        preconditioner: Any = None,
    ) -> None:
        self.problem, self.weight, self.bias = problem, weight, bias
        self.kappa, self.scale, self.tol, self.max_iter = kappa, scale, tol, max_iter
        self.callback, self.preconditioner = callback, preconditioner
        self.started, self.passes_before = time.perf_counter(), problem.passes
        self.precise = problem.small  # else only once float32 says that the end is near
        self.iteration, self.step, self.gain = 0, 0.0, np.inf
        self.loss = self.objective = np.inf
        self.square = 0.0
        self.bound, self.gap = -np.inf, np.inf
        self.rough = -np.inf
        self.evaluated_precisely = False
        self.point: LossAtPoint | None = None
        self.stalled = self.separable = self.polished = False
        self.provable = has_decrement_bound(problem)
        self.proofs = 0
        self.best = np.inf
        self.since_best = 0
        self.history: list[Progress] = []
        self.patience: int | None = None
        self.handed_over = False
        self.stall = STALL

    def evaluate(self, *, precise: bool | None = None, known: bool = False) -> LossAtPoint:
        """Evaluate loss, gradient and bound at the point, and record them."""
        if precise is not None:
            self.precise = self.precise or precise
        left = min(self.gain, self.objective) / max(self.objective, 1e-300) if np.isfinite(self.objective) else 1.0
        enough = 1e-6 * self.tol if self.precise else max(1e-3 * self.tol, 0.2 * min(1.0, left))
        moved = self.problem.settle(self.weight, self.bias, precise=self.precise, known=known, enough=enough)
        if moved is not None:
            self.bias = self.bias + moved
        known = moved is not None or (known and not self.precise)
        evaluation = self.problem.gradient(self.weight, self.bias, precise=self.precise, known=known)
        self.adopt(evaluation)
        return evaluation

    def adopt(self, evaluation: LossAtPoint, *, certify: bool = True) -> None:
        """Take an evaluation of the point and record it; ``certify``: whether a bound may end the fit."""
        self.evaluated_precisely, self.point = self.precise, evaluation
        self.square = inner(self.weight, self.weight)
        self.loss, self.objective = evaluation.loss, evaluation.loss + 0.5 * self.kappa * self.square
        if not (np.isfinite(self.objective) and np.isfinite(evaluation.weight).all()):
            raise FloatingPointError("the objective or its gradient is not finite")
        if self.kappa > 0 and certify:
            value = dual_value(
                self.problem, self.kappa, evaluation.entropy, evaluation.weight, evaluation.bias, rough=not self.precise
            )
            if self.precise:
                self.bound = max(self.bound, value)
            self.rough = max(self.rough, value)
        self._judge(certify)
        if self.iteration:
            self.record()

    def _judge(self, certify: bool = True) -> None:
        """The gap from the best bound; from a float32 one only to decide whether float64 is worth its price."""
        if self.kappa == 0:
            self.separable = self.loss <= SEPARABLE * self.problem.mass
        # The decrement of the last step is more than what is left where the model holds.
        near = self.gain <= max(0.5 * self.tol, 1e-15) * self.objective
        bound = self.bound if self.precise else self.rough
        wanted = certify and (self.kappa == 0 or self.exhausted())
        if wanted and self.precise and near and self.relative(bound) > self.tol:
            self.prove()
            bound = self.bound
        gap = self.relative(bound)
        if self.precise:
            self.since_best = (
                0 if self.objective < self.best * (1 - 1e-15) or gap < 0.7 * self.gap else self.since_best + 1
            )
        self.best = min(self.best, self.objective)
        self.gap = gap
        if not self.precise and (gap <= self.tol or (near and self.kappa == 0)):
            self.precise = True  # the next evaluation proves it

    def exhausted(self) -> bool:
        """Whether steps gain no more than rounding hides, or lower neither objective nor gap.

        Until then another cheap step serves the dual bound better than a Newton decrement.
        """
        return self.gain <= ROUNDED * self.objective or self.since_best >= 2

    def relative(self, bound: float, objective: float | None = None) -> float:
        """Return the relative gap between an objective and a lower bound of the optimum; inf without a positive bound.

        The objective is the state's if none is given.
        """
        objective = self.objective if objective is None else objective
        return max(0.0, (objective - bound) / bound) if 0 < bound < np.inf else np.inf

    def prove(self) -> None:
        """Raise the bound of the optimum by the Newton decrement of the last evaluation, made in float64."""
        if not self.provable or self.separable or (self.kappa > 0 and self.proofs >= MOST_PROOFS):
            return
        assert self.point is not None
        self.proofs += 1
        excess = decrement_excess(self.problem, self.kappa, self.point, self.weight, self.bias)
        self.bound = max(self.bound, self.objective - excess)

    def record(self) -> None:
        """Add the iteration to the history and call the callback."""
        progress = Progress(
            self.iteration,
            self.objective * self.scale,
            self.gap,
            self.problem.passes - self.passes_before,
            time.perf_counter() - self.started,
            self.step,
        )
        if self.history and self.history[-1].iteration == self.iteration:  # the same point, more precisely
            self.history[-1] = progress
            return
        self.history.append(progress)
        if self.callback is not None:
            self.callback(progress)

    def done(self) -> bool:
        """Whether to stop before another iteration."""
        if self.separable or self.stalled:
            return True
        if self.evaluated_precisely:
            unproved = self.kappa == 0 and not self.provable and self.gain <= 0.5 * self.tol * self.loss
            if self.gap <= self.tol or unproved:
                if self.kappa > 0 or self.polished:
                    return True
                self.polished = True  # the loss is flat here: another step makes the coefficients twice as precise
            elif self.since_best >= self.stall:
                self.stalled = True
                return True
        return self.iteration >= self.max_iter

    def move(self, step: float, weight: Float, bias: Float, gain: float) -> None:
        """Take a step."""
        self.weight = self.weight + step * (weight - weight.mean(axis=0))
        self.bias = self.bias + step * (bias - bias.mean())
        self.step, self.gain = step, gain
        self.iteration += 1

    def foresee(self) -> None:
        """After a Newton step less is left than a third of what it gained: float64 where that will do."""
        if self.gap < 0.5 and 0.3 * self.gain <= self.tol * self.objective:
            self.precise = True

    def continue_from(self, other: State) -> None:
        """Go on counting where another state of the same fit ended."""
        self.iteration, self.history, self.started = other.iteration, other.history, other.started
        self.passes_before = self.problem.passes - (other.problem.passes - other.passes_before)

    def bound_here(self) -> None:
        """Raise the bound of the optimum by the dual value at the point, which stays as it is."""
        if self.kappa > 0:
            found = self.problem.gradient(self.weight, self.bias, precise=True)
            value = dual_value(self.problem, self.kappa, found.entropy, found.weight, found.bias)
            self.bound = max(self.bound, value)
            self.gap = self.relative(self.bound)

    def try_again(self) -> None:
        """Go on with another solver where one made no progress."""
        self.stalled, self.since_best, self.proofs = False, 0, 0

    def finish(self) -> None:
        """Evaluate the last point in float64, for the result."""
        moved = self.problem.settle(self.weight, self.bias, precise=True, known=False)
        if moved is not None:
            self.bias = self.bias + moved
        found = self.problem.gradient(self.weight, self.bias, precise=True, known=moved is not None)
        self.precise = self.evaluated_precisely = True
        self.point = found
        self.square = inner(self.weight, self.weight)
        self.loss, self.objective = found.loss, found.loss + 0.5 * self.kappa * self.square
        if self.kappa > 0:
            self.bound = dual_value(self.problem, self.kappa, found.entropy, found.weight, found.bias)
        self._judge()
