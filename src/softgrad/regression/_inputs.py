"""Arguments of a fit, checked; and the variables in which it is solved.

Two classes become two rows of opposite sign; fewer rows than features become coordinates in their row space, where the
penalised optimum lies: X = L Q with orthonormal rows Q, so W = V Q has the norm of V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, sparse

from softgrad._core.threads import resolve_threads
from softgrad.regression.rows._design import Design
from softgrad.regression.rows._problem import SMALL, Problem
from softgrad.regression.rows._row_sums import RowSums
from softgrad.regression.rows._sources import RowBlocks
from softgrad.regression.rows._sparse import is_sparse

Float = NDArray[np.float64]

ROW_SPACE_ROWS = 3000  # the eigenproblem of that many rows is a second
PIVOTED_ROWS = 500  # a pivoted decomposition takes three times as long as one that is not
ROW_SPACE_ERROR = 1e-10
LARGEST = {4: 1e18, 8: 1e150}  # by the bytes of a number
FAR = 30.0  # of half a feature's range
CHECKED_ROWS = 1 << 22  # numbers looked at together
NARROW, NARROW_ROWS = 48, 1 << 16  # features below which short rows are turned to be reduced, so many numbers at a time

__all__ = [
    "ProblemVariables",
    "checked",
    "checked_rows",
    "far_from_zero",
    "feature_range",
    "standard_deviations",
    "weighted_moments",
]


class ProblemVariables:
    """A problem, and the way between its variables and the caller's.

    Attributes
    ----------
    problem : RowSums
        The problem that is solved.
    shift : array (P,) or None
        Subtracted from the rows: coefficients W and intercepts b become W and b + W·shift.
    scale : array (P,) or None
        Multiplies what is left: coefficients become W / scale.
    basis : array (Q, P) or None
        Orthonormal basis of the row space in which it is solved; None: in the caller's features.
    binomial : bool
        Whether the caller's model has one row of coefficients for two classes.
    preconditioner, last_weight, last_bias
        Of the last fit, for the next one of a path.
    """

    def __init__(
        self,
        problem: RowSums,
        basis: Float | None = None,
        whole: Callable[[], RowSums] | None = None,
        shift: Float | None = None,
        scale: Float | None = None,
    ) -> None:
        self.problem, self.basis, self._whole, self.shift, self.scale = problem, basis, whole, shift, scale
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

    def whole(self) -> ProblemVariables:
        """Return the problem in the caller's features; for one that is solved in a row space."""
        assert self._whole is not None
        whole = ProblemVariables(self._whole(), shift=self.shift, scale=self.scale)
        whole.binomial = self.binomial
        return whole

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
        if self.shift is not None:
            intercept = self._moved(intercept, coef, 1)
        coef = self.penalised(coef)
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
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        else:
            weight, bias = weight - weight.mean(axis=0), (bias - bias.mean() if self.problem.fit_intercept else bias)
        if self.scale is not None:
            weight = weight * self.scale
        return weight, bias if self.shift is None else self._moved(bias, weight, -1)

    def penalised(self, coef: Float) -> Float:
        """Return the caller's coefficients in the unit in which they are penalised."""
        return coef if self.scale is None else coef / self.scale

    def _moved(self, intercept: Float, coef: Float, sign: int) -> Float:
        """Return ``intercept ± coef @ shift``, rounded once where long double has more digits."""
        assert self.shift is not None
        return np.asarray(intercept + sign * (coef.astype(np.longdouble) @ self.shift), dtype=np.float64)


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
    standardize: bool = False,
) -> ProblemVariables:
    """Check everything but C and the solver's options, and make the problem."""
    x, (least, most) = checked_rows(x)
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
    offset = _offset(offset, n, n_classes)
    if is_sparse(x) and n * x.shape[1] * n_classes <= SMALL:
        x = x.toarray()  # the solvers of little data take dense rows
    shift = far_from_zero(least, most) if fit_intercept else None
    scale = 1 / _deviations(x, a) if standardize else None
    make = partial(
        _problem, targets=y, n_classes=n_classes, sample_weight=a, class_weight=w,
        label_smoothing=float(label_smoothing), offset=offset, shift=shift, scale=scale,
        fit_intercept=bool(fit_intercept), max_memory=max_memory, n_threads=resolve_threads(n_threads),
        small=None if standardize or _fits_float32(least, most, shift) else True,
    )  # fmt: skip
    space = None
    if reduce_rows and isinstance(x, np.ndarray) and n < x.shape[1] and n <= ROW_SPACE_ROWS:
        space = _row_space((x if shift is None else x - shift) * (1.0 if scale is None else scale))
    problem = make(x) if space is None else make(space[0], shift=None, scale=None)
    if a is not None and not a.any():
        raise ValueError("sample_weight is zero in every row: at least one weight must be positive")
    empty = np.flatnonzero(~(problem.class_mass > 0))
    if empty.size:
        raise ValueError(
            f"class {empty[0]} is empty: no row with a positive weight has it as its target, so its intercept has no "
            "optimum; leave the class out"
        )
    return ProblemVariables(problem, None if space is None else space[1], partial(make, x), shift, scale)


