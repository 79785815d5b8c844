"""``softgrad fit``: look at the data, hold rows out, train, measure, save, and tell about it."""

from __future__ import annotations

import math
import shlex
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from softgrad._info import info
from softgrad.cli.commands import _cluster
from softgrad.cli.commands._account import account, figures
from softgrad.cli.commands._fit_options import FitOptions
from softgrad.cli.features._labels import own_classes
from softgrad.cli.features._load import Choice, Loaded, Part, load, stratified
from softgrad.cli.features._matrix import SparseFiles
from softgrad.cli.model import _archive, _train
from softgrad.cli.model._skops import skops_io
from softgrad.cli.tables._arrays import with_labels
from softgrad.cli.tables._output import check_output
from softgrad.cli.tables._reader import Reader
from softgrad.cli.tables._sources import Source, opened
from softgrad.cli.terminal import _show
from softgrad.cli.terminal._messages import UserError, names, plain_warnings, shown, warning
from softgrad.cli.terminal._progress import Stages
from softgrad.cli.terminal._results import Column, Training
from softgrad.regression import RowBlocks
from softgrad.sklearn._targets import FitTargets
from softgrad.sklearn._weights import class_weights

__all__ = ["FitOptions", "fit"]


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
        check_output(output, _archive.EXTENSIONS, "-o")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="softgrad-")))
        source, chosen = _completed(source, choice)
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
            "metrics": {e.name: figures(e) for e in training.evaluations},
            "weight": chosen.weight, "soft": list(chosen.target_proba),
            "first_feature": loaded.first_feature,
        }  # fmt: skip
        _archive.save(output, pipeline, loaded.ingredients, **_show.as_json(facts))
        if report is not None:
            from softgrad.cli.report._page import write

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


def _completed(source: Source, choice: Choice) -> tuple[Source, Choice]:
    """The source with its labels, and the choice with the target of data that have their own."""
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
        return source, replace(choice, target=own[source.format])
    if choice.target and choice.target_proba:
        raise UserError("--target and --target-proba: the labels are in one column, or their probabilities in several")
    if len(choice.target_proba) == 1:
        raise UserError(f"--target-proba {choice.target_proba[0]}: give one column for each class, at least two")
    source, target = with_labels(source, choice.target)
    return source, replace(choice, target=target)


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
        if held.format == "npy":
            raise UserError(f"--test {held.text}: an .npy file has features only; an .npz file has labels, too")
        test = Reader(held, keep=memory // 8)
    with plain_warnings():
        return load(
            reader, choice, test=test, split=split, standardize=options.standardize, memory=memory // 2, folder=folder,
            tick=stages.tick, look=look, spread=None if options.cluster is None else _cluster.spread,
        )  # fmt: skip


def _load_sparse(source: Source, held: Source | None, split: Any, stages: Stages) -> Loaded:
    from softgrad.cli.tables._svmlight import SparseRows

    stages.begin("read")
    rows = SparseRows(source)
    train, out = split(rows.labels, None)

    def part(name: str, of: Any, index: Any) -> Part:
        return Part(name, of.x[index], of.labels[index], None, None, index, of)

    measured = part("held out", rows, out) if len(out) else None
    if held is not None:
        if held.format != "svmlight":
            raise UserError(f"--test {held.text}: {source.text} is svmlight, and so must be the rows to measure with")
        other = SparseRows(held, n_features=rows.x.shape[1], base=rows.base)
        measured = part(held.text, other, np.arange(other.x.shape[0]))
    return Loaded(
        [], [], None, "label", None, part("train", rows, train), measured, rows.names, rows.names, False, rows.base
    )


def _class_weights(text: str | None, targets: FitTargets) -> Any:
    if text is None or text == "balanced":
        return class_weights(text, targets)
    classes = targets.classes.tolist()
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


def _rows(part: Part, classes: NDArray[Any]) -> _train.TrainingRows:
    own = own_classes(part, classes)
    x = RowBlocks.of(part.x) if isinstance(part.x, SparseFiles) else part.x
    return _train.TrainingRows(x, own if part.soft is None else part.soft, own, part.weight, len(classes))


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
    a = np.ones(len(rows.own)) if rows.weight is None else rows.weight
    totals = np.bincount(rows.own, a, len(classes)) if rows.targets.ndim == 1 else a @ rows.targets
    targets = FitTargets(rows.targets, classes, np.asarray(totals, dtype=np.float64))
    weights = _class_weights(options.class_weight, targets)
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
    classifier = _archive.classifier_of(found, classes, getattr(rows.x, "dtype", np.float64), parameters)
    stages.begin("measure")
    parts = [part for part in (loaded.train, loaded.held_out) if part is not None]
    if options.cluster is not None:
        parts = [_gathered(loaded.train)] if loaded.held_out is None else [loaded.held_out]
    C = options.C if len(Cs) > 1 else found.C
    facts = {
        "source": source.text,
        "command": shlex.join(["softgrad", *command]),
        "seconds": stages.seconds,
        "options": vars(choice) | vars(options) | {"C": C, "held out": parts[-1].name},
    }
    training = account(loaded, found, classifier, parts, targets.totals, options.seed, facts)
    steps = [("prepare", loaded.transformer)] if loaded.transformer is not None else []
    return training, Pipeline([*steps, ("classify", classifier)])


def _gathered(part: Part) -> Part:
    """Rows of a cluster in this process."""
    return replace(part, x=part.x.compute())


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
    kernel = info()["instruction_set"]
    where = ", rows on disk" if loaded.on_disk else ""
    console.print(
        f"{len(training.history)} iterations, {kernel} kernel, {len(training.feature_names)} features{where}, "
        f"objective {training.objective:.6g}, {_gap(training.gap)}",
        soft_wrap=True,
    )
    console.out(f"model saved as {shown(output)}", highlight=False)
    if report is not None:
        console.out(f"report saved as {shown(report)}", highlight=False)
