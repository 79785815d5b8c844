"""Choice of a preconditioner of the Hessian  Σ_i a_i t_i (diag S_i − S_i S_iᵀ) ⊗ x_i x_iᵀ + κ I.

For dense rows: diagonal blocks, one for each class (`Blocks`), where they fit the memory and the penalty is not most of
the curvature (`Scaled`); else a Kronecker product (`Kronecker`).  For sparse rows, whose Gram matrix would be P × P:
the diagonal (`Diagonal`), with blocks for the features that weigh most where probabilities are stored (`Heavy`).

All act on (W, b') with the intercept b' = b + W μ of rows centred at μ, which uncouples the two; the blocks hold the
intercept.
"""

from __future__ import annotations

from typing import Any

from softgrad.regression.preconditioners._class_blocks import Blocks
from softgrad.regression.preconditioners._diagonal import MATTER, Diagonal, Heavy, Scaled
from softgrad.regression.preconditioners._kronecker import Kronecker
from softgrad.regression.rows._row_sums import RowSums

BLOCK_BYTES = 64 << 20  # of the blocks of all classes together

__all__ = ["preconditioner_of"]


def preconditioner_of(problem: RowSums, kappa: float, sample: float) -> Any:
    """Return the preconditioner for a problem at its stored point; ``sample``: rows of a block for each feature."""
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
