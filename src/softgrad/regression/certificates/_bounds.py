"""Lower bounds of the least objective: from a point of the dual problem, and from the Newton decrement.

The dual of  f(W, b) = Σ_i a_i [t_i lse(z_i) − y_i·z_i] + ½ κ ‖W‖²  has one distribution q_i a row,

    D(q) = Σ_i a_i t_i H(q_i) − Σ_i α_i·o_i − ‖V‖² / (2 κ),   α_i = a_i (y_i − t_i q_i),   V = Σ_i α_i x_iᵀ

subject to Σ_i α_i = 0, which is the free intercept's; o_i are offsets.  Every feasible q gives D(q) ≤ f*.
At q = S, V is minus the gradient of the loss.  Where the α_i do not sum to 0, S is mixed with the targets themselves,
some of whose mass is moved from the classes that have too much to those that have too little,

    q_i = (1 − θ) S_i + θ Tᵀ ȳ_i,   ȳ_i = y_i / t_i,   T a stochastic matrix that differs from I in what it must,

with the least θ for which there is one.  Entropy is concave, so that H(q_i) ≥ (1 − θ) H(S_i) + θ Σ_c ȳ_ic H(T_c): no
row has to be looked at again.  The price is about θ f, however small f is beside Σ a t log K.

``entropy`` below is Σ a t H(q) − Σ α·o.

Without a penalty, or where rounding makes V / κ large, the decrement bounds the distance.  Along a direction Δ the
third derivative of f is at most its second times R, the largest range of the scores of Δ in a row: the third central
moment of a variable is at most its range times its variance.  With λ² = gᵀH⁻¹g and R ≤ M ‖Δ‖_H for every Δ,

    f(W, b) − f* ≤ (Mλ + (1 − Mλ) log(1 − Mλ)) / M²   if Mλ < 1,

which is between λ²/2 and λ² (Bach, "Self-concordant analysis for logistic regression", 2010, section 2).  λ and M are
computed in the scale of H's diagonal, so that the scale of a feature does not matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from softgrad.regression.rows._layout import inner
from softgrad.regression.rows._row_sums import LossAtPoint, RowSums

Float = NDArray[np.float64]

MOST_PARAMETERS = 1500  # of a Hessian that is factorised for a bound alone
MOST_WORK = 1e12  # multiplications that its sum over the rows may take
HESSIAN_ERROR = {4: 1e-5, 8: 1e-12}  # of its largest eigenvalue, in the scale of its diagonal; by bytes of S
COLLINEAR = 1e-13  # largest eigenvalue, beside the largest, of a direction in which no row has a component
SCORE_ERROR = {4: 2.0**-22, 8: 2.0**-51}  # of the sizes that add up to a score

__all__ = ["decrement_excess", "dual_value", "has_decrement_bound"]


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


def has_decrement_bound(problem: RowSums) -> bool:
    """Return whether the Hessian is small enough for `decrement_excess`."""
    size = problem.n_classes * (problem.design.n_features + int(problem.fit_intercept))
    return size <= MOST_PARAMETERS and bool(problem.design.n_rows * size**2 <= MOST_WORK)


def decrement_excess(problem: RowSums, kappa: float, point: LossAtPoint, weight: Float, bias: Float) -> float:
    """Return an upper bound of f(W, b) − f* at the stored point from its Newton decrement; inf where there is none.

    Call it only where `has_decrement_bound`.

    Parameters
    ----------
    problem : RowSums
        The rows; ``point`` was evaluated at their stored point, in float64.
    kappa : float
        Weight κ of the penalty; 0 for none.
    point : LossAtPoint
        Loss and gradient there.
    weight, bias : arrays (K, P) and (K,)
        Coefficients and intercepts there.
    """
    k, p = weight.shape
    width = p + int(problem.fit_intercept)
    hessian = problem.hessian().reshape(k, width, k, width)
    reach = np.ones(width)
    reach[:p] = problem.design.column_reach()
    gradient = np.zeros((k, width))
    gradient[:, :p] = point.weight
    if problem.fit_intercept:
        gradient[:, p] = point.bias
    # Rounding of each sum Σ_i R_ik x_ij: its terms' sizes add up to no more than Σ_i a_i (S_ik + y_ik) reach_j.
    mass = 2 * problem.class_mass + point.bias
    rounding = 4 * 2.0**-52 * np.outer(mass, reach)
    # Scores z that are rounded by ε change a Hessian by a factor of at most exp(2 ε), and a gradient, in the norm of
    # its inverse, by ε √Σ a t S_k S_l over the pairs k ≠ l of a row.
    size = float((np.abs(weight) @ reach[:p] + np.abs(bias)).max()) + problem.offset_range
    shrunk = float(np.exp(-2 * SCORE_ERROR[np.dtype(problem.dtype).itemsize] * size))
    spread = problem.spread() if problem.holds_scores or problem.holds_prob else problem.mass
    blur = float(SCORE_ERROR[8] * size * np.sqrt(2 * spread))
    excess = np.inf
    if kappa > 0:
        hessian_of_f = hessian.copy()
        hessian_of_f[:, range(p), :, range(p)] += kappa * (np.eye(k) - 1 / k)  # not what is shared
        g = gradient.copy()
        g[:, :p] += kappa * weight
        excess = _self_concordant_excess(problem, hessian_of_f, g, rounding, reach, shrunk, blur)
    if not excess < np.inf:  # f* is at least the least loss
        excess = _self_concordant_excess(problem, hessian, gradient, rounding, reach, shrunk, blur)
        gram = None if excess < np.inf else problem.gram()
        if gram is not None:
            reduced = _without_collinear(gram, hessian, gradient, rounding, reach)
            if reduced is not None:
                excess = _self_concordant_excess(problem, *reduced, shrunk, blur)
        excess += 0.5 * kappa * inner(weight, weight)
    # Rounding of the loss here and where the model handed out is evaluated: of the scores, of exponentials and of sums.
    scores = np.linalg.norm(weight * reach[:p], axis=1) + np.abs(bias)
    rounding_of_loss = 4 * 2.0**-52 * (abs(point.loss) + float((mass * (1 + scores)).sum()))
    return float(excess + rounding_of_loss)


def _without_collinear(
    gram: Float, hessian: Float, gradient: Float, rounding: Float, reach: Float
) -> tuple[Float, Float, Float, Float] | None:
    """Return Hessian, gradient, rounding and reach in fewer features that span the rows; None if all are needed.

    A direction of the features in which no row has a component changes no score.  It is told from one whose curvature
    is small because its rows are predicted with certainty by the Gram matrix Σ x xᵀ, which has no probabilities.
    """
    if not np.isfinite(gram).all():
        return None
    size = np.sqrt(np.maximum(gram.diagonal(), 1e-300))
    values, vectors = linalg.eigh(gram / size[:, None] / size, check_finite=False)
    null = values <= COLLINEAR * float(values[-1])
    noise = np.linalg.norm(rounding / size)
    if not null.any() or null.all() or (np.abs((gradient / size) @ vectors[:, null]) > noise).any():
        return None
    basis = vectors[:, ~null] / size[:, None]
    h = np.einsum("kplq,pi,qj->kilj", hessian, basis, basis, optimize=True)
    return h, gradient @ basis, rounding @ np.abs(basis), reach @ np.abs(basis)


def _self_concordant_excess(
    problem: RowSums,
    hessian: Float,
    gradient: Float,
    rounding: Float,
    reach: Float,
    shrunk: float,
    blur: float,
) -> float:
    """Return the module's bound from a Hessian (K, Q, K, Q), a gradient and its rounding (K, Q), and a reach (Q,).

    It is inf where the Hessian is singular to within its own error.  ``shrunk``: share of the Hessian that rounding of
    scores leaves; ``blur``: what it adds to the decrement.
    """
    k, width = gradient.shape
    diagonal = np.einsum("kpkp->kp", hessian)
    if not (np.isfinite(diagonal).all() and np.isfinite(gradient).all()):
        return np.inf
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = hessian / scale[:, :, None, None] / scale
    for j in range(width):  # nothing depends on what all classes share: give it a curvature
        shared = scale[:, j] / np.linalg.norm(scale[:, j])
        scaled[:, j, :, j] += np.outer(shared, shared)
    values, vectors = linalg.eigh(shrunk * scaled.reshape(k * width, -1), check_finite=False)
    error = HESSIAN_ERROR[np.dtype(problem.dtype).itemsize] * max(1.0, float(values[-1]))
    least = float(values[0]) - error
    if not least > 9 * error:
        return np.inf
    parts = vectors.T @ (gradient / scale).ravel()
    noise = float(np.linalg.norm(rounding / scale))
    length = float(np.linalg.norm(parts / np.sqrt(values - error))) + noise / np.sqrt(least)
    length += blur / np.sqrt(shrunk)
    most = np.sqrt(2 * float(((reach / scale) ** 2).sum(axis=1).max()) / least)
    t = most * length
    if not t < 1:
        return np.inf
    if t < 1e-3:
        return float(length**2 * (0.5 + t / 6 + t * t / 12 / (1 - t)))
    return float((t + (1 - t) * np.log1p(-t)) / most**2)


def _plogp(share: Float) -> Float:
    """−p log p."""
    return np.asarray(-share * np.log(np.where(share > 0, share, 1.0)))
