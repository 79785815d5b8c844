"""The path over C of all rows and of every fold, of every class: from validated data to arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from softgrad import regression
from softgrad.sklearn._callbacks import Monitor
from softgrad.sklearn._class_support import ABSENT, fit_arguments
from softgrad.sklearn._fit_data import FitData
from softgrad.sklearn._fitting import SolverOptions
from softgrad.sklearn._folds import Fold
from softgrad.sklearn._scoring import Score

__all__ = ["FoldPaths", "fit_paths", "warn_unless_all_converged"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class FoldPaths:
    """Fits and scores at each C.

    Attributes
    ----------
    Cs : array (n_Cs,)
        Values of C, ascending.
    coefs, intercepts : arrays (n_Cs, 1 or n_classes, n_features) and (n_Cs, 1 or n_classes)
        Fits of all rows.
    objectives, gaps, n_iters : arrays (n_Cs,)
        As of :class:`softgrad.regression.PathResult`.
    fold_coefs, fold_intercepts : arrays (n_folds, n_Cs, 1 or n_classes, n_features) and without the last axis
        Fits of the training rows of each fold.
    fold_n_iters : array of int (n_folds, n_Cs)
        Their iterations.
    scores : array (n_folds, n_Cs)
        Scores of the held-out rows.
    n_passes : float
        Passes over the rows that everything took.
    messages, converged : list of str and array of bool (n_Cs,)
        How the fits of all rows ended.
    """

    Cs: Float
    coefs: Float
    intercepts: Float
    objectives: Float
    gaps: Float
    n_iters: NDArray[np.int32]
    fold_coefs: Float
    fold_intercepts: Float
    fold_n_iters: NDArray[np.int32]
    scores: Float
    n_passes: float
    messages: list[str]
    converged: NDArray[np.bool_]


class _Iterations:
    """Iterations of the fits of the folds, counted between calls of the score, which ends each of them."""

    def __init__(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback
        self.runs: list[int] = []
        self.of_scores: list[list[int]] = []

    def __call__(self, progress: Any) -> None:
        if progress.iteration == 1 or not self.runs:
            self.runs.append(0)
        self.runs[-1] = progress.iteration
        self.callback(progress)

    def scored(self) -> None:
        """End a fold's fit."""
        self.of_scores.append(self.runs)
        self.runs = []

    def by_fold(self, n_folds: int, totals: NDArray[Any]) -> NDArray[np.int32]:
        """Iterations (n_folds, n_Cs): the fit of all rows, of ``totals`` iterations, runs before the first fold's."""
        found = np.zeros((n_folds, len(totals)), dtype=np.int32)
        for number, runs in enumerate(self.of_scores):
            c, fold = divmod(number, n_folds)
            own = runs[1:] if fold == 0 and totals[c] > 0 else runs
            found[fold, c] = own[-1] if own else 0
        return found


def fit_paths(
    estimator: Any,
    data: FitData,
    Cs: Float,
    folds: list[Fold],
    score: Score,
    options: SolverOptions,
    *,
    callback: Callable[[Any], Any] | None = None,
    early_stop: int | None = None,
) -> tuple[FoldPaths, Monitor]:
    """Fit and score; ``options.C`` is not used. The monitor is to be ended once the estimator is fitted."""
    support, arguments = fit_arguments(data, options.label_smoothing, options.fit_intercept)
    if len(support.index) < 2:
        raise ValueError(
            f"{type(estimator).__name__} needs at least two classes with a positive weight, but only "
            f"{data.targets.classes.tolist()[support.index[0]]!r} has one"
        )
    monitor = Monitor(estimator, data, callback, scale=support.c_scale)
    iterations = _Iterations(monitor)

    def scored(logits: NDArray[Any], rows: NDArray[np.intp]) -> float:
        iterations.scored()
        return score(support.expand_logits(logits), rows)

    found = regression.cross_validate_path(
        data.x,
        arguments.pop("targets"),
        Cs * support.c_scale,
        folds,
        **arguments,
        score=scored,
        solver=options.solver,
        tol=options.tol,
        max_iter=options.max_iter,
        max_memory=options.max_memory,
        n_threads=options.n_threads,
        callback=iterations,
        early_stop=early_stop,
        coef_dtype=data.x.dtype,
        standardize=options.standardize,
    )
    path = found.path
    coefs, intercepts = support.expand(path.coefs, path.intercepts)
    # A class that the rows of a fold lack has an intercept of minus infinity there.
    fold_coefs, fold_intercepts = support.expand(found.fold_coefs, np.clip(found.fold_intercepts, ABSENT, -ABSENT))
    return FoldPaths(
        Cs,
        coefs,
        intercepts,
        np.asarray(path.objectives, dtype=np.float64) / support.c_scale,
        np.asarray(path.gaps, dtype=np.float64),
        np.asarray(path.n_iters, dtype=np.int32),
        fold_coefs,
        fold_intercepts,
        iterations.by_fold(len(folds), path.n_iters),
        np.asarray(found.scores, dtype=np.float64),
        float(found.n_passes),
        list(path.messages),
        np.asarray(path.converged),
    ), monitor


def warn_unless_all_converged(paths: FoldPaths, stacklevel: int) -> None:
    """Say at which C the fit of all rows has not converged."""
    early = np.flatnonzero(~paths.converged)
    if early.size:
        warnings.warn(
            f"the fit has not converged at {len(early)} of {len(paths.Cs)} values of C, the first C = "
            f"{paths.Cs[early[0]]:g}: {paths.messages[early[0]]}; raise max_iter or tol, or scale the features",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )
