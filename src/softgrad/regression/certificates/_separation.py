"""Separable classes: a direction along which the loss without a penalty falls for ever.

Without a penalty there is no optimum if some direction (W, b) lowers the score of a class with target mass in no row,

    m_ijk = (w_j − w_k)·x_i + b_j − b_k ≥ 0   for every row i, every class j with y_ij > 0 and every class k,

and raises it in some row, Σ m > 0 (Albert and Anderson, 1984).  Two classes with mass in one row give equalities.
A linear program finds the direction with the largest sum of margins among |W|, |b| ≤ 1 (Konis, 2007).  Its rows are a
working set: those that the direction found so far violates are added.  The margins of the result are verified in long
double on all rows, each against what rounding may have made of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

from softgrad.regression.rows._problem import Problem
from softgrad.regression.rows._row_sums import RowSums

Array = NDArray[Any]
Float = NDArray[np.float64]

MOST_PAIRS = 6  # of classes that a message names
MOST_VARIABLES = 1000  # of a linear program
MOST_NUMBERS = 1 << 27  # of the rows that are looked at
FIRST_ROWS = 4  # of the working set for each variable
MOST_ROUNDS = 20
MOST_SECONDS = 20.0  # of one linear program: without its result nothing is claimed
VANISHING = 1e-9
STRICT = 1e-6  # least margin, for |W| ≤ 1 and features of size 1, that counts as a gain
ROUNDING = 64 * 2.0**-52  # of a margin, as a share of the sizes of its terms

__all__ = ["Separation", "can_be_separated", "separation_of"]


class Separation(NamedTuple):
    """A direction along which the loss of no row rises and that of some falls for ever.

    Attributes
    ----------
    coef, intercept : arrays (K, P) and (K,), float64
        The direction; one row alone for two classes.
    classes : list of pairs (j, k)
        Rows of class j gain against class k. Estimators name them by their labels.
    n_rows : int
        Number of rows that gain.
    complete : bool
        Whether every row gains against every other class: the classes are completely separable, else quasi-completely.
    """

    coef: Float
    intercept: Float
    classes: list[tuple[Any, Any]]
    n_rows: int
    complete: bool

    def describe(self) -> str:
        """Return a sentence that says which classes are separable, and what to do."""
        pairs = ", ".join(f"{j} against {k}" for j, k in self.classes[:MOST_PAIRS])
        more = ", …" if len(self.classes) > MOST_PAIRS else ""
        kind = "completely" if self.complete else "quasi-completely"
        return (
            f"the classes are {kind} separable and there is no penalty (C = inf): along a direction {self.n_rows} "
            f"rows gain for ever (class {pairs}{more}) and none loses, so that there is no optimum; use a finite C"
        )


def can_be_separated(problem: RowSums, excess: float) -> bool:
    """Return whether a fit may have ended for separable classes, its loss at most ``excess`` above the infimum.

    A row that gains for ever against class k would save at least −a log(1 − S_k) ≥ a S_k.  Where no ``excess`` is
    known, fits of separable classes end with probabilities of 0 to within `VANISHING`.
    """
    prob = getattr(problem, "prob", None)
    if prob is None:
        return True
    weight = problem.row_curvature(np.arange(len(prob)))
    saved = prob.min(axis=1)[weight > 0].astype(np.float64) * weight[weight > 0]
    return not min(excess, VANISHING * problem.mass) < 0.5 * float(saved.min(initial=np.inf))


def separation_of(problem: RowSums, weight: Float, bias: Float) -> Separation | None:
    """Return a verified direction that separates the classes of a problem; None if there is none or it was not found.

    Parameters
    ----------
    problem : RowSums
        Rows with targets. Those in a file or on a cluster are not looked at.
    weight, bias : arrays (K, P) and (K,)
        A fitted model: the rows that it predicts worst are the first of the working set.
    """
    if not isinstance(problem, Problem) or not problem.design.in_memory or problem.smoothing > 0:
        return None
    k, design = problem.n_classes, problem.design
    width = design.n_features + int(problem.fit_intercept)
    if (k - 1) * width > MOST_VARIABLES or design.n_rows * max(width, k) > MOST_NUMBERS:
        return None
    rows = _Rows(problem)
    if not rows.count:
        return None
    fitted = np.column_stack([weight * rows.scale, bias])[:, :width]
    fitted /= max(float(np.abs(fitted).max()), 1e-300)
    margins = rows.margins(fitted)
    if (margins > STRICT)[~rows.masses].all():  # the model itself separates all classes completely
        return _verified(rows, fitted, margins)
    chosen = np.argsort(margins.min(axis=1), kind="stable")[: max(FIRST_ROWS * (k - 1) * width, 50)]
    total: Array = np.zeros((k, width))
    gained = rows.masses  # margins that are no matter, or gain already
    for _ in range(MOST_ROUNDS):
        direction = _best_direction(rows, chosen, gained)
        if direction is None:
            break
        margins = rows.margins(direction)
        worst = margins.min(axis=1)
        violated = np.setdiff1d(np.flatnonzero(worst < -STRICT), chosen)
        if violated.size:
            chosen = np.concatenate([chosen, violated[np.argsort(worst[violated], kind="stable")][: len(chosen)]])
            continue
        if not (margins > STRICT)[~gained].any():
            break
        # Directions add up: the next one is for the rows that gain from none so far.
        total, gained = total + direction, gained | (margins > STRICT)
        chosen = np.union1d(chosen, np.flatnonzero(~gained.all(axis=1))[: len(chosen)])
        if gained.all():
            break
    if not total.any():
        return None
    total /= np.abs(total).max()
    return _verified(rows, total, rows.margins(total))


class _Rows:
    """Rows with positive weight, in units of each feature's largest value, and the sign of each margin's target.

    ``masses[i, j]`` says whether class j has target mass in row i.
    """

    def __init__(self, problem: Problem) -> None:
        design, k = problem.design, problem.n_classes
        self.problem, self.k = problem, k
        index = np.flatnonzero(problem.row_curvature(np.arange(design.n_rows)) > 0)
        self.count, self.free = len(index), problem.fit_intercept
        reach = design.column_reach()
        self.scale = np.where(reach > 0, reach, 1.0)
        self.x = np.ones((self.count, design.n_features + int(self.free)))
        self.x[:, : design.n_features] = design.rows(index, np.float64) / self.scale
        targets = problem.targets[index]
        self.masses = targets[:, None] == np.arange(k) if targets.ndim == 1 else targets > 0
        if problem.class_weight is not None:
            self.masses = self.masses & (problem.class_weight > 0)
        self.first = self.masses.argmax(axis=1)  # a class with mass, of each row

    def margins(self, direction: Array) -> Array:
        """Return m_ik of each row's first class with mass against class k; minus its size for another with mass."""
        scores = self.x @ direction.T
        found = np.take_along_axis(scores, self.first[:, None], axis=1) - scores
        return np.asarray(np.where(self.masses, -np.abs(found), found))

    def constraints(self, chosen: Array, wanted: Array) -> tuple[Array, Array, Array]:
        """Return the coefficients (M, (K − 1) Q) of the margins of some rows, which are equalities, which are wanted.

        The direction of the first class is 0: only differences matter.
        """
        parts, equal, sought = [], [], []
        for other in range(self.k):
            rows = chosen[self.first[chosen] != other]
            part = np.zeros((len(rows), self.k, self.x.shape[1]))
            part[np.arange(len(rows)), self.first[rows]] = self.x[rows]
            part[:, other] -= self.x[rows]
            parts.append(part[:, 1:].reshape(len(rows), (self.k - 1) * self.x.shape[1]))
            equal.append(self.masses[rows, other])
            sought.append(wanted[rows, other])
        return np.concatenate(parts), np.concatenate(equal), np.concatenate(sought)


