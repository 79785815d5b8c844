"""Arguments of a fit, checked; and the variables in which it is solved.

Two classes become two rows of opposite sign; fewer rows than features become coordinates in their row space, where the
penalised optimum lies: X = L Q with orthonormal rows Q, so W = V Q has the norm of V.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, sparse

from softgrad._core.threads import resolve_threads
from softgrad.regression._design import Design
from softgrad.regression._problem import SMALL, Problem
from softgrad.regression._row_sums import RowSums
from softgrad.regression._sparse import is_sparse
from softgrad.regression.sources import RowBlocks

Float = NDArray[np.float64]

ROW_SPACE_ROWS = 3000  # the eigenproblem of that many rows is a second
LARGEST = {4: 1e18, 8: 1e150}  # by the bytes of a number
CHECKED_ROWS = 1 << 22  # numbers looked at together

__all__ = ["ProblemVariables", "checked", "checked_rows"]


class ProblemVariables:
    """A problem, and the way between its variables and the caller's."""

    def __init__(self, problem: RowSums, basis: Float | None) -> None:
        self.problem, self.basis = problem, basis
        self.binomial = problem.n_classes == 2
        self.preconditioner: Any = None
        self.last_weight, self.last_bias = np.zeros((0, 0)), np.zeros(0)

    def origin(self) -> tuple[Float, Float]:
        """No weights, and the log prior."""
        problem = self.problem
        bias = np.zeros(problem.n_classes)
        if problem.fit_intercept:
            bias = np.log(problem.class_mass / problem.mass)
            bias -= bias.mean()
        return problem.design.zeros(problem.n_classes), bias

    def inner(self, start: tuple[ArrayLike, ArrayLike] | None) -> tuple[Float, Float] | None:
        """A start in the problem's variables."""
        if start is None:
            return None
        k = self.problem.n_classes
        free = 1 if self.binomial else k
        width = self.problem.design.n_features if self.basis is None else self.basis.shape[1]
        coef, intercept = np.asarray(start[0], dtype=np.float64), np.asarray(start[1], dtype=np.float64)
        if coef.shape != (free, width) or intercept.shape != (free,):
            raise ValueError(
                f"start has shapes {coef.shape} and {intercept.shape}; "
                f"coef and intercept have {(free, width)} and {(free,)}"
            )
        if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
            raise ValueError("start holds numbers that are not finite")
        if self.binomial:
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        # Nothing depends on what all classes share, and solvers keep it at zero.
        coef, intercept = coef - coef.mean(axis=0), intercept - intercept.mean()
        if not self.problem.fit_intercept:
            intercept = np.zeros(k)
        coef = coef if self.basis is None else coef @ self.basis.T
        weight = self.problem.design.zeros(k)
        weight[...] = coef
        return weight, intercept

    def outer(self, weight: Float, bias: Float) -> tuple[Float, Float]:
        """The caller's coef and intercept."""
        weight = np.ascontiguousarray(weight if self.basis is None else weight @ self.basis)
        if self.binomial:
            return weight[1:] - weight[:1], bias[1:] - bias[:1]
        return weight - weight.mean(axis=0), (bias - bias.mean() if self.problem.fit_intercept else bias)


def checked(
    x: Any,
    targets: ArrayLike,
    n_classes: int,
    *,
    sample_weight: ArrayLike | None,
    class_weight: ArrayLike | None,
    label_smoothing: float,
    offset: ArrayLike | None,
    fit_intercept: bool,
    max_memory: int | None,
    n_threads: int | None,
    reduce_rows: bool,
) -> ProblemVariables:
    """Check everything but C and the solver's options, and make the problem."""
    x = checked_rows(x)
    n = x.n_rows if isinstance(x, RowBlocks) else x.shape[0]
    if n == 0:
        raise ValueError("x has no rows: nothing to fit")
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, not {n_classes}: one class leaves nothing to fit")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    if max_memory is not None and max_memory < 0:
        raise ValueError(f"max_memory must not be negative, not {max_memory}")
    a = _vector(sample_weight, n, "sample_weight", "row")
    w = _vector(class_weight, n_classes, "class_weight", "class")
    y = _targets(targets, n, n_classes)
    shift = _offset(offset, n, n_classes)
    basis = None
    if is_sparse(x) and n * x.shape[1] * n_classes <= SMALL:
        x = x.toarray()  # little data are run to rounding, which the dense solvers do
    if reduce_rows and isinstance(x, np.ndarray) and n < x.shape[1] and n <= ROW_SPACE_ROWS:
        x, basis = _row_space(x)
    problem = Problem(
        Design(x, n_classes),
        y,
        n_classes,
        sample_weight=a,
        class_weight=w,
        label_smoothing=float(label_smoothing),
        offset=shift,
        fit_intercept=bool(fit_intercept),
        max_memory=max_memory,
        n_threads=resolve_threads(n_threads),
    )
    if a is not None and not a.any():
        raise ValueError("sample_weight is zero in every row: at least one weight must be positive")
    empty = np.flatnonzero(~(problem.class_mass > 0))
    if empty.size:
        raise ValueError(
            f"class {empty[0]} is empty: no row with a positive weight has it as its target, so its intercept has no "
            "optimum; leave the class out"
        )
    return ProblemVariables(problem, basis)


