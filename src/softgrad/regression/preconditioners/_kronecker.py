"""Preconditioner A ⊗ G + κ I: a covariance of the classes times a Gram matrix of the rows.

A = Σ a t (diag S − S Sᵀ), and G is a weighted Gram matrix of centred rows.  Their eigenvectors diagonalise A ⊗ G + κ I
for every κ, so one pair serves all values of C.  Exact at W = 0; Böhning (1992) has the bound it generalises.  Above
`MANY_CLASSES` classes A is taken as diag(π) − π πᵀ, whose shifted inverse is closed-form (Sherman-Morrison) for each
eigenvalue of G.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad.regression.rows._row_sums import RowSums

Array = NDArray[Any]
Float = NDArray[np.float64]

MANY_CLASSES = 2000
SAMPLE_ELEMENTS = 1 << 21  # probabilities looked at together
SAMPLE = 4  # rows of the Gram matrix for each feature

__all__ = ["Kronecker"]


class Kronecker:
    """A ⊗ G + κ I at the stored point of a problem."""

    light = False

    def __init__(self, problem: RowSums, seed: int = 0) -> None:
        design, k = problem.design, problem.n_classes
        n, p = design.n_rows, design.n_features
        count = min(n, max(SAMPLE * p, 1024))
        index = np.sort(np.random.default_rng(seed).choice(n, count, replace=False)) if count < n else np.arange(n)
        x = design.rows(index, np.float32)
        self.closed = k > MANY_CLASSES
        h = problem.row_curvature(index)
        spread, a = np.empty(count), np.zeros((0, 0) if self.closed else (k, k))
        step = max(1, SAMPLE_ELEMENTS // k)
        for lo in range(0, count, step):
            part = slice(lo, lo + step)
            prob = problem.probabilities(index[part], x[part]).astype(np.float64)
            spread[part] = h[part] * np.maximum(1 - np.einsum("ij,ij->i", prob, prob), 1e-12)
            if not self.closed:
                a += np.diag(h[part] @ prob) - (prob * h[part, None]).T @ prob
        self.index, self.spread, self.n_rows = index, float(spread.sum()), n
        # What it costs, in passes: an eigenproblem runs at a tenth of the speed of a product.
        self.price = (110 * p**3 + 8 * count * p * p + 100 * min(k, MANY_CLASSES) ** 3) / (4.0 * n * p * k)
        share = spread / spread.sum() if spread.sum() > 0 else np.full(count, 1 / count)
        self.center: Float = np.asarray(share @ x.astype(np.float64)) if problem.fit_intercept else np.zeros(p)
        centred = (x - self.center.astype(np.float32)) * np.sqrt(share).astype(np.float32)[:, None]
        gram = (centred.T @ centred).astype(np.float64)
        values, vectors = linalg.eigh(gram, check_finite=False)
        self.g, self.q = np.maximum(values, 0.0), vectors.astype(np.float32)
        scale = problem.mass / max(float(h.sum()), 1e-300)
        if self.closed:
            self.pi = problem.class_mass.copy()
            trace = float(self.pi.sum() - (self.pi**2).sum() / self.pi.sum())
            self.ratio = scale * float(spread.sum()) / max(trace, 1e-300)
        else:
            values, vectors = linalg.eigh(scale * a, check_finite=False)
            self.a, self.u = np.maximum(values, 0.0), vectors.astype(np.float32)

    @property
    def typical(self) -> float:
        """The mean eigenvalue without a penalty."""
        of_class = float(self.pi.mean() * self.ratio) if self.closed else float(self.a.mean())
        return of_class * float(self.g.mean())

    def is_stale(self, problem: RowSums) -> bool:
        """Whether the curvature has changed so much since that the shape of A ⊗ G no longer tells."""
        if not problem.holds_scores:
            return True
        n = problem.design.n_rows
        index = self.index if n == self.n_rows else np.linspace(0, n - 1, min(n, len(self.index))).astype(np.intp)
        now = problem.spread(index) / len(index)
        return not 0.75 <= now * len(self.index) / self.spread <= 1.33

    def set_penalty(self, kappa: float, damping: float = 0.0) -> None:
        """Take another κ, and a damping of weights and intercepts alike."""
        kappa += damping
        self.damping = damping
        if self.closed:
            self.kappa = max(kappa, 1e-12 * float(self.g.max(initial=0.0)) * float(self.pi.max()))
            return
        product = np.outer(self.a, self.g)
        floor = 1e-10 * float(product.max(initial=0.0)) + 1e-30
        self.inverse = (1 / np.maximum(product + kappa, floor)).astype(np.float32)
        large = self.a > 1e-9 * self.a.max(initial=0.0)
        self.of_bias = np.where(large, 1 / np.where(large, self.a + damping, 1.0), 0.0)

    def __call__(self, weight: Array, bias: Float) -> tuple[Array, Float]:
        if self.closed:
            return self._closed(weight, bias)
        w = self.u @ (((self.u.T @ weight) @ self.q) * self.inverse) @ self.q.T
        u = self.u.astype(np.float64)
        return w, u @ (self.of_bias * (u.T @ bias))

    def _closed(self, weight: Array, bias: Float) -> tuple[Array, Float]:
        share = self.pi / self.pi.sum()
        turned = weight @ self.q
        g = self.g * self.ratio
        diagonal = np.outer(self.pi, g) + self.kappa  # (D − c u uᵀ)⁻¹ with u = π, c = g / Σπ, for each column
        part = turned / diagonal
        along = share @ part
        slope = (share[:, None] * self.pi[:, None] / diagonal).sum(axis=0)
        part += (self.pi[:, None] / diagonal) * (g * along / np.maximum(1 - g * slope, 1e-12))
        b = bias / (self.ratio * self.pi + self.damping)
        return (part @ self.q.T).astype(np.float32), b - b.mean()

    def root(self, weight: Float, *, inverse: bool = False) -> Float:
        """The symmetric square root of the inverse, or (``inverse``) its inverse: a change of variables for L-BFGS."""
        if self.closed:
            return weight
        scale = np.sqrt(self.inverse.astype(np.float64))
        u, q = self.u.astype(np.float64), self.q.astype(np.float64)
        turned = (u.T @ weight) @ q
        return np.asarray(u @ (turned / scale if inverse else turned * scale) @ q.T)
