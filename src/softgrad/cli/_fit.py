"""``softgrad fit``: look at the data, hold rows out, train, measure, save, and tell about it."""

from __future__ import annotations

import math
import os
import re
import shlex
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

import softgrad
from softgrad.cli import _cluster, _measure, _model, _show, _train
from softgrad.cli._load import Choice, Loaded, Part, load, stratified
from softgrad.cli._matrix import SparseFiles
from softgrad.cli._messages import UserError, names, plain_warnings, shown, warning
from softgrad.cli._mistakes import mistakes
from softgrad.cli._output import check_output
from softgrad.cli._progress import Stages
from softgrad.cli._reader import Reader
from softgrad.cli._results import Column, Training
from softgrad.cli._skops import skops_io
from softgrad.cli._sources import Source, opened
from softgrad.regression import RowBlocks

__all__ = ["FitOptions", "fit", "own_classes"]

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class FitOptions:
    """The options of the command, under their names."""

    split: float | None
    seed: int
    C: str
    tol: float
    max_iter: int
    label_smoothing: float
    class_weight: str | None
    calibrate: bool
    standardize: bool
    memory: str | None
    threads: int | None
    delimiter: str | None
    format: str | None
    cluster: str | None

    def check(self) -> None:
        """One line for an option that cannot be."""

        def demand(option: str, value: float | None, sound: bool, wanted: str) -> None:
            if not sound:
                raise UserError(f"{option} must be {wanted}, not {value}")

        part = 0.0 if self.split is None else self.split
        demand("--split", self.split, 0 <= part < 1, "in [0, 1): a part of the rows, or 0 for none")
        demand("--seed", self.seed, 0 <= self.seed < 2**32, "an integer in [0, 2^32)")
        demand("--tol", self.tol, 0 < self.tol < math.inf, "positive")
        demand("--max-iter", self.max_iter, 1 <= self.max_iter < 2**31, "an integer of at least 1")
        demand("--label-smoothing", self.label_smoothing, 0 <= self.label_smoothing <= 1, "in [0, 1]")
        demand("--threads", self.threads, self.threads is None or self.threads >= 1, "an integer of at least 1")

    @property
    def memory_bytes(self) -> int:
        """``--memory`` in bytes; half of the machine's if it is not given."""
        if self.memory is None:
            try:
                return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            except (AttributeError, ValueError, OSError):
                return 4 << 30
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([a-zA-Z]*)\s*", self.memory)
        try:
            amount = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
        except (KeyError, ValueError):
            amount = 0.0
        if not 1e6 <= amount < 1e18:
            raise UserError(f"--memory {self.memory}: must be at least 1MB, such as 500MB or 2GB")
        return int(amount)


def fit(
    data: str,
    choice: Choice,
    options: FitOptions,
    *,
    test: str | None,
    output: Path | None,
    report: Path | None,
    json: bool,
    command: list[str],
) -> int:
    """Run the command; 0, or 130 if Ctrl-C ended the training and the model so far was saved."""
    skops_io()  # better missed now than after the training
    options.check()
    Cs = _train.parse_c(options.C)
    memory = options.memory_bytes
    if test is not None and options.split:
        raise UserError("--test and --split: rows are held out of the data, or read from a file, not both")
    if report is not None:
        check_output(report, (".html", ".htm"), "--report")
    with ExitStack() as stack:
        source = stack.enter_context(opened(data, delimiter=options.delimiter, data_format=options.format))
        output = output or Path(f"{source.stem}.skops")
        check_output(output, _model.EXTENSIONS, "-o")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="softgrad-")))
        chosen = _completed(source, choice)
        if options.cluster is not None:
            _cluster.refuse(source, Cs, calibrate=options.calibrate)
            try:
                stack.enter_context(_cluster.cluster(options.cluster, options.threads))
            except (OSError, TimeoutError, ValueError) as error:
                raise UserError(f"--cluster {options.cluster}: cannot be reached ({error})") from error
        stages = stack.enter_context(Stages())
        held = None
        if test is not None:
            held = stack.enter_context(opened(test, delimiter=options.delimiter, data_format=options.format))

        def look(columns: list[Column]) -> None:
            stages.pause()
            log = _show.console(stderr=True)
            _show.columns_table(log, columns)
            log.print()

        loaded = _load(source, held, chosen, options, memory, folder, stages, look)
        training, pipeline = _fitted(loaded, chosen, Cs, options, memory, stages, source, command)
        stages.begin("write")
        facts = {
            "source": source.text, "target": loaded.target, "options": training.options, "command": training.command,
            "temperature": training.temperature, "interrupted": training.interrupted,
            "metrics": {e.name: _figures(e) for e in training.evaluations},
            "weight": chosen.weight, "soft": list(chosen.target_proba),
        }  # fmt: skip
        _model.save(output, pipeline, loaded.ingredients, **_show.as_json(facts))
        if report is not None:
            from softgrad.cli._report import write

            stages.begin("report")
            write(training, report)
    if json:
        _show.print_json(_show.training_json(training, str(output)))
    else:
        _tell(training, loaded, output, report)
    if training.interrupted:
        warning(f"interrupted: {shown(output)} is the model so far, {_gap(training.gap)}")
        return 130
    return 0


