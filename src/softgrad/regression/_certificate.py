"""How far from the optimum: a lower bound of the objective from the dual problem.

The dual of  f(W, b) = Σ_i a_i [t_i lse(z_i) − y_i·z_i] + ½ κ ‖W‖²  has one distribution q_i a row,

    D(q) = Σ_i a_i t_i H(q_i) − Σ_i α_i·o_i − ‖V‖² / (2 κ),   α_i = a_i (y_i − t_i q_i),   V = Σ_i α_i x_iᵀ

subject to Σ_i α_i = 0, which is the free intercept's; o_i are offsets.  Every feasible q gives D(q) ≤ f*.
At q = S, V is minus the gradient of the loss.  Where the α_i do not sum to 0, S is mixed with the targets themselves,
some of whose mass is moved from the classes that have too much to those that have too little,

    q_i = (1 − θ) S_i + θ Tᵀ ȳ_i,   ȳ_i = y_i / t_i,   T a stochastic matrix that differs from I in what it must,

with the least θ for which there is one.  Entropy is concave, so that H(q_i) ≥ (1 − θ) H(S_i) + θ Σ_c ȳ_ic H(T_c): no
row has to be looked at again.  The price is about θ f, however small f is beside Σ a t log K.

``entropy`` below is Σ a t H(q) − Σ α·o.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softgrad.regression._layout import inner
from softgrad.regression._row_sums import RowSums

Float = NDArray[np.float64]

__all__ = ["dual_value"]


def dual_value(
    problem: RowSums, kappa: float, entropy: float, weight: Float, bias: Float, *, rough: bool = False
) -> float:
    """A lower bound of the least objective from Σ a t H(q), and X'α and Σα with α = −a (y − t q).

    ``rough``: an estimate, for what the Σα that is missing costs in X'α.
    """
    length = float(np.linalg.norm(weight))
    if not problem.fit_intercept:
        return entropy - length**2 / (2 * kappa)
    mass = problem.class_mass
    excess = bias - bias.sum() / len(bias)  # sums to 0 but for rounding
    worst = float((excess / mass).max())
    if worst <= 0:
        return entropy - length**2 / (2 * kappa)
    theta = worst / (1 + worst)
    stays = np.clip(1 - (1 - theta) / theta * excess / mass, 0.0, 1.0)
    room = np.maximum(-excess, 0.0)
    to = room / room.sum()
    moved = mass * (1 - stays)
    spread = -float(to[to > 0] @ np.log(to[to > 0]))
    of_move = float(moved.sum()) * spread + float(mass @ (_plogp(stays) + _plogp(1 - stays)))
    value = float((1 - theta) * entropy + theta * of_move)
    value -= theta * float(moved.sum()) * problem.offset_range
    if rough:
        return value - length**2 / (2 * kappa)
    if not problem.small and (reach := problem.design.reach()) is not None:
        # ‖θ (Tᵀ − I) Σ y xᵀ‖ ≤ θ √2 (moved mass) max‖x‖: after `Problem.level` so little that no row need be read.
        more = float(theta * np.sqrt(2)) * float(moved.sum()) * reach
        if more * (length + more) <= 1e-8 * kappa * entropy:
            return float(value - ((1 - theta) * length + more) ** 2 / (2 * kappa))
    targets = problem.target_sums()
    gone = (1 - stays)[:, None] * targets
    v = (1 - theta) * weight + theta * (np.outer(to, gone.sum(axis=0)) - gone)
    return value - inner(v, v) / (2 * kappa)


def _plogp(share: Float) -> Float:
    """−p log p."""
    return np.asarray(-share * np.log(np.where(share > 0, share, 1.0)))
