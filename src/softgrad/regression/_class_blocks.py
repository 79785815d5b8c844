"""The diagonal blocks of the Hessian, Σ_i v_ik x_i x_iᵀ + κ I with v_ik = a_i t_i S_ik (1 − S_ik), one for each class.

They know which rows still matter to which class, and where classes are nearly told apart, a tenth of the products is
enough with them; but S changes, and they have to be made anew.  Each is of rows drawn with probabilities proportional
to v_ik (`_sample`: the rows that weigh much all enter), as many as there are dimensions that matter beside κ, twice.

A block is a Gram matrix in float32, and in its other triangle its Cholesky factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad._threads import run_blocks
from softgrad.regression._problem import Problem
from softgrad.regression._sample import draw

Array = NDArray[Any]
Float = NDArray[np.float64]

PARTS = 8  # of the classes, for threads
SEEN_ROWS = 1024  # by which it is told how much the weights changed
FEWEST = 64  # rows of a class
FLOOR = 1e-6  # of the mean diagonal: what float32 leaves unknown of a Gram matrix

__all__ = ["Blocks"]


class Blocks:
    """The blocks at the stored point of a problem, for dense rows or some dense features of sparse ones."""

    light = False  # whether the penalty is most of the curvature

    def __init__(self, problem: Problem, kappa: float, sample: float, features: Array | None = None) -> None:
        design, k = problem.design, problem.n_classes
        n, p = design.n_rows, design.n_features if features is None else features.shape[1]
        assert problem.prob is not None
        prob = problem.prob
        self.free, self.width = problem.fit_intercept, p + int(problem.fit_intercept)
        width, self.n_rows = self.width, n
        index = _spread_over(n)
        self.seen = self._seen(problem)

        def rows_of(index: Array) -> Array:
            return design.rows(index, np.float32) if features is None else features[index]

        some = rows_of(index).astype(np.float64)
        # Features far from zero would leave float32 nothing of their variance.
        self.center: Float = some.mean(axis=0) if self.free and features is None else np.zeros(p)
        moved = self.center.astype(np.float32)
        square = 1.0 + float(np.mean(np.einsum("ij,ij->i", some - self.center, some - self.center)))

        def drawn(v: Array, count: int) -> tuple[Array, Array]:
            """Rows and the roots of their weights."""
            index, weight = draw(v, count)
            return rows_of(index) - moved, np.sqrt(weight).astype(np.float32, copy=False)

        h = 1.0 if problem.curvature is None else problem.curvature
        if not np.ptp(prob[index], axis=0).any():  # no row is told from another: one Gram matrix
            counts = np.full(k, 8 * width / k)
            x, root = drawn(np.broadcast_to(np.asarray(h, dtype=np.float64), n), max(512, 8 * width))
            share = prob[0].astype(np.float64) * (1 - prob[0].astype(np.float64))
            self.grams = _gram(x, root, width)[None] * share.astype(np.float32)[:, None, None]
        else:
            self.grams = np.empty((k, width, width), np.float32)
            counts = np.zeros(k)

            def make(j: int) -> None:
                v = prob[:, j] - prob[:, j] ** 2
                if problem.curvature is not None:
                    v *= problem.curvature
                # No more dimensions matter than the trace has of κ: so many rows tell them.
                matter = float(v.sum(dtype=np.float64)) * square / kappa if kappa > 0 else np.inf
                counts[j] = min(n, max(FEWEST, int(sample * min(width, matter))))
                self.grams[j] = _gram(*drawn(v, int(counts[j])), width)

            _each(k, make, problem.n_threads)
        self.n_threads = problem.n_threads
        self.diagonal = np.einsum("kii->ki", self.grams).astype(np.float64)
        self.floor = FLOOR * np.maximum(self.diagonal.mean(axis=1, keepdims=True), 1e-30)
        # What it costs, in passes: multiplications, and what is done once a class, at the speeds of one processor.
        work = float(counts.sum()) * width**2 / 80e9
        work += k * (width**3 / (60e9 * max(1.0, width / 256)) + 1e-4 + 4e-9 * n)
        self.price = work / (2.0 * n * p * k / 38e9 if features is None else 2.0 * design.x.nnz * k / 5.4e9)
        self.penalty: float | None = None

    @staticmethod
    def _seen(problem: Problem) -> Array:
        prob = problem.probabilities(_spread_over(problem.design.n_rows)).astype(np.float64)
        return np.asarray(prob * (1 - prob))

    @property
    def typical(self) -> float:
        """The mean eigenvalue without a penalty."""
        return float(self.diagonal.mean())

    def is_stale(self, problem: Problem) -> bool:
        """Whether the weights of the rows have changed since."""
        now, then = self._seen(problem), self.seen
        if problem.design.n_rows != self.n_rows:  # another problem's: a fold's, of which only the classes are the same
            now, then = now.mean(axis=0), then.mean(axis=0)
        return float(np.abs(now - then).sum()) > 0.15 * float(then.sum())

    def set_penalty(self, kappa: float, damping: float = 0.0) -> None:
        """Take another κ, and a damping of weights and intercepts alike."""
        if self.penalty is not None and self.penalty / 4 <= kappa + damping <= 4 * self.penalty:
            return  # near enough to precondition with
        p, again = self.width - int(self.free), self.penalty is not None
        self.penalty = kappa + damping

        def factor(j: int) -> None:
            gram = self.grams[j]
            if again:
                _mirror(gram)
            diagonal = self.diagonal[j] + self.floor[j] + damping
            diagonal[:p] += kappa
            for ridge in (0.0, 1e-5, 1e-3, 1e-1):
                np.fill_diagonal(gram, diagonal + ridge * self.diagonal[j].mean())
                if linalg.lapack.spotrf(gram.T, lower=1, clean=0, overwrite_a=1)[1] == 0:
                    return
                _mirror(gram)
            gram[...] = np.diag(np.sqrt(diagonal))  # rounding made it indefinite: the diagonal alone

        _each(len(self.grams), factor, self.n_threads)

    def __call__(self, weight: Array, bias: Float) -> tuple[Array, Float]:
        p = weight.shape[1]
        right = np.empty((len(weight), self.width), np.float32)
        right[:, :p] = weight
        if self.free:
            right[:, p] = bias
        right -= right.mean(axis=0)  # what all classes share changes nothing

        def solve(j: int) -> None:
            factor = self.grams[j].T
            half = linalg.blas.strsv(factor, right[j], lower=1, overwrite_x=1)
            right[j] = linalg.blas.strsv(factor, half, lower=1, trans=1, overwrite_x=1)

        _each(len(right), solve, self.n_threads)
        right -= right.mean(axis=0)
        return right[:, :p].copy(), (right[:, p].astype(np.float64) if self.free else np.zeros(len(bias)))


def _spread_over(n: int) -> Array:
    return np.linspace(0, n - 1, min(n, SEEN_ROWS)).astype(np.intp)


def _each(count: int, work: Any, n_threads: int) -> None:
    parts = min(count, PARTS)

    def part(i: int) -> None:
        for j in range(count * i // parts, count * (i + 1) // parts):
            work(j)

    run_blocks(part, parts, n_threads)


def _gram(x: Array, root: Array, width: int) -> Array:
    """The Gram matrix of weighted rows, with a column of ones where there is an intercept."""
    wide = np.empty((len(x), width), np.float32)
    wide[:, : x.shape[1]] = x
    wide[:, x.shape[1] :] = 1
    wide *= root[:, None]
    return np.asarray(np.matmul(wide.T, wide))


def _mirror(gram: Array) -> None:
    """Make a matrix symmetric from the triangle that keeps it."""
    lower = np.tril(gram, -1)
    gram[...] = lower + lower.T
