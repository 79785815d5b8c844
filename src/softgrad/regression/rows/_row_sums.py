"""What a solver asks of the rows: sums over them, and nothing else.

`Problem` has the rows here; another class may have them elsewhere, a part in each place.  Every method is a map over
the rows and a sum, so that the sums of the parts add up to those of the whole, and the solvers, their certificate and
their preconditioners are written once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softgrad.regression.rows._layout import inner

Array = NDArray[Any]
Float = NDArray[np.float64]

MOST_LEVELLINGS = 6
LEVEL, LEVEL_PRECISE = 3e-7, 1e-15  # of a class's mass, by the type of the scores

__all__ = ["LossAtPoint", "RowSums", "levelled"]


class LossAtPoint(NamedTuple):
    """The unpenalised loss at a point: Σ a ℓ, its gradient, and what the dual objective takes from the rows.

    ``entropy`` is Σ_i a_i t_i H(S_i), the entropies of the predictions, plus Σ_i R_i·offset_i, less what float64 may
    have rounded: it is part of a lower bound.
    """

    loss: float
    weight: Float  # (K, P)
    bias: Float  # (K,)
    entropy: float

    @classmethod
    def of(cls, loss: float, g: Float, gb: Float, weight: Float, bias: Float, mass: float) -> LossAtPoint:
        """The evaluation at a point of which the sums over the rows are known."""
        # Σ a t H(S) + Σ R·offset = Σ a ℓ − Σ_i R_i·(z_i − offset_i) with R = a (t S − y): no logarithm, no more passes.
        along = inner(g, weight) + float(gb @ bias)
        # log Σ exp of a confident row is rounded as 1 is, however little it differs from 0.
        # Σ |g w| ≤ ‖g‖ ‖w‖, and they are equal at the optimum, where g = −κ w.
        most = math.sqrt(inner(g, g)) * math.sqrt(inner(weight, weight)) + float(np.abs(gb) @ np.abs(bias))
        rounding = 4 * 2.0**-52 * (mass + abs(loss) + most)
        return cls(loss, g, gb, loss - along - rounding)


class RowSums(ABC):
    """Rows with their targets and weights, and a point at which they are looked at: the stored one.

    Attributes
    ----------
    design : Any
        What is known of X without reading it: ``n_rows``, ``n_features``, ``sparse``, ``dtype``, ``in_memory``,
        ``zeros(k)``, ``reach()``, ``column_reach()``; and ``rows(index, dtype)``, some rows.
    n_classes, fit_intercept
        Of the model.
    class_mass, mass : array (K,), float
        Σ_i a_i y_ik with the effective targets, and their sum Σ_i a_i t_i.
    small, dtype : bool, type
        Whether all is computed in float64; the type of what is not asked to be precise.
    passes : float
        Products with the rows so far.
    n_threads : int
        Threads of whoever works here.
    """

    design: Any
    n_classes: int
    fit_intercept: bool
    class_mass: Float
    mass: float
    small: bool
    dtype: Any
    passes: float
    n_threads: int

    # --- at a point --------------------------------------------------------------------------------------------------

    @abstractmethod
    def settle(self, weight: Float, bias: Float, *, precise: bool, known: bool, enough: float = 0.0) -> Float | None:
        """Store the scores of a point (unless ``known``) and level its intercepts; returns how far these moved.

        None: nothing is stored, and nothing moved.
        """

    @abstractmethod
    def gradient(self, weight: Float, bias: Float, *, precise: bool = False, known: bool = False) -> LossAtPoint:
        """Loss and gradient at a point, which becomes the stored one; ``known``: its scores are stored already."""

    @abstractmethod
    def product(self, weight: Array, bias: Array) -> tuple[Float, Float]:
        """The Hessian of the loss at the stored point times a direction."""

    @abstractmethod
    def direction(self, weight: Array, bias: Array) -> float:
        """Take a direction's scores; returns the root of their mean square: what a step does to most rows."""

    @abstractmethod
    def line(self, step: float) -> float:
        """Σ a ℓ at a step along the direction."""

    @abstractmethod
    def advance(self, step: float) -> None:
        """Move the stored scores by a step along the direction."""

    # --- of the data -------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def offset_range(self) -> float:
        """The largest difference between two offsets of a row; 0 without offsets."""

    @abstractmethod
    def target_sums(self) -> Float:
        """Σ_i a_i y_i x_iᵀ (K, P)."""

    def gram(self) -> Float | None:
        """Return Σ x xᵀ over the rows that count, with a 1 for the intercept; None where it would be too much work."""
        return None

    # --- curvature at the stored point -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def holds_scores(self) -> bool:
        """Whether the scores of the stored point are stored."""

    @property
    @abstractmethod
    def holds_prob(self) -> bool:
        """Whether its probabilities are stored, so that sums of them alone cost little."""

    @abstractmethod
    def row_curvature(self, index: Array) -> Float:
        """a_i t_i of some rows, the weights of the Hessian."""

    @abstractmethod
    def probabilities(self, index: Array, x: Array | None = None) -> Array:
        """S of some rows; their features are needed where nothing is stored."""

    @abstractmethod
    def spread(self, index: Array | None = None) -> float:
        """Σ_i a_i t_i (1 − ‖S_i‖²) of some rows: how much curvature there is."""

    @abstractmethod
    def class_curvature(self) -> Float:
        """Σ_i a_i t_i S_ik (1 − S_ik) (K,)."""

    @abstractmethod
    def hessian_diagonal(self) -> tuple[Float, Float]:
        """Σ_i a_i t_i S_ik (1 − S_ik) x_ij² (K, P), and the same without x (K,)."""

    @abstractmethod
    def class_grams(
        self, center: Float, square: float, kappa: float, sample: float, *, even: bool, features: Any
    ) -> tuple[Array, Float]:
        """The Gram matrices of `_class_blocks`, (K, P + 1, P + 1) in float32, and the rows drawn for each class."""

    @abstractmethod
    def hessian(self, count: int | None = None) -> Float:
        """The whole Hessian, parameters (W_k, b_k) class by class; ``count``: of about so many rows."""


def levelled(
    sums: Callable[[], Float], shift: Callable[[Array], None], class_mass: Float, dtype: Any, enough: float
) -> Float:
    """Move the intercepts to their optimum for stored scores; returns by how much.

    The dual point needs Σ_i R_i = 0, and what is missing costs the bound in the first order (`dual_value`), while
    all other errors cost it in the second.  ``enough``: what may be missing, as a share of each class's mass.
    Newton's method on K numbers; X is not read.  ``sums``: Σ h S (first row) and Σ h S Sᵀ at the stored scores, which
    ``shift`` moves.
    """
    k, moved, before = len(class_mass), np.zeros(len(class_mass)), np.inf
    limit = max(enough, LEVEL if dtype == np.float32 else LEVEL_PRECISE)
    for _ in range(MOST_LEVELLINGS):
        total = sums()
        excess = total[0] - class_mass
        worst = float((np.abs(excess) / class_mass).max())
        if worst < limit or not worst < 0.5 * before:
            break
        before = worst
        hessian = np.diag(total[0]) - total[1:] + total[0].sum() / k**2  # which pins what all classes share
        try:
            step = np.linalg.solve(hessian, -excess)
        except np.linalg.LinAlgError:
            break
        step -= step.mean()
        longest = float(np.abs(step).max())
        if not longest < np.inf:
            break
        if longest > 1:
            step /= longest
        moved += step
        shift(step.astype(dtype))
        if worst**2 < 0.1 * limit:  # Newton's method squares what is left
            break
    return moved
