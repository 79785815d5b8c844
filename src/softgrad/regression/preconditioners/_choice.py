"""Preconditioners of the Hessian  Σ_i a_i t_i (diag S_i − S_i S_iᵀ) ⊗ x_i x_iᵀ + κ I.

Kronecker: the class covariance A = Σ a t (diag S − S Sᵀ) times one weighted Gram matrix of centred rows, G.  Their
eigenvectors diagonalise A ⊗ G + κ I for every κ, so one pair serves all values of C.  Exact at W = 0; Böhning (1992)
has the bound it generalises.  Above `MANY_CLASSES` classes A is taken as diag(π) − π πᵀ, whose shifted inverse is
closed-form (Sherman-Morrison) for each eigenvalue of G.

Diagonal: for sparse rows, where G would be p × p.

Scaled: one number a class, where the penalty is most of the curvature.

Blocks (_class_blocks.py): the diagonal blocks of the Hessian, one for each class.  Heavy: for sparse rows, both.

All act on (W, b') with the intercept b' = b + W μ of rows centred at μ, which uncouples the two; the blocks
hold the intercept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad.regression.preconditioners._class_blocks import Blocks
from softgrad.regression.rows._row_sums import RowSums

Array = NDArray[Any]
Float = NDArray[np.float64]

MANY_CLASSES = 2000
SAMPLE_ELEMENTS = 1 << 21  # probabilities looked at together
SAMPLE = 4  # rows of the Gram matrix for each feature

BLOCK_BYTES = 64 << 20  # of the blocks of all classes together
MATTER = 16.0  # a trace beside the penalty below which rows do not matter to a preconditioner
SEEN_ROWS = 1024

__all__ = ["Blocks", "Diagonal", "Heavy", "Kronecker", "Scaled", "preconditioner_of"]


def preconditioner_of(problem: RowSums, kappa: float, sample: float) -> Any:
    """The preconditioner for a problem at its stored point; ``sample``: rows of a block for each feature."""
    design, width = problem.design, problem.design.n_features + 1
    if design.sparse:
        if not design.in_memory or not problem.holds_prob:
            return Diagonal(problem)
        diagonal = Diagonal(problem)
        if diagonal.trace <= MATTER * kappa:
            diagonal.most, diagonal.light = MATTER, True
            return diagonal
        return Heavy(problem, kappa, sample, diagonal)
    if design.in_memory and problem.holds_prob and 4 * problem.n_classes * width**2 <= BLOCK_BYTES:
        scaled = Scaled(problem, kappa)
        return Blocks(problem, kappa, sample) if scaled.is_stale(problem) else scaled
    return Kronecker(problem)


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


class Scaled:
    """One number a class: where the penalty is most of the curvature, what is made of rows is not worth its price."""

    price, light = 0.0, True  # the penalty makes the loss nearly quadratic

    def __init__(self, problem: RowSums, kappa: float) -> None:
        n = problem.design.n_rows
        x = problem.design.rows(np.linspace(0, n - 1, min(n, SEEN_ROWS)).astype(np.intp), np.float64)
        self.center: Float = x.mean(axis=0) if problem.fit_intercept else np.zeros(problem.design.n_features)
        self.square = float(np.mean(np.einsum("ij,ij->i", x - self.center, x - self.center)))
        self.mass = problem.class_curvature()
        self.set_penalty(kappa)

    @property
    def typical(self) -> float:
        """The mean eigenvalue without a penalty."""
        return float(self.mass.mean()) * self.square / len(self.center)

    def is_stale(self, problem: RowSums) -> bool:
        """Whether the rows have come to matter beside the penalty, by the traces of the Hessian's blocks."""
        return float(problem.class_curvature().max()) * self.square > MATTER * self.penalty

    def set_penalty(self, kappa: float, damping: float = 0.0) -> None:
        """Take another κ, and a damping of weights and intercepts alike."""
        self.penalty = kappa + damping
        self.inverse = 1 / (self.mass * (self.square / len(self.center)) + self.penalty)
        self.of_bias = 1 / (np.maximum(self.mass, 1e-12 * self.mass.max(initial=1e-300)) + damping)

    def __call__(self, weight: Array, bias: Float) -> tuple[Array, Float]:
        b = bias * self.of_bias
        return weight * self.inverse.astype(weight.dtype)[:, None], b - b.mean()


class Diagonal:
    """The diagonal of the Hessian, from the stored probabilities and squared features."""

    def __init__(self, problem: RowSums) -> None:
        self.center = np.zeros(problem.design.n_features)
        diagonal, self.bias = problem.hessian_diagonal()
        self.diagonal = diagonal.astype(np.float64, copy=False)
        self.trace = float(self.diagonal.sum(axis=1).max())  # of one class
        self.most = np.inf  # how many times the penalty that may be: beyond, blocks are worth their price
        self.penalty = np.inf
        self.price, self.light = 0.5, False
        self.spread = np.inf if not problem.holds_prob else problem.spread() / problem.design.n_rows

    @property
    def typical(self) -> float:
        """The mean eigenvalue without a penalty."""
        return float(self.diagonal.mean())

    def is_stale(self, problem: RowSums) -> bool:
        """Whether the curvature has changed since, or the penalty."""
        if self.trace > self.most * self.penalty:
            return True
        return not problem.holds_prob or not 0.75 <= problem.spread() / problem.design.n_rows / self.spread <= 1.33

    def set_penalty(self, kappa: float, damping: float = 0.0) -> None:
        """Take another κ; a hundredth of the identity keeps rare features from dominating (Hsia et al. 2018)."""
        kappa += damping
        self.penalty = kappa
        typical = float(self.diagonal.mean()) + kappa
        self.inverse = (1 / (0.99 * (self.diagonal + kappa) + 0.01 * typical)).astype(np.float32)
        self.of_bias = 1 / (np.maximum(self.bias, 1e-12 * self.bias.max(initial=1e-300)) + damping)

    def __call__(self, weight: Array, bias: Float) -> tuple[Array, Float]:
        b = bias * self.of_bias
        return weight * self.inverse, b - b.mean()


class Heavy:
    """Sparse rows: blocks for the features that weigh most, which nearly all rows have, and the diagonal for the rest.

    The few hundred most frequent words are what couples the others: with their blocks a fifth to a half of the products
    are enough.
    """

    light = False

    def __init__(self, problem: RowSums, kappa: float, sample: float, diagonal: Diagonal | None = None) -> None:
        self.rest = Diagonal(problem) if diagonal is None else diagonal
        self.center = self.rest.center
        self.top, dense = problem.design.heavy()
        self.blocks = Blocks(problem, kappa, sample, dense)
        self.price = self.rest.price + self.blocks.price

    @property
    def typical(self) -> float:
        """The mean eigenvalue without a penalty."""
        return self.rest.typical

    def is_stale(self, problem: RowSums) -> bool:
        """Whether the weights of the rows have changed since."""
        return self.blocks.is_stale(problem)

    def set_penalty(self, kappa: float, damping: float = 0.0) -> None:
        """Take another κ, and a damping of weights and intercepts alike."""
        self.rest.set_penalty(kappa, damping)
        self.blocks.set_penalty(kappa, damping)

    def __call__(self, weight: Array, bias: Float) -> tuple[Array, Float]:
        w = weight * self.rest.inverse
        w[:, self.top], b = self.blocks(weight[:, self.top], bias)
        return w, b
