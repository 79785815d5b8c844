"""Diagonal preconditioners: one number a class; the Hessian's diagonal; the same with blocks for heavy features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.preconditioners._class_blocks import Blocks
from softgrad.regression.rows._row_sums import RowSums

Array = NDArray[Any]
Float = NDArray[np.float64]

MATTER = 16.0  # a trace beside the penalty below which rows do not matter to a preconditioner
SEEN_ROWS = 1024

__all__ = ["MATTER", "Diagonal", "Heavy", "Scaled"]


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
