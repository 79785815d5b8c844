"""Many values of C as one unit of work: one preconditioner, and each fit starts where the last ones point."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softgrad._core.blas import single_threaded_blas
from softgrad.regression._fit import FitInterrupted, FitResult, check_options, solve
from softgrad.regression._inputs import ProblemVariables, checked
from softgrad.regression.rows._sources import RowBlocks
from softgrad.regression.solvers._state import Progress

Float = NDArray[np.float64]

COPIED = 1 << 30  # bytes of rows that the folds may hold together

__all__ = ["CrossValidation", "PathResult", "cross_validate_path", "softmax_path"]


@dataclass(frozen=True)
class PathResult:
    """Fits along a path of C, in the order of ``Cs``, which is ascending.

    Attributes
    ----------
    Cs : array (M,)
        Values of C.
    coefs, intercepts : arrays (M, K, P) and (M, K)
        One row alone for two classes.
    objectives, gaps : arrays (M,)
        As in :class:`FitResult`.
    n_iters : array (M,) of int
        Iterations.
    n_passes : float
        Products with the rows, of all fits together.
    converged : array (M,) of bool
        Whether each fit was done.
    messages : list of str
        Why each stopped.
    """

    Cs: Float
    coefs: Float
    intercepts: Float
    objectives: Float
    gaps: Float
    n_iters: NDArray[np.int64]
    n_passes: float
    converged: NDArray[np.bool_]
    messages: list[str]


@dataclass(frozen=True)
class CrossValidation:
    """What :func:`cross_validate_path` returns.

    Attributes
    ----------
    path : PathResult
        The fits of all rows.
    scores : array (n_folds, M)
        Scores of the held-out rows; NaN after an early end.
    fold_coefs, fold_intercepts : arrays (n_folds, M, K, P) and (n_folds, M, K)
        The folds' fits. A class that a fold does not have has coefficients 0 and intercept −inf there.
    n_passes : float
        Products with the rows, of all fits together.
    """

    path: PathResult
    scores: Float
    fold_coefs: Float
    fold_intercepts: Float
    n_passes: float


class _Options(NamedTuple):
    solver: str
    tol: float
    max_iter: int
    callback: Callable[[Progress], Any] | None
    coef_dtype: Any


def softmax_path(
    x: Any,
    targets: ArrayLike,
    Cs: Sequence[float] | Float,
    *,
    n_classes: int | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    offset: ArrayLike | None = None,
    fit_intercept: bool = True,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iter: int = 1000,
    max_memory: int | None = None,
    n_threads: int | None = None,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    callback: Callable[[Progress], Any] | None = None,
    coef_dtype: Any = np.float64,
    standardize: bool = False,
) -> PathResult:
    """Fit every C, from the smallest on, each from the fits before it; one preconditioner serves them all.

    Parameters
    ----------
    x, targets
        As in :func:`fit`; labels are integers in [0, K).
    Cs : sequence of float
        Values of C; they are sorted.
    n_classes : int, optional
        K; one more than the largest label, or the width of soft labels, if not given.
    sample_weight, class_weight, label_smoothing, offset, fit_intercept, solver, tol, max_iter, max_memory, n_threads
        As in :func:`fit`.
    start : (coef, intercept), optional
        Where the first fit starts.
    callback : callable (Progress), optional
        As in :func:`fit`, for every C.
    coef_dtype : dtype
        As in :func:`fit`.
    standardize : bool
        As in :func:`fit`.

    Returns
    -------
    PathResult

    Raises
    ------
    ValueError
        As :func:`fit`.
    FitInterrupted
        On Ctrl-C, with the fit that was running.

    Examples
    --------
    >>> import numpy as np
    >>> from softgrad.regression import softmax_path
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> path = softmax_path(x, [0, 0, 1, 1], [0.1, 1.0])
    >>> path.coefs.shape, bool(path.converged.all())
    ((2, 1, 1), True)

    References
    ----------
    Friedman, Hastie and Tibshirani, "Regularization paths for generalized linear models", 2010 (warm starts).
    """
    values = _grid(Cs)
    y = np.asarray(targets)
    if n_classes is None:
        n_classes = int(y.shape[1] if y.ndim == 2 else y.max(initial=0) + 1)
    for c in values:
        check_options(float(c), solver, tol, max_iter)
    inputs = checked(
        x,
        y,
        n_classes,
        sample_weight=sample_weight,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        offset=offset,
        fit_intercept=fit_intercept,
        max_memory=max_memory,
        n_threads=n_threads,
        reduce_rows=solver == "auto",
        standardize=standardize,
    )
    with single_threaded_blas():
        options = _Options(solver, tol, max_iter, callback, coef_dtype)
        results = list(_along(inputs, values, options, inputs.inner(start)))
    return _collect(values, results)


def _grid(Cs: Sequence[float] | Float) -> Float:
    values = np.sort(np.asarray(Cs, dtype=np.float64).ravel())
    if not values.size:
        raise ValueError("Cs is empty: give at least one value of C")
    return values


def _along(
    inputs: ProblemVariables,
    values: Float,
    options: _Options,
    start: tuple[Float, Float] | None,
    guides: deque[tuple[Float, Float]] | None = None,
) -> Any:
    """Fit one C after the other; ``guides`` are solutions of a problem alike, whose changes are followed.

    Whoever asks for the next fit may have changed ``inputs.preconditioner``, and added the next of ``guides``. No more
    fits are held than the next one needs: with many features and classes they are the larger part of the memory.
    """
    before: deque[tuple[Float, Float]] = deque(maxlen=2)
    for i, c in enumerate(values):
        if guides is not None:
            start = guides[-1]
            if before:
                start = (
                    before[-1][0] + guides[-1][0] - guides[-2][0],
                    before[-1][1] + guides[-1][1] - guides[-2][1],
                )
        elif len(before) > 1 and np.isfinite(c):
            ratio = np.log(c / values[i - 1]) / max(np.log(values[i - 1] / values[i - 2]), 1e-3)
            ratio = min(float(ratio), 1.5)
            start = (
                before[-1][0] + ratio * (before[-1][0] - before[-2][0]),
                before[-1][1] + ratio * (before[-1][1] - before[-2][1]),
            )
        elif before:
            start = before[-1]
        result = solve(
            inputs,
            float(c),
            solver=options.solver,
            tol=options.tol,
            max_iter=options.max_iter,
            start=start,
            callback=options.callback,
            preconditioner=inputs.preconditioner,
            coef_dtype=options.coef_dtype,
        )
        before.append((inputs.last_weight, inputs.last_bias))
        yield result


def _collect(values: Float, results: list[FitResult]) -> PathResult:
    return PathResult(
        Cs=values,
        coefs=np.stack([r.coef for r in results]),
        intercepts=np.stack([r.intercept for r in results]),
        objectives=np.array([r.objective for r in results]),
        gaps=np.array([r.gap for r in results]),
        n_iters=np.array([r.n_iter for r in results], dtype=np.int64),
        n_passes=float(sum(r.n_passes for r in results)),
        converged=np.array([r.converged for r in results]),
        messages=[r.message for r in results],
    )


def cross_validate_path(
    x: Any,
    targets: ArrayLike,
    Cs: Sequence[float] | Float,
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    *,
    n_classes: int,
    score: Callable[[NDArray[Any], NDArray[np.intp]], float],
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    offset: ArrayLike | None = None,
    fit_intercept: bool = True,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iter: int = 1000,
    max_memory: int | None = None,
    n_threads: int | None = None,
    callback: Callable[[Progress], Any] | None = None,
    early_stop: int | None = None,
    whole_path: bool = True,
    keep_folds: bool = True,
    coef_dtype: Any = np.float64,
    standardize: bool = False,
) -> CrossValidation:
    """The path of all rows, and of every fold, which follows it.

    At each C the total comes first. A fold starts at its own last fit, moved as the total moved, and is preconditioned
    with what the total was: its Hessian is nearly a part of the total's.

    Parameters
    ----------
    x, targets, Cs, n_classes
        As in :func:`softmax_path`.
    folds : sequence of (train, test)
        Indices of rows.
    score : callable (logits, rows) -> float
        Scores the logits (m, K) of held-out rows, whose indices are ``rows``; greater is better. A class that the fold
        does not have has logit −inf.
    sample_weight, class_weight, label_smoothing, offset, fit_intercept, solver, tol, max_iter, max_memory, n_threads
        As in :func:`fit`.
    callback : callable (Progress), optional
        As in :func:`fit`, for every fit.
    early_stop : int, optional
        End after so many values of C, from the smallest on, without a better mean score.
    whole_path : bool
        Whether all rows are fitted at the other values of C, too, when the scores have ended early.
    keep_folds : bool
        Whether the coefficients of the folds are part of the result; without them their arrays are empty.
    coef_dtype : dtype
        As in :func:`fit`, for every fit.
    standardize : bool
        As in :func:`fit`; each fold has the deviations of its own rows.

    Returns
    -------
    CrossValidation

    Raises
    ------
    ValueError
        As :func:`fit`.
    FitInterrupted
        On Ctrl-C, with the fit that was running, and in ``validation`` the values of C that were done.
    """
    values, y = _grid(Cs), np.asarray(targets)
    _check_folds(folds, len(y))
    inputs = checked(
        x, y, n_classes, sample_weight=sample_weight, class_weight=class_weight, label_smoothing=label_smoothing,
        offset=offset, fit_intercept=fit_intercept, max_memory=max_memory, n_threads=n_threads,
        reduce_rows=solver == "auto", standardize=standardize,
    )  # fmt: skip
    for c in values:
        check_options(float(c), solver, tol, max_iter)
    options = _Options(solver, tol, max_iter, callback, coef_dtype)
    a = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    w = None if class_weight is None else np.asarray(class_weight, dtype=np.float64)
    shift = None if offset is None else np.asarray(offset, dtype=np.float64)
    if shift is not None and shift.ndim == 1:
        shift = np.stack([-shift / 2, shift / 2], axis=1)
    runs = [
        _Fold(x, y, a, w, shift, n_classes, np.asarray(train), np.asarray(test), len(folds)) for train, test in folds
    ]
    fits = [
        run.fits(values, options, label_smoothing, fit_intercept, max_memory, n_threads, standardize) for run in runs
    ]
    free, shape = 1 if n_classes == 2 else n_classes, (len(folds), len(values))
    features = (inputs.problem.design.n_features if inputs.basis is None else inputs.basis.shape[1],)
    held = shape if keep_folds else (0, 0)
    coefs, intercepts = np.zeros((*held, free, *features)), np.zeros((*held, free))
    scores, passes = np.full(shape, np.nan), 0.0
    results: list[FitResult] = []
    best, since, ended = -np.inf, 0, False

    def so_far(done: int) -> CrossValidation:
        path = _collect(values[:done], results[:done])
        return CrossValidation(path, scores[:, :done], coefs[:, :done], intercepts[:, :done], passes)

    done = 0  # values of C with all their folds
    try:
        with single_threaded_blas():
            for i, result in enumerate(_along(inputs, values, options, None)):
                results.append(result)
                passes += result.n_passes
                if not ended:
                    for f, fold in enumerate(runs):
                        fold.follow(result, inputs)
                        coef, intercept, spent = next(fits[f])
                        passes += spent
                        if keep_folds:
                            coefs[f, i], intercepts[f, i] = coef, intercept
                        scores[f, i] = score(fold.logits(coef, intercept), fold.test)
                    mean = float(scores[:, i].mean())
                    best, since = (mean, 0) if mean > best else (best, since + 1)
                    ended = early_stop is not None and since >= early_stop
                done = i + 1
                if ended and not whole_path:
                    break
    except FitInterrupted as interruption:
        raise FitInterrupted(interruption.result, so_far(done) if done else None) from interruption
    return so_far(done)


def _check_folds(folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]], n: int) -> None:
    if not len(folds):
        raise ValueError("folds is empty: give at least one pair of train and test indices")
    for f, pair in enumerate(folds):
        for name, index in zip(("train", "test"), pair, strict=True):
            rows = np.asarray(index)
            if rows.ndim != 1 or rows.size == 0 or rows.dtype.kind not in "iu":
                raise ValueError(f"the {name} indices of fold {f} must be row numbers, at least one")
            bad = np.flatnonzero((rows < 0) | (rows >= n))
            if bad.size:
                raise ValueError(f"the {name} indices of fold {f} name row {rows[bad[0]]}; there are {n} rows")


def _bytes(x: Any) -> int:
    """Of a dense array or a sparse matrix."""
    return int(getattr(x, "data", x).nbytes if not isinstance(x, np.ndarray) else x.nbytes)


class _Fold:
    """The rows of one fold, with the classes that it has."""

    def __init__(
        self,
        x: Any,
        y: NDArray[Any],
        a: Float | None,
        w: Float | None,
        shift: Float | None,
        n_classes: int,
        train: NDArray[np.intp],
        test: NDArray[np.intp],
        copies: int,
    ) -> None:
        self.x, self.test, self.n_classes, self.shift = x, test, n_classes, shift
        weight = np.ones(len(y)) if a is None else a
        self.stream = isinstance(x, RowBlocks)
        self.train = train
        held = np.zeros(len(y), dtype=bool)
        held[train] = True
        inside = np.where(held, weight, 0.0)
        mass = np.bincount(y, inside, n_classes) if y.ndim == 1 else inside @ y
        self.present = np.flatnonzero(mass > 0)
        self.whole = len(self.present) == n_classes
        self.inputs: ProblemVariables | None = None
        self.heard: tuple[FitResult, ProblemVariables] | None = None
        self.guides: deque[tuple[Float, Float]] = deque(maxlen=2)
        # Rows that cannot be taken out, or would be too much to hold again for each fold, stay without weight.
        if self.stream or _bytes(x) * copies > COPIED:
            kept: Any = slice(None)
            self.rows, self.weight = x, inside
        else:
            kept = train
            self.rows, self.weight = x[train], weight[train]
        number = np.full(n_classes, 0)
        number[self.present] = np.arange(len(self.present))
        self.targets = number[y[kept]] if y.ndim == 1 else np.ascontiguousarray(y[kept][:, self.present])
        self.class_weight = None if w is None else w[self.present]
        self.offset = None if shift is None else shift[kept][:, self.present]

    def fits(
        self,
        values: Float,
        options: _Options,
        smoothing: float,
        fit_intercept: bool,
        max_memory: int | None,
        n_threads: int | None,
        standardize: bool,
    ) -> Any:
        """Coefficients of all classes at one C after the other, and the passes they took."""
        k, present = self.n_classes, self.present
        if len(present) < 2:
            for _ in values:
                yield self._constant((1 if k == 2 else k, self.x.n_features if self.stream else self.x.shape[1]))
            return
        inputs = self.inputs = checked(
            self.rows, self.targets, len(present), sample_weight=self.weight, class_weight=self.class_weight,
            label_smoothing=smoothing, offset=self.offset, fit_intercept=fit_intercept, max_memory=max_memory,
            n_threads=n_threads, reduce_rows=options.solver == "auto", standardize=standardize,
        )  # fmt: skip
        inputs.binomial = k == 2
        self._take()
        for result in _along(inputs, values, options, None, self.guides if self.whole else None):
            if self.whole:
                yield result.coef, result.intercept, result.n_passes
            else:
                coef, intercept = np.zeros((k, result.coef.shape[1])), np.full(k, -np.inf)
                coef[present], intercept[present] = result.coef, result.intercept
                yield coef, intercept, result.n_passes
            self._take()

    def follow(self, result: FitResult, total: ProblemVariables) -> None:
        """Hear of the total's fit at the next C."""
        self.heard = result, total

    def _take(self) -> None:
        """Start where the total's fit points, and with its preconditioner."""
        inputs = self.inputs
        if inputs is None or self.heard is None or not self.whole:
            return
        (result, total), self.heard = self.heard, None
        guide = inputs.inner((result.coef, result.intercept))
        assert guide is not None
        self.guides.append(guide)
        if inputs.basis is None and total.basis is None:
            inputs.preconditioner = total.preconditioner

    def _constant(self, shape: tuple[int, ...]) -> tuple[Float, Float, float]:
        """One class alone: it is certain."""
        if self.n_classes == 2:
            return np.zeros(shape), np.array([np.inf if self.present[0] == 1 else -np.inf]), 0.0
        intercept = np.full(self.n_classes, -np.inf)
        intercept[self.present] = 0.0
        return np.zeros(shape), intercept, 0.0

    def logits(self, coef: Float, intercept: Float) -> NDArray[Any]:
        """Of the held-out rows, for every class."""
        if self.stream:
            parts, first = [], 0
            for block in self.x:
                inside = self.test[(self.test >= first) & (self.test < first + block.shape[0])] - first
                parts.append(block[inside] @ coef.T)
                first += block.shape[0]
            order = np.argsort(np.argsort(self.test, kind="stable"), kind="stable")
            z = np.concatenate(parts)[order]
        else:
            z = self.x[self.test] @ coef.T
        z = z + intercept
        if self.n_classes == 2:
            z = z[:, 0]
            sure = np.isinf(z)
            low, high = np.where(sure & (z > 0), -np.inf, 0.0), np.where(sure, np.where(z > 0, 0.0, -np.inf), z)
            z = np.stack([low, high], axis=1)
        return z if self.shift is None else z + self.shift[self.test]