def _completed(source: Source, choice: Choice) -> Choice:
    """The choice with the target of data that have their own; refused if there is none."""
    own = {"built-in": "target", "svmlight": None}
    if source.format in own:
        given = choice.target or choice.target_proba
        if given:
            what = "is built in and has" if source.format == "built-in" else "is svmlight, whose rows begin with"
            raise UserError(f"--target {choice.target or choice.target_proba[0]}: {source.text} {what} its own target; "
                            "leave --target out")  # fmt: skip
        extra = [value for value in (choice.weight, *choice.features, *choice.drop, *choice.text, *choice.categorical)
                 if value is not None]  # fmt: skip
        if source.format == "svmlight" and extra:
            raise UserError(f"{source.text}: svmlight has no columns with names, such as {extra[0]!r}")
        return Choice(**(vars(choice) | {"target": own[source.format]}))
    if choice.target and choice.target_proba:
        raise UserError("--target and --target-proba: the labels are in one column, or their probabilities in several")
    if len(choice.target_proba) == 1:
        raise UserError(f"--target-proba {choice.target_proba[0]}: give one column for each class, at least two")
    return choice


def _load(
    source: Source, held: Source | None, choice: Choice, options: FitOptions, memory: int, folder: Path,
    stages: Stages, look: Any,
) -> Loaded:  # fmt: skip
    part = 0.0 if held is not None else 0.2 if options.split is None else options.split

    def split(labels: NDArray[Any], weight: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        present = np.arange(len(labels)) if weight is None else np.flatnonzero(weight)
        what = choice.target or ", ".join(choice.target_proba) or "label"
        train, out = stratified(labels[present], part, options.seed, source.text, what)
        return present[train], present[out]

    if source.format == "svmlight":
        return _load_sparse(source, held, split, stages)
    reader = Reader(source, keep=memory // 4)
    if not choice.target and not choice.target_proba:
        guess = [name for name in ("label", "target", "class", "y") if name in reader.names]
        hint = f"; perhaps --target {guess[0]}" if guess else ""
        raise UserError(
            f"{source.text}: say which column holds the labels with --target; it has {names(reader.names)}{hint}"
        )
    test = None
    if held is not None:
        if held.format == "svmlight":
            raise UserError(f"--test {held.text}: is svmlight, but {source.text} has columns with names")
        test = Reader(held, keep=memory // 8)
    with plain_warnings():
        return load(
            reader, choice, test=test, split=split, standardize=options.standardize, memory=memory // 2, folder=folder,
            tick=stages.tick, look=look, spread=None if options.cluster is None else _cluster.spread,
        )  # fmt: skip


def _load_sparse(source: Source, held: Source | None, split: Any, stages: Stages) -> Loaded:
    from softgrad.cli._svmlight import SparseRows

    stages.begin("read")
    rows = SparseRows(source)
    train, out = split(rows.labels, None)

    def part(name: str, of: Any, index: Any) -> Part:
        return Part(name, of.x[index], of.labels[index], None, None, index, of)

    measured = part("held out", rows, out) if len(out) else None
    if held is not None:
        if held.format != "svmlight":
            raise UserError(f"--test {held.text}: {source.text} is svmlight, and so must be the rows to measure with")
        other = SparseRows(held, n_features=rows.x.shape[1])
        measured = part(held.text, other, np.arange(other.x.shape[0]))
    return Loaded([], [], None, "label", None, part("train", rows, train), measured, rows.names, rows.names, False)


def _class_weights(text: str | None, classes: list[Any], rows: _train.Rows) -> Any:
    if text is None:
        return None
    if text == "balanced":
        return _train.balanced(rows)
    known = {str(label): k for k, label in enumerate(classes)}
    weights = np.ones(len(classes))
    for item in text.split(","):
        name, _, value = item.rpartition("=")
        if name not in known:
            raise UserError(
                f"--class-weight {text}: give balanced, or CLASS=WEIGHT with commas between; classes are "
                f"{names(list(known))}"
            )
        try:
            weights[known[name]] = float(value)
        except ValueError:
            raise UserError(f"--class-weight {text}: {value!r} is not a number") from None
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError(f"--class-weight {text}: weights must be positive")
    return weights


def _rows(part: Part, classes: NDArray[Any]) -> _train.Rows:
    own = own_classes(part, classes)
    x = RowBlocks.of(part.x) if isinstance(part.x, SparseFiles) else part.x
    return _train.Rows(x, own if part.soft is None else part.soft, own, part.weight, len(classes))


def own_classes(part: Part, classes: NDArray[Any]) -> NDArray[np.intp]:
    """The number of each row's class."""
    order = np.argsort(classes, kind="stable")
    place = np.searchsorted(classes, part.labels, sorter=order)
    found = order[np.minimum(place, len(classes) - 1)]
    wrong = np.flatnonzero(classes[found] != part.labels)
    if wrong.size:
        row = int(wrong[0])
        raise UserError(
            f"{part.reader.where(int(part.rows[row]))}: {part.labels[row].item()!r} is not a class of the model; "
            f"it has {names([str(label) for label in classes.tolist()])}"
        )
    return np.asarray(found)


def _fitted(
    loaded: Loaded, choice: Choice, Cs: tuple[float, ...], options: FitOptions, memory: int, stages: Stages,
    source: Source, command: list[str],
) -> tuple[Training, Pipeline]:  # fmt: skip
    classes = np.unique(loaded.train.labels) if loaded.classes is None else loaded.classes
    rows = _rows(loaded.train, classes)
    if rows.targets.ndim == 2:
        empty = np.flatnonzero(rows.targets.sum(axis=0) == 0)
        if empty.size:
            raise UserError(f"{source.text}: column {classes[empty[0]]!r} of --target-proba is 0 in every row")
    weights = _class_weights(options.class_weight, classes.tolist(), rows)
    settings = _train.TrainOptions(
        Cs=Cs, tol=options.tol, max_iter=options.max_iter, label_smoothing=options.label_smoothing,
        class_weight=weights, calibrate=options.calibrate, seed=options.seed, threads=options.threads,
        max_memory=memory // 4 if loaded.on_disk else None,
    )  # fmt: skip
    stages.begin("train")
    try:
        run = _train.train if options.cluster is None else _cluster.train
        found = run(rows, settings, stages.listen(options.tol, options.max_iter))
    except ValueError as error:  # above all features so far apart in size that the fit overflows
        raise UserError(f"{source.text}: the model cannot be fitted: {error}") from error
    if not (found.converged or found.interrupted):
        warning(f"the fit has not converged: {found.message}; raise --max-iter or --tol")
    parameters = {
        "tol": options.tol, "max_iter": options.max_iter, "label_smoothing": options.label_smoothing,
        "n_threads": options.threads,
        "class_weight": None if weights is None else dict(zip(classes.tolist(), weights.tolist(), strict=True)),
    }  # fmt: skip
    classifier = _model.classifier_of(found, classes, getattr(rows.x, "dtype", np.float64), parameters)
    stages.begin("measure")
    parts = [part for part in (loaded.train, loaded.held_out) if part is not None]
    if options.cluster is not None:
        parts = [_gathered(loaded.train)] if loaded.held_out is None else [loaded.held_out]
    evaluations, logits = [], np.zeros((0, len(classes)))
    for part in parts:
        logits = _measure.logits_of(classifier, part.x)
        own = own_classes(part, classes)
        evaluations.append(_measure.evaluate(part.name, logits, own, part.soft, part.weight, classes, options.seed))
    last = parts[-1]
    before = None
    if found.temperature is not None:
        before = _measure.reliability(logits * found.temperature, own_classes(last, classes), last.weight)
    wrong = mistakes(last, logits, own_classes(last, classes), classes.tolist())
    counts = np.bincount(rows.own, rows.weight, len(classes)) if rows.targets.ndim == 1 else (
        rows.targets.sum(axis=0) if rows.weight is None else rows.weight @ rows.targets
    )  # fmt: skip
    steps = [("prepare", loaded.transformer)] if loaded.transformer is not None else []
    coef, intercept = (
        np.asarray(classifier.coef_, dtype=np.float64),
        np.asarray(classifier.intercept_, dtype=np.float64),
    )
    if len(coef) == 1:
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    training = Training(
        source=source.text, target=loaded.target, command=shlex.join(["softgrad", *command]),
        versions=_model.versions() | {"instruction set": str(softgrad.info()["instruction_set"])},
        options=vars(choice) | vars(options) | {"C": options.C if len(Cs) > 1 else found.C, "held out": parts[-1].name},
        seconds=stages.seconds, columns=loaded.columns, classes=classes.tolist(),
        counts=np.asarray(counts, dtype=np.float64), feature_names=loaded.feature_names, origins=loaded.origins,
        coef=coef, intercept=intercept, history=classifier.history_, objective=found.objective, gap=found.gap,
        interrupted=found.interrupted, temperature=found.temperature, path=found.path, evaluations=evaluations,
        uncalibrated=before, mistakes=wrong,
    )  # fmt: skip
    return training, Pipeline([*steps, ("classify", classifier)])


def _gathered(part: Part) -> Part:
    """Rows of a cluster in this process."""
    return replace(part, x=part.x.compute())


def _figures(e: Any) -> dict[str, Any]:
    wanted = ("rows", "accuracy", "balanced_accuracy", "macro_f1", "log_loss", "log_loss_interval", "calibration_error")
    return {name: getattr(e, name) for name in wanted}


def _gap(gap: float) -> str:
    return (
        "with no bound on its gap"
        if math.isnan(gap) or gap == math.inf
        else f"at most {gap:.1e} of itself above the optimum"
    )


def _tell(training: Training, loaded: Loaded, output: Path, report: Path | None) -> None:
    console = _show.console()
    _show.evaluation_tables(console, training.evaluations, training.classes)
    console.print()
    if training.path is not None:
        console.print(
            f"C = {training.path.chosen:.4g}, the best of {len(training.path.Cs)} by the log-loss of held-out folds"
        )
    if training.temperature is not None:
        console.print(f"calibrated: the logits are divided by {training.temperature:.4f}")
    kernel = softgrad.info()["instruction_set"]
    where = ", rows on disk" if loaded.on_disk else ""
    console.print(
        f"{len(training.history)} iterations, {kernel} kernel, {len(training.feature_names)} features{where}, "
        f"objective {training.objective:.6g}, {_gap(training.gap)}",
        soft_wrap=True,
    )
    console.out(f"model saved as {shown(output)}", highlight=False)
    if report is not None:
        console.out(f"report saved as {shown(report)}", highlight=False)
