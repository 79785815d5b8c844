"""How far from the optimum: a lower bound of the objective from the dual problem.

The dual of  f(W, b) = Σ_i a_i [t_i lse(z_i) − y_i·z_i] + ½ κ ‖W‖²  has one distribution q_i a row,

    D(q) = Σ_i a_i t_i H(q_i) − Σ_i α_i·o_i − ‖V‖² / (2 κ),   α_i = a_i (y_i − t_i q_i),   V = Σ_i α_i x_iᵀ

subject to Σ_i α_i = 0, which is the free intercept's; o_i are offsets.  Every feasible q gives D(q) ≤ f*.
At q = S, V is minus the gradient of the loss.  Where the α_i do not sum to 0, S is mixed with one distribution r for
all rows, q = (1 − θ) S + θ r, with the least θ that meets the constraint; entropy is concave, so that
H(q) ≥ (1 − θ) H(S) + θ H(r), and no row has to be looked at again.  ``entropy`` below is Σ a t H(q) − Σ α·o.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from softgrad.regression._problem import Problem

Float = NDArray[np.float64]

__all__ = ["dual_value"]


def dual_value(
    problem: Problem, kappa: float, entropy: float, weight: Float, bias: Float, *, rough: bool = False
) -> float:
    """A lower bound of the least objective from Σ a t H(q), and X'α and Σα with α = −a (y − t q).

    ``rough``: an estimate, for what the Σα that is missing costs in X'α.
    """
    if not problem.fit_intercept:
        return entropy - float(np.vdot(weight, weight)) / (2 * kappa)
    mass, total = problem.class_mass, problem.mass
    excess = bias - bias.sum() / len(bias)  # sums to 0 but for rounding
    worst = float((excess / mass).max())
    if worst <= 0:
        return entropy - float(np.vdot(weight, weight)) / (2 * kappa)
    theta = worst / (1 + worst)
    r = np.maximum(mass / total - excess * ((1 - theta) / (theta * total)), 0.0)
    r /= r.sum()
    positive = r[r > 0]
    of_r = -float(positive @ np.log(positive))
    shared = total * of_r
    if rough:
        return (1 - theta) * entropy + theta * shared - float(np.vdot(weight, weight)) / (2 * kappa)
    if problem.offset is None and not problem.small and (reach := problem.design.reach()) is not None:
        # ‖θ Σ_i a_i (t_i r − y_i) x_iᵀ‖ ≤ θ √2 Σ a t max‖x‖: after `Problem.level` so little that no row need be read.
        length = float(np.linalg.norm(weight))
        more = theta * np.sqrt(2) * total * reach
        if more * (length + more) <= 1e-9 * kappa * entropy:
            return (1 - theta) * entropy + theta * shared - ((1 - theta) * length + more) ** 2 / (2 * kappa)
    targets, rows = problem.target_sums()
    v = (1 - theta) * weight + theta * (np.outer(r, rows) - targets)
    if problem.offset is not None:
        of_rows, of_targets = problem.offset_sums()
        shared += float(of_rows @ r) - of_targets
    return (1 - theta) * entropy + theta * shared - float(np.vdot(v, v)) / (2 * kappa)