def _best_direction(rows: _Rows, chosen: Array, gained: Array) -> Array | None:
    """Return the direction (K, Q) with the largest sum of the wanted margins of some rows; None if it is 0."""
    a, equal, wanted = rows.constraints(chosen, ~gained)
    gains = a[wanted].sum(axis=0)
    largest = float(np.abs(gains).max(initial=0.0))
    if largest == 0:
        return None
    found = optimize.linprog(
        -gains / largest,
        A_ub=-a[~equal] if not equal.all() else None,
        b_ub=np.zeros(int((~equal).sum())) if not equal.all() else None,
        A_eq=a[equal] if equal.any() else None,
        b_eq=np.zeros(int(equal.sum())) if equal.any() else None,
        bounds=(-1, 1),
        method="highs",
        options={"time_limit": MOST_SECONDS},
    )
    if found.status != 0 or found.x is None or (a[wanted] @ found.x).max(initial=0.0) < STRICT:
        return None
    flat = found.x
    tight = a[np.abs(a @ flat) < STRICT]  # margins that are 0 but for the program's tolerance
    if tight.size:
        flat = flat - linalg.lstsq(tight, tight @ flat, check_finite=False)[0]
    flat = np.where(np.abs(flat) < 1e-12, 0.0, flat)
    return np.concatenate([np.zeros((1, rows.x.shape[1])), flat.reshape(rows.k - 1, -1)])


def _verified(rows: _Rows, direction: Array, margins: Array) -> Separation | None:
    """Return the direction in the units of the problem, if no row loses by more than rounding."""
    long = direction.astype(np.longdouble)
    scores = rows.x.astype(np.longdouble) @ long.T
    exact = np.take_along_axis(scores, rows.first[:, None], axis=1) - scores
    sizes = np.abs(rows.x) @ np.abs(direction).T
    allowed = ROUNDING * (1 + sizes + np.take_along_axis(sizes, rows.first[:, None], axis=1))
    lost = np.where(rows.masses, np.abs(exact) > allowed, exact < -allowed)
    gained = (margins > STRICT) & ~rows.masses
    if lost.any() or not gained.any():
        return None
    pairs = sorted({(int(rows.first[i]), int(j)) for i, j in np.argwhere(gained)})
    weight, bias = direction[:, : len(rows.scale)] / rows.scale, np.zeros(rows.k)
    if rows.free:
        bias = direction[:, -1]
    return Separation(weight, bias, pairs, int(gained.any(axis=1).sum()), bool((gained | rows.masses).all()))
