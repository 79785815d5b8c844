"""The fit: at one C or at the best of several, calibrated if asked, and whatever was reached when it is interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from softgrad import regression
from softgrad.cli.terminal._messages import UserError
from softgrad.cli.terminal._results import RegularisationPath
from softgrad.loss import cross_entropy, log_softmax
from softgrad.regression import FitInterrupted, FitResult, Progress

Float = NDArray[np.float64]

AUTO = (1e-4, 1e4, 10)  # scikit-learn's
PATIENCE = 2  # values of C without a better score
ROUGH = 1e-4  # the relative gap that tells one C from another
FOLDS = 5
CALIBRATED = 100_000  # rows that decide the temperature, at most
UNSEEN = float(np.log(np.finfo(np.float64).eps))  # the log-probability of a class that a fold did not have

__all__ = ["Fitted", "TrainOptions", "TrainingRows", "parse_c", "train"]


@dataclass(frozen=True)
class TrainOptions:
    """What decides the fit."""

    Cs: tuple[float, ...]
    tol: float
    max_iter: int
    label_smoothing: float
    class_weight: Any
    calibrate: bool
    seed: int
    threads: int | None
    max_memory: int | None


@dataclass(frozen=True)
class TrainingRows:
    """What is fitted: features, targets as the fit takes them, the class of each row, weights."""

    x: Any
    targets: NDArray[Any]
    own: NDArray[np.intp]
    weight: Float | None
    n_classes: int


@dataclass(frozen=True)
class Fitted:
    """A fit at the C that was taken, and how it came about; ``history`` is that fit's."""

    C: float
    coef: Float
    intercept: Float
    objective: float
    gap: float
    n_iter: int
    n_passes: float
    history: list[Progress]
    converged: bool
    message: str
    path: RegularisationPath | None = None
    temperature: float | None = None
    interrupted: bool = False


def parse_c(text: str) -> tuple[float, ...]:
    """The values of ``--C``: a number, several with commas, a range ``1e-3:1e3`` or ``1e-3:1e3:13``, or ``auto``."""
    if text == "auto":
        return tuple(np.geomspace(*AUTO).tolist())
    advice = "give a number, several with commas, a range such as 1e-3:1e3 or 1e-3:1e3:13, or auto"
    try:
        if ":" in text:
            low, high, *rest = (float(part) for part in text.split(":"))
            if len(rest) > 1 or not (0 < low < high < math.inf) or (rest and not (rest[0] >= 2 and rest[0] % 1 == 0)):
                raise ValueError
            count = int(rest[0]) if rest else 2 * math.ceil(math.log10(high / low)) + 1
            return tuple(np.geomspace(low, high, count).tolist())
        values = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise UserError(f"--C {text}: {advice}") from None
    bad = [value for value in values if not value > 0]
    if bad:
        raise UserError(f"--C must be positive (inf for no penalty), not {bad[0]:g}")
    return values


def train(rows: TrainingRows, options: TrainOptions, listen: Callable[[str, Progress], None]) -> Fitted:
    """Fit, at one C or at that of several whose held-out folds have the least log-loss.

    Parameters
    ----------
    rows : TrainingRows
    options : TrainOptions
    listen : callable (what is being fitted, Progress)
        Called after each iteration.

    Returns
    -------
    Fitted

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C before there is anything to save; later the result says ``interrupted``.
    """
    common = {
        "sample_weight": rows.weight, "class_weight": options.class_weight,
        "label_smoothing": options.label_smoothing, "tol": options.tol, "max_iter": options.max_iter,
        "max_memory": options.max_memory, "n_threads": options.threads,
    }  # fmt: skip
    if len(options.Cs) == 1 and not options.calibrate:
        C = options.Cs[0]
        try:
            found = regression.fit(
                rows.x, rows.targets, rows.n_classes, C=C, **common,
                callback=lambda progress: listen("", progress),
            )  # fmt: skip
        except FitInterrupted as interruption:
            return _fitted(C, interruption.result, interrupted=True)
        return _fitted(C, found)
    return _search(rows, options, common, listen)


def _fitted(C: float, result: FitResult, **more: Any) -> Fitted:
    return Fitted(
        C, result.coef, result.intercept, result.objective, result.gap, result.n_iter, result.n_passes, result.history,
        result.converged, result.message, **more,
    )  # fmt: skip