def _problem(x: Any, *, n_classes: int, shift: Float | None, scale: Float | None, **options: Any) -> Problem:
    return Problem(Design(x, n_classes, shift, scale), n_classes=n_classes, **options)


def checked_rows(x: Any) -> tuple[Any, tuple[Float, Float]]:
    """Return the rows, sparse ones as a CSR array, and the least and largest value of each feature (`feature_range`).

    Of dense `RowBlocks` the first block stands for all; sparse ones are read once.

    Raises
    ------
    ValueError
        If a number is not finite or so large that its square overflows.
    """
    if isinstance(x, RowBlocks):
        blocks = iter(x)
        first = next(blocks)
        least, most = feature_range(first)
        for block in blocks if is_sparse(first) else ():
            low, high = feature_range(block)
            least, most = np.minimum(least, low), np.maximum(most, high)
        return x, (least, most)
    if is_sparse(x):
        if x.dtype not in (np.float32, np.float64) or x.ndim != 2:
            raise ValueError(f"x must be float32 or float64, not {x.dtype}")
        make: Any = sparse.csr_array
        x = make(x)
        bad = np.flatnonzero(~np.isfinite(x.data))
        if bad.size:
            row = int(np.searchsorted(x.indptr, bad[0], side="right")) - 1
            raise ValueError(f"x[{row}, {x.indices[bad[0]]}] is {x.data[bad[0]]}: the rows must be finite")
        return x, feature_range(x)
    x = np.asarray(x) if not isinstance(x, np.ndarray) else x
    if x.ndim != 2 or x.dtype not in (np.float32, np.float64):
        raise ValueError(f"x must be a float32 or float64 array (N, P), not {x.dtype} of shape {x.shape}")
    return x, feature_range(x)


