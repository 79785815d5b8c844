"""Directions of Newton's method on the exact Hessian, for few parameters: its price grows with their square.

Of many rows a sample is taken, by how much each adds (`_sample`): a direction need not be better than the quadratic
model that it is of, and 64 rows a parameter leave an error of about an eighth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad.regression._design import Slot
from softgrad.regression._newton import Direction
from softgrad.regression._problem import Problem
from softgrad.regression._sample import draw
from softgrad.regression._state import State

Array = NDArray[Any]
Float = NDArray[np.float64]

SAMPLE = 64  # rows for each parameter
BLOCK_NUMBERS = 1 << 17  # of the products of probabilities and features at a time

__all__ = ["Exact", "hessian"]


class Exact:
    """Solves for directions."""

    def __init__(self, problem: Problem, state: State) -> None:
        self.problem, self.state = problem, state
        self.squares: Array | None = None
        design = problem.design
        self.width = design.n_features + int(problem.fit_intercept)
        self.count = SAMPLE * problem.n_classes * self.width
        self.sampled = design.in_memory and problem.prob is not None and design.n_rows > 2 * self.count

    def __call__(self, gradient: tuple[Float, Float], damping: float) -> Direction:
        problem, kappa = self.problem, self.state.kappa
        k, p, width = problem.n_classes, problem.design.n_features, self.width
        h = self._sample() if self.sampled else hessian(problem)
        diagonal = np.arange(k * width).reshape(k, width)
        typical = max(float(np.trace(h)) / len(h), 1e-300)
        h[diagonal[:, :p].ravel(), diagonal[:, :p].ravel()] += kappa
        h[diagonal.ravel(), diagonal.ravel()] += damping
        for a in range(k):  # nothing tells one constant for all classes from another: pin their sum
            for b in range(k):
                h[diagonal[a], diagonal[b]] += typical / k
        gw, gb = gradient
        g = np.concatenate([gw, gb[:, None]], axis=1) if problem.fit_intercept else gw
        d = _solve(h, -g.ravel(), typical).reshape(k, width)
        d -= d.mean(axis=0)
        return Direction(
            np.ascontiguousarray(d[:, :p]),
            d[:, p].copy() if problem.fit_intercept else np.zeros(k),
            -0.5 * float(np.vdot(g, d)),
            typical,
        )

    def _sample(self) -> Float:
        problem, design = self.problem, self.problem.design
        assert problem.prob is not None
        if self.squares is None:
            tiles = [design.rows(np.arange(lo, hi), np.float32) for lo, hi in design.edges(design.n_rows)]
            mean = np.sum([np.einsum("ij,ij->j", x, x, dtype=np.float64) for x in tiles], axis=0) / design.n_rows
            share = np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0).astype(np.float32)
            self.squares = np.concatenate([(x * x) @ share for x in tiles]) / design.n_features + 1
        adds = np.maximum(1 - np.einsum("ij,ij->i", problem.prob, problem.prob), 1e-12) * self.squares
        index, weight = draw(adds if problem.curvature is None else adds * problem.curvature, self.count)
        slot = _empty(Slot(design, problem.n_classes), problem.n_classes, self.width)
        _add(slot, design.rows(index, np.float64), problem.prob[index], weight / adds[index], self.width)
        problem.passes += problem.n_classes * self.width / 4 * len(index) / design.n_rows
        return _whole([slot], problem.n_classes, self.width)


def hessian(problem: Problem) -> Float:
    """The Hessian of the loss at the stored point, dense: parameters (W_k, b_k) class by class, in float64."""
    k, width = problem.n_classes, problem.design.n_features + int(problem.fit_intercept)

    def work(slot: Slot, lo: int, hi: int, x: Any) -> None:
        if slot.hessian is None:
            _empty(slot, k, width)
        h = None if problem.curvature is None else problem.curvature[lo:hi]
        _add(slot, x, problem.prob_of(slot, x, lo, hi), h, width)

    for slot in problem.slots:
        slot.hessian = slot.grams = None
    slots = problem.walk(work, problem.dtype)
    problem.passes += k * width / 4  # in products with the rows, what the multiplications are worth
    return _whole(slots, k, width)


def _empty(slot: Slot, k: int, width: int) -> Slot:
    slot.hessian, slot.grams = np.zeros((k * width, k * width)), np.zeros((width, k * width))
    return slot


def _add(slot: Slot, x: Array, prob: Array, h: Array | None, width: int) -> None:
    """−Σ (S_i ⊗ x_i)(S_i ⊗ x_i)ᵀ of some rows, and the Gram matrices Σ S_ik x_i x_iᵀ of the diagonal blocks."""
    k = prob.shape[1]
    step = max(16, BLOCK_NUMBERS // (k * width))
    for lo in range(0, len(x), step):
        part = slice(lo, min(lo + step, len(x)))
        rows = part.stop - part.start
        wide = slot.scratch("wide", rows, width, np.float64)
        wide[:, : x.shape[1]] = x[part]
        wide[:, x.shape[1] :] = 1
        if h is not None:
            wide *= np.sqrt(h[part])[:, None]
        outer = slot.scratch("outer", rows, k * width, np.float64)
        np.multiply(prob[part].astype(np.float64)[:, :, None], wide[:, None, :], out=outer.reshape(rows, k, width))
        slot.hessian -= np.matmul(outer.T, outer)
        slot.grams += np.matmul(wide.T, outer)


def _whole(slots: list[Slot], k: int, width: int) -> Float:
    total, grams = np.zeros((k * width, k * width)), np.zeros((width, k * width))
    for slot in slots:
        if slot.hessian is not None:
            total += slot.hessian
            grams += slot.grams
            slot.hessian = slot.grams = None
    for j in range(k):
        block = slice(j * width, (j + 1) * width)
        total[block, block] += grams[:, block]
    return total


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