class _Folds:
    """Scores the held-out folds, one C after the other, and keeps the logits of the best C to calibrate with."""

    def __init__(self, rows: TrainingRows, options: TrainOptions, folds: list[Any], listen: Any) -> None:
        self.rows, self.options, self.folds, self.listen = rows, options, folds, listen
        self.scored = 0  # folds so far: at each C all rows are fitted first, then the folds
        self.histories: dict[int, list[Progress]] = {}  # of the first fit at each C that needed an iteration
        self.in_folds = False
        rng = np.random.default_rng(options.seed)
        n = len(rows.own)
        sample = np.arange(n) if n <= CALIBRATED else np.sort(rng.choice(n, CALIBRATED, replace=False))
        self.place = np.full(n, -1)
        self.place[sample] = np.arange(len(sample))
        self.sample = sample
        self.logits = np.empty((len(sample), rows.n_classes), np.float32) if options.calibrate else None
        self.best_logits: Any = None
        self.losses: list[float] = []
        self.best = np.inf

    def hear(self, progress: Progress) -> None:
        """Tell which fit an iteration belongs to."""
        number, fold = divmod(self.scored, len(self.folds))
        if number not in self.histories:
            self.histories[number], self.in_folds = [], False
        elif progress.iteration == 1:
            self.in_folds = True
        if not self.in_folds:
            self.histories[number].append(progress)
        what = f"fold {fold + 1}" if self.in_folds else "all rows"
        self.listen(f"C = {self.options.Cs[number]:.3g}, {what}", progress)

    def score(self, logits: NDArray[Any], held: NDArray[np.intp]) -> float:
        """The negated log-loss of a fold."""
        rows = self.rows
        logs = log_softmax(np.asarray(logits, dtype=np.float64))
        logs[np.isneginf(logits)] = UNSEEN
        own = rows.targets[held]
        losses = -logs[np.arange(len(held)), own] if own.ndim == 1 else -(own * logs).sum(axis=1)
        mean = float(np.average(losses, weights=None if rows.weight is None else rows.weight[held]))
        if self.logits is not None:
            place = self.place[held]
            self.logits[place[place >= 0]] = logits[place >= 0]
        self.scored += 1
        self.losses.append(mean)
        if len(self.losses) == len(self.folds):
            if np.mean(self.losses) < self.best:
                self.best = float(np.mean(self.losses))
                self.best_logits = None if self.logits is None else self.logits.copy()
            self.losses = []
        return -mean

    def temperature(self) -> float:
        """τ with the least log-loss of the held-out logits divided by it (Guo et al., 2017, section 4.2)."""
        rows, logits = self.rows, self.best_logits
        own = rows.targets[self.sample]
        weight = None if rows.weight is None else rows.weight[self.sample]
        sure = np.isfinite(logits).all(axis=1)  # rows of folds that had all classes
        logits, own = np.asarray(logits[sure], dtype=np.float64), own[sure]
        weight = None if weight is None else weight[sure]
        if not len(own):
            return 1.0

        def loss(log_temperature: float) -> float:
            return float(cross_entropy(logits, own, sample_weight=weight, temperature=math.exp(log_temperature)))

        return math.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded", options={"xatol": 1e-6}).x)


def _search(rows: TrainingRows, options: TrainOptions, common: dict[str, Any], listen: Any) -> Fitted:
    folds = _folds(rows, options)
    state = _Folds(rows, options, folds, listen)
    interrupted = False
    rough = common | {"tol": max(options.tol, ROUGH)}
    try:
        found = regression.cross_validate_path(
            rows.x, rows.targets, list(options.Cs), folds, n_classes=rows.n_classes, score=state.score, **rough,
            callback=state.hear, early_stop=PATIENCE if len(options.Cs) > PATIENCE else None, whole_path=False,
            keep_folds=False,
        )  # fmt: skip
    except FitInterrupted as interruption:
        interrupted = True
        if interruption.validation is None:
            if len(interruption.result.coef) != (1 if rows.n_classes == 2 else rows.n_classes):
                raise  # the fit of a fold that lacks a class is no model of all
            return _fitted(options.Cs[0], interruption.result, interrupted=True)
        found = interruption.validation
    path = found.path
    best = int(np.nanargmax(found.scores.mean(axis=0)))
    C = float(path.Cs[best])
    chosen = {"path": _path(found, C) if len(options.Cs) > 1 else None}
    # A fit that began where it had to end made no iteration, and what was heard first is a fold's.
    history = state.histories.get(best, []) if path.n_iters[best] else []
    if interrupted:
        result = FitResult(
            path.coefs[best], path.intercepts[best], int(path.n_iters[best]), found.n_passes,
            float(path.objectives[best]), float(path.gaps[best]), history, bool(path.converged[best]),
            path.messages[best], "",
        )  # fmt: skip
        return _fitted(C, result, **chosen, interrupted=True)
    try:
        result = regression.fit(
            rows.x, rows.targets, rows.n_classes, C=C, **common, start=(path.coefs[best], path.intercepts[best]),
            callback=lambda progress: listen(f"C = {C:.3g}, to the tolerance", progress),
        )  # fmt: skip
    except FitInterrupted as interruption:
        result, interrupted = interruption.result, True
    result = _joined(history, result, found.n_passes)
    if not options.calibrate:
        return _fitted(C, result, **chosen, interrupted=interrupted)
    temperature = state.temperature()
    scaled = replace(result, coef=result.coef / temperature, intercept=result.intercept / temperature)
    return _fitted(C, scaled, **chosen, temperature=temperature, interrupted=interrupted)


def _joined(history: list[Progress], result: FitResult, n_passes: float) -> FitResult:
    """The iterations at the chosen C in the search, and those that brought it to its tolerance."""
    last = history[-1] if history else Progress(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    more = [
        progress._replace(
            iteration=progress.iteration + last.iteration,
            passes=progress.passes + last.passes,
            seconds=progress.seconds + last.seconds,
        )
        for progress in result.history
    ]
    n_iter = last.iteration + result.n_iter
    return replace(result, history=[*history, *more], n_iter=n_iter, n_passes=n_passes + result.n_passes)


def _path(found: Any, C: float) -> RegularisationPath:
    norms = np.sqrt((found.path.coefs**2).sum(axis=(1, 2)))
    return RegularisationPath(found.path.Cs, found.scores, C, found.path.gaps, norms)


def _folds(rows: TrainingRows, options: TrainOptions) -> list[Any]:
    from sklearn.model_selection import KFold, StratifiedKFold

    counts = np.bincount(rows.own)
    few = min(FOLDS, len(rows.own))
    if counts[counts > 0].min() < few:  # a class in fewer rows than folds cannot be in every fold
        splitter: Any = KFold(few, shuffle=True, random_state=options.seed)
    else:
        splitter = StratifiedKFold(few, shuffle=True, random_state=options.seed)
    return list(splitter.split(np.zeros((len(rows.own), 1)), rows.own))
