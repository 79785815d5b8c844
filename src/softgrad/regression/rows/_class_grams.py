"""Weighted Gram matrices of a sample of the rows, one for each class: what `_class_blocks` makes of the rows.

Rows are drawn with probabilities proportional to v_ik = a_i t_i S_ik (1 − S_ik) (`_sample`: rows that weigh much all
enter), as many as there are dimensions that matter beside κ, times ``sample``.  Sums of parts of the rows add up to
those of all: each draws its share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softgrad._core.threads import run_blocks
from softgrad.regression.rows._row_sums import RowSums
from softgrad.regression.rows._sample import draw

Array = NDArray[Any]
Float = NDArray[np.float64]

PARTS = 8  # of the classes, for threads
FEWEST = 64  # rows of a class

__all__ = ["Whole", "class_grams", "each"]


class Whole(NamedTuple):
    """All the rows, of which a problem has a part: their number, and Σ_i v_ik (K,)."""

    n_rows: int
    curvature: Float


def class_grams(
    problem: RowSums,
    prob: Array,
    curvature: Float | None,
    center: Float,
    square: float,
    kappa: float,
    sample: float,
    *,
    even: bool,
    features: Array | None,
    whole: Whole | None = None,
) -> tuple[Array, Float]:
    """Σ v (x − center)(x − center)ᵀ of each class in float32, with a column of ones for an intercept; rows drawn.

    ``prob``, ``curvature``: S and a t of all rows, the latter None if it is 1 throughout;
    ``square``: the mean square of centred rows; ``even``: no row is told from another; ``features``: columns of the
    rows in place of all; ``whole``: that of which the problem is a part.
    """
    design, k = problem.design, problem.n_classes
    n, p = design.n_rows, design.n_features if features is None else features.shape[1]
    width = p + int(problem.fit_intercept)
    moved = center.astype(np.float32)

    def drawn(v: Array, count: int) -> tuple[Array, Array]:
        """Rows and the roots of their weights."""
        index, weight = draw(v, count)
        rows = design.rows(index, np.float32) if features is None else features[index]
        return rows - moved, np.sqrt(weight).astype(np.float32, copy=False)

    if even:  # one Gram matrix
        h = 1.0 if curvature is None else curvature
        count = max(512, 8 * width)
        if whole is not None:
            count = min(n, max(1, round(count * n / whole.n_rows)))
        x, root = drawn(np.broadcast_to(np.asarray(h, dtype=np.float64), n), count)
        share = prob[0].astype(np.float64) * (1 - prob[0].astype(np.float64))
        return _gram(x, root, width)[None] * share.astype(np.float32)[:, None, None], np.full(k, 8 * width / k)
    grams, counts = np.empty((k, width, width), np.float32), np.zeros(k)

    def make(j: int) -> None:
        v = prob[:, j] - prob[:, j] ** 2
        if curvature is not None:
            v *= curvature
        own = float(v.sum(dtype=np.float64))
        total, rows = (own, n) if whole is None else (float(whole.curvature[j]), whole.n_rows)
        # No more dimensions matter than the trace has of κ: so many rows tell them.
        matter = total * square / kappa if kappa > 0 else np.inf
        counts[j] = min(rows, max(FEWEST, int(sample * min(width, matter))))
        if whole is not None:
            counts[j] = min(n, max(1.0, np.ceil(counts[j] * own / total))) if total > 0 else 1.0
        grams[j] = _gram(*drawn(v, int(counts[j])), width)

    each(k, make, problem.n_threads)
    return grams, counts


def each(count: int, work: Any, n_threads: int) -> None:
    """Call ``work`` for every class, some classes a thread."""
    parts = min(count, PARTS)

    def part(i: int) -> None:
        for j in range(count * i // parts, count * (i + 1) // parts):
            work(j)

    run_blocks(part, parts, n_threads)


def _gram(x: Array, root: Array, width: int) -> Array:
    """The Gram matrix of weighted rows, with a column of ones where there is an intercept."""
    wide = np.empty((len(x), width), np.float32)
    wide[:, : x.shape[1]] = x
    wide[:, x.shape[1] :] = 1
    wide *= root[:, None]
    return np.asarray(np.matmul(wide.T, wide))
