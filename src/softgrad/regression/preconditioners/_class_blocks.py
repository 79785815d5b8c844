"""The diagonal blocks of the Hessian, Σ_i v_ik x_i x_iᵀ + κ I with v_ik = a_i t_i S_ik (1 − S_ik), one for each class.

They know which rows still matter to which class, and where classes are nearly told apart, a tenth of the products is
enough with them; but S changes, and they have to be made anew.  Each is of a sample of the rows (`_class_grams`).

A block is a Gram matrix in float32, and in its other triangle its Cholesky factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad.regression.rows._class_grams import each
from softgrad.regression.rows._row_sums import RowSums

Array = NDArray[Any]
Float = NDArray[np.float64]

SEEN_ROWS = 1024  # by which it is told how much the weights changed
WORTH = 1 << 21  # multiplications of solves that are worth waking threads
FLOOR = 1e-6  # of the mean diagonal: what float32 leaves unknown of a Gram matrix

__all__ = ["Blocks"]


class Blocks:
    """The blocks at the stored point of a problem, for dense rows or some dense features of sparse ones."""

    light = False  # whether the penalty is most of the curvature

    def __init__(self, problem: RowSums, kappa: float, sample: float, features: Array | None = None) -> None:
        design, k = problem.design, problem.n_classes
        n, p = design.n_rows, design.n_features if features is None else features.shape[1]
        self.free, self.width = problem.fit_intercept, p + int(problem.fit_intercept)
        width, self.n_rows = self.width, n
        index = _spread_over(n)
        self.seen = self._seen(problem)

        some = (design.rows(index, np.float32) if features is None else features[index]).astype(np.float64)
        # Features far from zero would leave float32 nothing of their variance.
        self.center: Float = some.mean(axis=0) if self.free and features is None else np.zeros(p)
        square = 1.0 + float(np.mean(np.einsum("ij,ij->i", some - self.center, some - self.center)))
        even = not np.ptp(problem.probabilities(index), axis=0).any()
        self.grams, counts = problem.class_grams(self.center, square, kappa, sample, even=even, features=features)
        self.n_threads = problem.n_threads
        self.diagonal = np.einsum("kii->ki", self.grams).astype(np.float64)
        self.floor = FLOOR * np.maximum(self.diagonal.mean(axis=1, keepdims=True), 1e-30)
        # What it costs, in passes: multiplications, and what is done once a class, at the speeds of one processor.
        work = float(counts.sum()) * width**2 / 80e9
        work += k * (width**3 / (60e9 * max(1.0, width / 256)) + 1e-4 + 4e-9 * n)
        self.price = work / (2.0 * n * p * k / 38e9 if features is None else 2.0 * design.stored * k / 5.4e9)
        self.penalty: float | None = None

    @staticmethod
    def _seen(problem: RowSums) -> Array:
        prob = problem.probabilities(_spread_over(problem.design.n_rows)).astype(np.float64)
        return np.asarray(prob * (1 - prob))

    @property
    def typical(self) -> float:
        """The mean eigenvalue without a penalty."""
        return float(self.diagonal.mean())

    def is_stale(self, problem: RowSums) -> bool:
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

        each(len(self.grams), factor, self.n_threads)

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

        each(len(right), solve, self.n_threads if right.size * self.width > WORTH else 1)
        right -= right.mean(axis=0)
        return right[:, :p].copy(), (right[:, p].astype(np.float64) if self.free else np.zeros(len(bias)))


def _spread_over(n: int) -> Array:
    return np.linspace(0, n - 1, min(n, SEEN_ROWS)).astype(np.intp)


def _mirror(gram: Array) -> None:
    """Make a matrix symmetric from the triangle that keeps it."""
    lower = np.tril(gram, -1)
    gram[...] = lower + lower.T
