"""Newton's method for little data in memory: a few arrays that every step overwrites, and one call a sum over the rows.

Here the rows are one tile and the kernels one call, made ready once; nothing is allocated, no thread is woken, and the
direction's scores move the stored ones, so that a step costs one pass.  Few parameters take the exact Hessian (of two
classes in their difference), more take conjugate gradients in float32 with one block a class.  Losses, gradients and
certificates are float64, made by the same kernels and bounds as everywhere.

What this cannot do, it leaves to the general solver, which goes on from the point that was reached: see `fits` for
problems, and `lean` for a search without gain.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from softgrad._core import backend
from softgrad.regression.certificates._bounds import dual_value
from softgrad.regression.rows._layout import inner
from softgrad.regression.rows._problem import Problem
from softgrad.regression.rows._row_sums import LossAtPoint, RowSums
from softgrad.regression.solvers._exact import MOST_PARAMETERS
from softgrad.regression.solvers._search import FARTHEST
from softgrad.regression.solvers._state import State

Array = NDArray[Any]
Float = NDArray[np.float64]
Single = NDArray[np.float32]

EXACT_WORK = 5e6  # multiplications of its sum over the rows; beyond, products in float32 cost less
CG_WORK = 5e7  # P³ K of the blocks' factors, above which blocks of a sample in the general solver are cheaper
MOST_STEPS = 60
MOST_HALVINGS = 12
LARGEST = 1e30  # sum of squares of a feature that float32 can work with
MOST_PRODUCTS = 60  # of one direction
EARLY_RATE, RATE = 0.3, 0.15  # CG ends when its newest step gained less than this share of the mean step
LEVEL = 0.1  # of tol: what the intercepts may cost the bound
FORESEEN = 3.0  # times tol: a gap after a step below which it is worth a bound
HOPEFUL = 3.0  # times tol: an estimate of the gap below which its bound is computed
SURE = 0.9  # the same where another exact step brings a tighter bound at less cost
BLOCK_ROWS = 32  # rows of a block for each parameter
FLOOR = 1e-5  # of the mean diagonal: what float32 leaves unknown of a Gram matrix
MATTER = 0.5  # of the penalty: what rows that are left out of a block may add to it, where features are even
LIGHT = 0.02  # of the largest weight of a row: heavier ones stay, for the intercept is not penalised
CHANGE = 0.4  # of the rows' weights, after which blocks are made anew
TINY = 1e-300  # instead of a probability 0 in q log q
CHUNK = 504  # rows that stay in the cache between scores and gradient, as in `_layer`

__all__ = ["fits", "lean"]


def fits(problem: RowSums, state: State, solver: str) -> TypeGuard[Problem]:
    """Return whether `lean` can run a fit: chosen by "auto", little data in memory, stored scores, and a penalty."""
    if solver != "auto" or not isinstance(problem, Problem):
        return False
    design = problem.design
    if not (problem.small and design.in_memory and not design.sparse and problem.holds_scores and problem.holds_prob):
        return False
    if not (0 < state.kappa < np.inf and design.n_features and problem.class_mass.all()):
        return False
    width = design.n_features + 1
    return _exact(problem) or bool(width**3 * problem.n_classes <= CG_WORK)


def _exact(problem: Problem) -> bool:
    """Return whether the Hessian is summed up whole."""
    classes = 1 if problem.n_classes == 2 else problem.n_classes
    size = classes * (problem.design.n_features + int(problem.fit_intercept))
    return bool(size <= MOST_PARAMETERS and problem.design.n_rows * size**2 <= EXACT_WORK)


def lean(problem: Problem, state: State) -> bool:
    """Run the state to its end; False where the general solver has to go on from it."""
    table = Table(problem, state.kappa)
    exact = _exact(problem)
    point = table.evaluate(state.weight, state.bias)
    if not state.weight.any() and problem.offset is None:
        problem.target_sums_from(point.weight, table.prob[0], table.x[:, : problem.design.n_features])
    state.adopt(point, certify=bool(state.weight.any()))
    for _ in range(MOST_STEPS):
        if state.done():
            return True
        gradient = table.gradient(state, point)
        early = state.gain > 0.05 * state.objective
        found = table.newton(gradient) if exact else table.truncated(gradient, early=early)
        if found is None:
            return False
        d, gain = found
        slope = inner(gradient, d)
        if not slope < 0:
            return False
        p = problem.design.n_features
        dw, db = d[:, :p], (d[:, p] if problem.fit_intercept else np.zeros(len(d)))
        step = table.search(state, point, dw, db, slope, gain)
        if step == 0.0:
            table.return_to_start()
            return False
        state.move(step, dw, db, gain)
        point = table.at(state.weight, state.bias)
        objective = point.loss + 0.5 * state.kappa * inner(state.weight, state.weight)
        open_ = state.relative(state.bound, objective) > state.tol
        hopeful = open_ and table.hopeful(state, point, SURE if exact else HOPEFUL)
        if hopeful and table.level(state, point):
            point = table.at(state.weight, state.bias)
        state.adopt(point, certify=hopeful)
    return False


class Table:
    """The rows of a problem with everything that a step needs, at the point whose scores the problem stores."""

    def __init__(self, problem: Problem, kappa: float) -> None:
        self.problem, self.kappa = problem, kappa
        design, k, lanes = problem.design, problem.n_classes, backend.kernels().linear_lanes
        n, p = design.n_rows, design.n_features
        self.free, self.width, self.padded = problem.fit_intercept, p + int(problem.fit_intercept), max(p, lanes)
        self.ones = np.ones((n, max(self.width, self.padded)))  # rows, a column of ones for the intercept, zeros
        self.ones[:, :p] = design.transformed(design.x)
        self.ones[:, self.width :] = 0
        self.x = self.ones[:, : self.width]
        assert problem.scores is not None
        assert problem.prob is not None
        self.scores, self.prob = problem.scores, problem.prob
        self.start, self.along = np.empty_like(self.scores), np.empty_like(self.scores)
        columns = -(-k // lanes) * lanes
        self.weight, self.bias = np.zeros((self.padded, columns)), np.zeros(columns)
        self.total, self.sums = np.empty((k, self.padded)), np.empty(k)
        chunk = np.zeros((min(n, CHUNK), -(-k // 4) * 4))
        rows = self.ones[:, : self.padded]
        self.layer = backend.kernels().Linear(rows, self.weight, self.bias, k, chunk, self.total, self.sums)
        self.head = problem.head(self.scores, 0, n)
        self.penalty = np.full(self.width, kappa)
        self.penalty[p:] = 0
        self.single: Any = None
        self.by_feature: Float | None = None  # the rows, feature by feature: the exact Hessian scales them by row

    def _set(self, weight: Array, bias: Array) -> None:
        p, k = self.problem.design.n_features, self.problem.n_classes
        self.weight[:p, :k] = weight.T
        self.bias[:k] = bias

    def evaluate(self, weight: Float, bias: Float) -> LossAtPoint:
        """Store the scores of a point and return its loss and gradient."""
        self._set(weight, bias)
        self.layer.forward(self.scores)
        if self.problem.offset is not None:
            self.scores += self.problem.offset
        self.problem.passes += 0.5
        self.loss = self._sums()
        return self.at(weight, bias)

    def _sums(self) -> float:
        """Loss at the stored scores, with its gradient and the probabilities in their arrays."""
        self.total[...] = 0
        self.sums[...] = 0
        self.head.linear(self.scores, self.problem.losses, self.prob, self.layer, True)
        self.problem.passes += 0.5
        return float(self.problem.losses.sum())

    def at(self, weight: Float, bias: Float) -> LossAtPoint:
        """Return the evaluation at the stored point, which these parameters have."""
        g = self.total[:, : self.problem.design.n_features].copy()
        return LossAtPoint.of(self.loss, g, self.sums.copy(), weight, bias, self.problem.mass)

    def gradient(self, state: State, point: LossAtPoint) -> Float:
        """Return the gradient of loss and penalty (K, P + 1)."""
        g = np.empty((len(point.bias), self.width))
        p = point.weight.shape[1]
        np.multiply(state.weight, self.kappa, out=g[:, :p])
        g[:, :p] += point.weight
        if self.free:
            g[:, p] = point.bias
        return g

    def hopeful(self, state: State, point: LossAtPoint, most: float) -> bool:
        """Return whether the dual bound, with levelled intercepts, may end the fit: what it loses, to first order."""
        if state.exhausted():
            return True
        rest = point.weight + self.kappa * state.weight
        objective = point.loss + 0.5 * self.kappa * inner(state.weight, state.weight)
        return inner(rest, rest) <= most * 2 * self.kappa * state.tol * objective

    def level(self, state: State, point: LossAtPoint) -> bool:
        """Level the intercepts where the bound would lose much otherwise; returns whether they moved."""
        if not self.free or float((point.bias / self.problem.class_mass).max()) <= LEVEL * state.tol:
            return False
        moved = self.problem.settle(state.weight, state.bias, precise=False, known=True, enough=LEVEL * state.tol)
        if moved is None or not moved.any():
            return False
        state.bias = state.bias + moved
        self.loss = self._sums()
        return True

    def bound(self, point: LossAtPoint) -> float:
        """Return the dual value at the probabilities to which the direction leads, to first order.

        They are q = S (1 + u) with u = v − E_S[v] for its scores v.  Along a Newton direction Δ they are feasible, with
        V = κ (W + Δ), so that the bound lies below the objective by half the square of the decrement, and below that at
        the end of the step by no more than its third order.
        """
        problem, p, h = self.problem, self.problem.design.n_features, self.problem.curvature
        if problem.offset is not None:
            return -np.inf
        u = self.along - np.einsum("ij,ij->i", self.prob, self.along)[:, None]
        if not u.min() > -1:
            return -np.inf
        moved = self.prob * u
        q = self.prob + moved
        logs = np.log(np.maximum(q, TINY))
        logs *= q
        if h is None:
            entropy = -float(logs.sum())
        else:
            moved *= h[:, None]
            entropy = -float(h @ logs.sum(axis=1))
        weight, bias = point.weight + moved.T @ self.ones[:, :p], point.bias + moved.sum(axis=0)
        rounding = 4 * 2.0**-52 * (problem.mass * (1 + np.log(len(bias))) + inner(weight, weight) / self.kappa)
        return dual_value(problem, self.kappa, entropy - rounding, weight, bias)

    def search(self, state: State, point: LossAtPoint, d: Float, db: Float, slope: float, gain: float) -> float:
        """Move the stored point along a direction, as far as the objective falls; 0 where it does not.

        Raises the bound of the optimum where it may end the fit after the step.
        """
        self._set(d, db)
        self.layer.forward(self.along)
        self.problem.passes += 0.5
        self.start[...] = self.scores
        size = float(np.sqrt(np.vdot(self.along, self.along) / self.along.size))
        if not np.isfinite(size):
            return 0.0
        if gain * min(1.0, size) <= FORESEEN * state.tol * state.objective:
            state.bound = max(state.bound, self.bound(point))
        cross, square = inner(state.weight, d), inner(d, d)
        noise = 1e-14 * abs(state.loss)
        step = 1.0 if size <= FARTHEST else FARTHEST / size
        for _ in range(MOST_HALVINGS):
            np.multiply(self.along, step, out=self.scores)
            self.scores += self.start
            self.loss = self._sums()
            there = self.loss + 0.5 * self.kappa * (state.square + 2 * step * cross + step**2 * square)
            if there <= state.objective + 1e-4 * step * slope + noise:
                return step
            excess = there - state.objective - step * slope
            model = -slope * step**2 / (2 * excess) if 0 < excess < np.inf else 0.0
            step = min(0.5 * step, max(0.1 * step, model))
        return 0.0

    def return_to_start(self) -> None:
        """Store the scores before the last search again."""
        self.scores[...] = self.start
        self.loss = self._sums()

    # --- the exact Hessian -------------------------------------------------------------------------------------------

    def newton(self, gradient: Float) -> tuple[Float, float] | None:
        """Solve H d = −g; None where H is not positive definite in float64."""
        k, width, h = self.problem.n_classes, self.width, self.problem.curvature
        self.problem.passes += k * width / 4  # what the multiplications are worth
        if self.by_feature is None:
            self.by_feature = np.ascontiguousarray(self.x.T)
        x = self.by_feature
        if k == 2:
            v = self.prob[:, 0] * self.prob[:, 1]
            hessian = (x * (v if h is None else v * h)) @ x.T
            hessian.flat[:: width + 1] += 0.5 * self.penalty
            _, half, failed = lapack.dposv(hessian, 0.5 * (gradient[0] - gradient[1]), lower=1, overwrite_a=1)
            d = np.array([-0.5 * half, 0.5 * half])
        else:
            wide = (self.prob.T[:, None] * x).reshape(k * width, -1)
            weighted = wide if h is None else wide * h
            hessian = weighted @ wide.T
            np.negative(hessian, out=hessian)
            blocks = hessian.reshape(k, width, k, width)
            own = np.einsum("iaib->iab", blocks)
            own += (weighted @ x.T).reshape(k, width, width)
            diagonal = hessian.reshape(-1)[:: k * width + 1].reshape(k, width)
            diagonal += self.penalty
            # Nothing tells one constant for all classes from another: pin their sum, in the scale of each feature.
            shared = np.einsum("iaja->ija", blocks)
            shared += np.maximum(diagonal.mean(axis=0), 1e-300) / k
            _, found, failed = lapack.dposv(hessian, -gradient.ravel(), lower=1, overwrite_a=1)
            d = found.reshape(k, width)
        if failed or not np.isfinite(d).all():
            return None
        return d, -0.5 * inner(gradient, d)

    # --- conjugate gradients -----------------------------------------------------------------------------------------

    def truncated(self, gradient: Float, *, early: bool) -> tuple[Float, float] | None:
        """Solve H d = −g in float32 until an iteration adds little to what the quadratic model already gained."""
        if self.single is None:
            self.single = _Single(self)
        return self.single.solve(gradient, EARLY_RATE if early else RATE) if self.single.usable else None


class _Single:
    """Directions of a table in float32: its rows, the Hessian's products, and a block a class to precondition them."""

    def __init__(self, table: Table) -> None:
        self.table, problem = table, table.problem
        k = problem.n_classes
        with np.errstate(over="ignore"):
            self.rows = table.ones.astype(np.float32)
        self.weight, self.bias = table.weight.astype(np.float32), table.bias.astype(np.float32)
        self.total, self.sums = np.empty((k, table.padded), np.float32), np.empty(k)
        chunk = np.zeros((min(len(self.rows), CHUNK), -(-k // 4) * 4), np.float32)
        rows = self.rows[:, : table.padded]
        self.layer = backend.kernels().Linear(rows, self.weight, self.bias, k, chunk, self.total, self.sums)
        self.penalty = table.penalty.astype(np.float32)
        square = float(np.vdot(self.rows, self.rows)) / table.width
        self.usable = square < LARGEST
        self.least = MATTER * table.kappa / max(square, 1e-30)
        self.inverse = np.empty((k, table.width, table.width), np.float32)
        self.seen: Any = None
        self.prob: Any = None

    def product(self, d: Single) -> Single:
        """The Hessian of loss and penalty times a direction."""
        p, k = self.table.problem.design.n_features, len(d)
        self.weight[:p, :k] = d[:, :p].T
        if self.table.free:
            self.bias[:k] = d[:, p]
        self.total[...] = 0
        self.sums[...] = 0
        self.layer.curvature(self.prob, self.table.problem.curvature)
        out = d * self.penalty
        out[:, :p] += self.total[:, :p]
        if self.table.free:
            out[:, p] += self.sums
        self.table.problem.passes += 1
        return out

    def renew(self) -> None:
        """Make the blocks of the stored point, unless those that are held are near enough."""
        s = self.prob
        v = s * (1 - s)
        if self.table.problem.curvature is not None:
            v *= self.table.problem.curvature.astype(np.float32)[:, None]
        if self.seen is not None and float(np.abs(v - self.seen).sum()) <= CHANGE * float(self.seen.sum()):
            return
        self.seen = v
        even = not np.ptp(s, axis=0).any()  # at the start: no row is told from another
        share = v.sum(axis=0)
        for k in range(v.shape[1]):
            if k == 0 or not even:
                gram = self._gram(v[:, k], float(share[k]))
            self.inverse[k] = self._inverted(gram * (share[k] / share[0]) if even else gram)

    def _gram(self, weights: Single, total: float) -> Single:
        """Σ v x xᵀ of the rows that matter, at most `BLOCK_ROWS` a parameter of them."""
        kept = np.flatnonzero(weights > min(self.least, LIGHT * float(weights.max())))
        kept = kept[:: max(1, len(kept) // (BLOCK_ROWS * self.table.width))]
        chosen = weights[kept]
        part = self.rows[kept, : self.table.width]
        part *= np.sqrt(chosen * np.float32(total / max(float(chosen.sum()), 1e-30)))[:, None]
        return np.asarray(part.T @ part)

    def _inverted(self, gram: Single) -> Single:
        """The inverse of a block with its penalty; of its diagonal where rounding has made it indefinite."""
        gram.flat[:: len(gram) + 1] += self.penalty + np.float32(FLOOR * gram.diagonal().mean() + 1e-30)
        factor, failed = lapack.spotrf(gram, lower=1)
        if failed:
            return np.diag(1 / gram.diagonal())
        inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)  # its lower triangle, above which there are zeros
        inverse = inverse + inverse.T
        inverse.flat[:: len(gram) + 1] *= 0.5
        return np.asarray(inverse)

    def precondition(self, r: Single) -> Single:
        z = np.matmul(self.inverse, r[:, :, None])[:, :, 0]
        z -= z.mean(axis=0)
        return np.asarray(z)

    def solve(self, gradient: Float, rate: float) -> tuple[Float, float] | None:
        self.prob = self.table.prob.astype(np.float32)
        self.renew()
        r = -gradient.astype(np.float32)
        d = np.zeros_like(r)
        z = self.precondition(r)
        q, rz, gain = z, inner(r, z), 0.0
        for products in range(1, MOST_PRODUCTS + 1):
            if not 0 < rz < np.inf:
                break
            hq = self.product(q)
            bend = inner(q, hq)
            if not 0 < bend < np.inf:
                break
            step = np.float32(rz / bend)
            d += step * q
            r -= step * hq
            gained = 0.5 * float(step) * rz
            gain += gained
            if products * gained <= rate * gain:
                break
            z = self.precondition(r)
            fresh = inner(r, z)
            q = z + np.float32(fresh / rz) * q
            rz = fresh
        else:
            return None
        if not (np.isfinite(d).all() and d.any()):
            return None
        return d.astype(np.float64), gain