def checked_rows(x: Any) -> Any:
    """The rows, finite and of a size whose squares are; sparse ones as a CSR array."""
    if isinstance(x, RowBlocks):
        return x
    if is_sparse(x):
        if x.dtype not in (np.float32, np.float64) or x.ndim != 2:
            raise ValueError(f"x must be float32 or float64, not {x.dtype}")
        make: Any = sparse.csr_array
        x = make(x)
        bad = np.flatnonzero(~np.isfinite(x.data))
        if bad.size:
            row = int(np.searchsorted(x.indptr, bad[0], side="right")) - 1
            raise ValueError(f"x[{row}, {x.indices[bad[0]]}] is {x.data[bad[0]]}: the rows must be finite")
        return x
    x = np.asarray(x) if not isinstance(x, np.ndarray) else x
    if x.ndim != 2 or x.dtype not in (np.float32, np.float64):
        raise ValueError(f"x must be a float32 or float64 array (N, P), not {x.dtype} of shape {x.shape}")
    step = max(1, CHECKED_ROWS // max(1, x.shape[1]))
    for lo in range(0, len(x) if x.shape[1] else 0, step):
        part = x[lo : lo + step]
        least, most = float(part.min()), float(part.max())
        if not (np.isfinite(least) and np.isfinite(most)):
            row, col = (int(i) for i in np.argwhere(~np.isfinite(part))[0])
            raise ValueError(f"x[{lo + row}, {col}] is {part[row, col]}: the rows must be finite")
        if max(-least, most) > LARGEST[x.dtype.itemsize]:
            row, col = (int(i) for i in np.argwhere(np.abs(part) == max(-least, most))[0])
            raise ValueError(
                f"x[{lo + row}, {col}] is {part[row, col]:g}: the squares of such features overflow; scale them"
            )
    return x


def _vector(values: ArrayLike | None, size: int, name: str, unit: str) -> Float | None:
    if values is None:
        return None
    weights = np.array(values, dtype=np.float64)
    if weights.shape != (size,):
        raise ValueError(f"{name} must have one weight a {unit}, {(size,)}, not shape {weights.shape}")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] is {weights[bad[0]]}: weights must be finite and not negative")
    return weights


def _targets(targets: ArrayLike, n: int, n_classes: int) -> NDArray[Any]:
    y = np.asarray(targets)
    if y.dtype.kind in "iu":
        if y.shape != (n,):
            raise ValueError(f"targets must have one label a row, {(n,)}, not shape {y.shape}")
        bad = np.flatnonzero((y < 0) | (y >= n_classes))
        if bad.size:
            raise ValueError(f"targets[{bad[0]}] is {y[bad[0]]}: labels are in [0, {n_classes})")
        return np.ascontiguousarray(y, dtype=np.int64)
    if y.dtype.kind != "f" or y.shape != (n, n_classes):
        raise ValueError(
            f"targets must be integer labels {(n,)} or soft labels {(n, n_classes)} of floats, "
            f"not {y.dtype} of shape {y.shape}"
        )
    y = np.ascontiguousarray(y, dtype=np.float64)
    wrong = np.argwhere(~(np.isfinite(y) & (y >= 0)))
    if wrong.size:
        row, col = (int(i) for i in wrong[0])
        raise ValueError(f"targets[{row}, {col}] is {y[row, col]}: soft labels must be finite and not negative")
    return y


def _offset(offset: ArrayLike | None, n: int, n_classes: int) -> NDArray[Any] | None:
    if offset is None:
        return None
    shift = np.asarray(offset, dtype=np.float64)
    if n_classes == 2 and shift.shape == (n,):
        shift = np.stack([-shift / 2, shift / 2], axis=1)
    if shift.shape != (n, n_classes):
        also = f" or {(n,)}" if n_classes == 2 else ""
        raise ValueError(f"offset must have shape {(n, n_classes)}{also}, not {shift.shape}")
    bad = np.argwhere(~np.isfinite(shift))
    if bad.size:
        raise ValueError(f"offset[{bad[0][0]}] holds a number that is not finite")
    return np.ascontiguousarray(shift)


def _row_space(x: NDArray[Any]) -> tuple[Float, Float]:
    """Coordinates of the rows, and an orthonormal basis of their space."""
    wide = x.astype(np.float64)
    values, vectors = linalg.eigh(wide @ wide.T, check_finite=False)
    kept = values > max(float(values[-1]), 1e-300) * len(x) * 2.0**-52
    if not kept.any():
        return np.zeros((len(x), 1)), np.zeros((1, x.shape[1]))
    basis = (vectors[:, kept].T @ wide) / np.sqrt(values[kept])[:, None]
    orthonormal = linalg.qr(basis.T, mode="economic", check_finite=False)[0].T  # eigenvalues lose half the digits
    return wide @ orthonormal.T, np.asarray(orthonormal, dtype=np.float64)