def feature_range(x: Any) -> tuple[Float, Float]:
    """Return the least and the largest value of each feature of an array or a CSR matrix, dense rows checked.

    What sparse rows do not store is 0. Of no rows they are infinity and -infinity.
    """
    least, most = np.full(x.shape[1], np.inf), np.full(x.shape[1], -np.inf)
    if is_sparse(x):
        columns = x.tocsc()
        columns.sum_duplicates()
        some = np.flatnonzero(np.diff(columns.indptr))
        if some.size:
            least[some] = np.minimum.reduceat(columns.data, columns.indptr[some])
            most[some] = np.maximum.reduceat(columns.data, columns.indptr[some])
        holey = np.diff(columns.indptr) < x.shape[0]
        least[holey], most[holey] = np.minimum(least[holey], 0), np.maximum(most[holey], 0)
        return least, most
    narrow = x.shape[1] < NARROW and not x.flags.f_contiguous
    step = max(1, (NARROW_ROWS if narrow else CHECKED_ROWS) // max(1, x.shape[1]))
    for lo in range(0, len(x) if x.shape[1] else 0, step):
        part = x[lo : lo + step]
        columns = np.ascontiguousarray(part.T) if narrow else part.T
        low, high = columns.min(axis=1), columns.max(axis=1)
        largest = max(-float(low.min()), float(high.max()))
        if not np.isfinite(largest):
            row, col = (int(i) for i in np.argwhere(~np.isfinite(part))[0])
            raise ValueError(f"x[{lo + row}, {col}] is {part[row, col]}: the rows must be finite")
        if largest > LARGEST[x.dtype.itemsize]:
            row, col = (int(i) for i in np.argwhere(np.abs(part) == largest)[0])
            raise ValueError(
                f"x[{lo + row}, {col}] is {part[row, col]:g}: the squares of such features overflow; scale them"
            )
        np.minimum(least, low, out=least)
        np.maximum(most, high, out=most)
    return least, most


def standard_deviations(moments: Sequence[tuple[float, Float, Float]]) -> Float:
    """Return the standard deviation of each feature from the `weighted_moments` of blocks; 1 for a constant feature."""
    total, mean, variance = moments[0]
    spread = total * variance
    for weight, there, variance in moments[1:]:
        share = weight / max(total + weight, 1e-300)
        spread = spread + weight * variance + total * share * (there - mean) ** 2
        mean, total = mean + share * (there - mean), total + weight
    variance = spread / max(total, 1e-300)
    return np.asarray(np.where(variance > 1e-30 * mean**2, np.sqrt(variance), 1.0))


def weighted_moments(x: Any, sample_weight: Float | None) -> tuple[float, Float, Float]:
    """Return Σ a, and the weighted mean and variance of each feature of an array or a CSR matrix.

    They are computed around the middle of the range and in its unit, so that features far from 0 keep their digits.
    Sparse rows are not made dense: only features without a 0, which every row stores, are moved.
    """
    least, most = feature_range(x)
    middle = (least + most) / 2
    if is_sparse(x):
        middle = np.where((least > 0) | (most < 0), middle, 0.0)
    half = np.maximum(most - middle, middle - least)
    half = np.where(half > 0, half, 1.0)
    a = np.ones(x.shape[0]) if sample_weight is None else sample_weight
    first, second = np.zeros(len(half)), np.zeros(len(half))
    if is_sparse(x):
        unit = (x.data - middle[x.indices]) / half[x.indices]
        each = np.repeat(a, np.diff(x.indptr))
        first += np.bincount(x.indices, each * unit, len(half))
        second += np.bincount(x.indices, each * unit**2, len(half))
    else:
        step = max(1, CHECKED_ROWS // max(1, x.shape[1]))
        for lo in range(0, x.shape[0], step):
            unit = (x[lo : lo + step] - middle) / half
            first += a[lo : lo + step] @ unit
            second += a[lo : lo + step] @ unit**2
    total = float(a.sum())
    mean, square = (part / max(total, 1e-300) for part in (first, second))
    variance = np.where(square - mean**2 > 1e-14, square - mean**2, 0.0)  # below that it is rounding
    return total, middle + half * mean, half**2 * variance


def _deviations(x: Any, sample_weight: Float | None) -> Float:
    """Return the `standard_deviations` of the features of all rows."""
    moments, start = [], 0
    for block in x if isinstance(x, RowBlocks) else [x]:
        stop = start + block.shape[0]
        moments.append(weighted_moments(block, None if sample_weight is None else sample_weight[start:stop]))
        start = stop
    return standard_deviations(moments)


def far_from_zero(least: Float, most: Float) -> Float | None:
    """Return what to subtract from each feature: the middle of its range if it is far from 0; None for no feature.

    Scores of such features lose digits, and the intercept nearly repeats them.  A free intercept makes the shift exact.
    """
    with np.errstate(invalid="ignore"):
        middle, half = (least + most) / 2, (most - least) / 2
        far = np.abs(middle) > FAR * np.where(half > 0, half, np.maximum(half.max(initial=0.0), 1.0))
    return np.where(far, middle, 0.0) if far.any() else None


def _fits_float32(least: Float, most: Float, shift: Float | None) -> bool:
    """Return whether the squares of features neither overflow nor vanish in float32."""
    middle = 0.0 if shift is None else shift
    reach = np.maximum(most - middle, middle - least)
    reach = reach[reach > 0]
    return not reach.size or bool(reach.max() <= LARGEST[4] and reach.min() >= 1 / LARGEST[4])


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


def _row_space(x: NDArray[Any]) -> tuple[Float, Float] | None:
    """Return coordinates of the rows and an orthonormal basis of their space; None where no basis is precise enough.

    Each feature must be given back to within `ROW_SPACE_ERROR` of its largest value.  The Gram matrix squares the ratio
    of large features to small ones; a QR decomposition with the features in descending order and with pivoting has an
    error relative to each feature (Cox and Higham, 1998), and takes longer.
    """
    wide = x.astype(np.float64)
    most = np.abs(wide).max(axis=0)
    scale = float(most.max(initial=0.0))
    if scale == 0:
        return np.zeros((len(x), 1)), np.zeros((1, x.shape[1]))
    values, vectors = linalg.eigh((wide / scale) @ (wide.T / scale), check_finite=False)
    kept = values > float(values[-1]) * len(x) * 2.0**-52
    basis: Any = (vectors[:, kept].T @ (wide / scale)) / np.sqrt(values[kept])[:, None]
    basis = linalg.qr(basis.T, mode="economic", check_finite=False)[0].T  # eigenvalues lose half the digits
    if _gives_back(wide, basis, most):
        return wide @ basis.T, np.asarray(basis, dtype=np.float64)
    if len(x) > PIVOTED_ROWS:
        return None
    order = np.argsort(-most, kind="stable")
    basis = np.empty((len(x), x.shape[1]))
    basis[:, order] = linalg.qr(wide[:, order].T / scale, mode="economic", pivoting=True, check_finite=False)[0].T
    return (wide @ basis.T, basis) if _gives_back(wide, basis, most) else None


def _gives_back(x: Float, basis: Float, most: Float) -> bool:
    """Return whether the projections of the rows on a basis have the features of the rows."""
    return bool((np.abs(x - (x @ basis.T) @ basis).max(axis=0) <= ROW_SPACE_ERROR * most).all())
