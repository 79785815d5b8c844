"""``softgrad fit``: load, split, standardise, train, measure, save."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import softgrad
from softgrad import regression
from softgrad.cli import _model
from softgrad.cli._data import Data, check_source, load
from softgrad.cli._messages import UserError, plain_warnings, shown
from softgrad.cli._output import check_output
from softgrad.sklearn import SoftmaxRegression


@dataclass(frozen=True)
class FitOptions:
    """The options of the command, under their names."""

    test_size: float
    seed: int
    C: float
    tol: float
    max_iter: int
    label_smoothing: float
    standardize: bool
    threads: int | None

    def check(self) -> None:
        """One line for an option that cannot be."""

        def demand(option: str, value: float | None, sound: bool, wanted: str) -> None:
            if not sound:
                raise UserError(f"{option} must be {wanted}, not {value}")

        demand("--test-size", self.test_size, 0 <= self.test_size < 1, "in [0, 1): a part of the rows, or 0 for none")
        demand("--seed", self.seed, 0 <= self.seed < 2**32, "an integer in [0, 2^32)")
        demand("--C", self.C, self.C > 0, "positive (inf for no penalty)")
        demand("--tol", self.tol, 0 < self.tol < math.inf, "positive")
        demand("--max-iter", self.max_iter, 1 <= self.max_iter < 2**31, "an integer of at least 1")
        demand("--label-smoothing", self.label_smoothing, 0 <= self.label_smoothing <= 1, "in [0, 1]")
        demand("--threads", self.threads, self.threads is None or self.threads >= 1, "an integer of at least 1")


def fit(source: str, target: str | None, options: FitOptions, output: Path | None) -> None:
    """Run the command."""
    options.check()
    check_source(source)
    if output is None:
        output = Path(f"{Path(source).stem}.skops")
    check_output(output, _model.EXTENSIONS, "-o")
    data = load(source, target)
    _refuse_overflow(data)
    train, held_out = _split(data, options)

    steps: list[tuple[str, Any]] = [("scale", StandardScaler())] if options.standardize else []
    classifier = SoftmaxRegression(
        C=options.C,
        tol=options.tol,
        label_smoothing=options.label_smoothing,
        max_iter=options.max_iter,
        n_threads=options.threads,
    )
    pipeline = Pipeline([*steps, ("classify", classifier)])
    try:
        with plain_warnings(), _progress(options.max_iter) as listen:
            pipeline.fit(data.features[train], data.labels[train], classify__callback=listen)
            metrics = {
                name: _measure(pipeline, data.features[rows], data.labels[rows])
                for name, rows in (("train", train), ("held out", held_out))
                if len(rows)
            }
    except ValueError as error:  # above all features so far apart in size that the fit overflows
        raise UserError(f"{data.source}: the model cannot be fitted: {error}") from error

    _model.save(
        output,
        pipeline,
        source=data.source,
        features=data.feature_names,
        target=data.target_name,
        options=vars(options) | {"C": str(options.C)},  # JSON has no inf
        metrics=metrics,
    )
    _show(data, pipeline, metrics, output)


def _refuse_overflow(data: Data) -> None:
    """Refuse features whose sum of squares is no float64: neither the scaling nor the fit can be done with them."""
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->j", data.features, data.features)
    large = np.flatnonzero(~np.isfinite(squares))
    if large.size:
        name, most = data.feature_names[large[0]], np.abs(data.features[:, large[0]]).max()
        raise UserError(
            f"{data.source}: column {name!r} holds values up to {most:.3g}, too large to compute with: scale it"
        )


def _split(data: Data, options: FitOptions) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers to train on and to hold out, every class in its proportion in both."""
    rows = np.arange(len(data.labels))
    classes, counts = np.unique(data.labels, return_counts=True)
    if len(classes) < 2:
        raise UserError(
            f"{data.source}: the target column {data.target_name!r} holds one class only, {classes[0].item()!r}: "
            "two are needed"
        )
    if options.test_size == 0:
        return rows, rows[:0]
    if counts.min() < 2:
        alone = classes[counts.argmin()].item()
        raise UserError(
            f"{data.source}: class {alone!r} of column {data.target_name!r} has a single row, which cannot be both "
            "trained on and held out: add rows of it, remove it, or train on everything with --test-size 0"
        )
    held_out = math.ceil(options.test_size * len(rows))
    if held_out < len(classes) or len(rows) - held_out < len(classes):
        raise UserError(
            f"--test-size {options.test_size:g} of {len(rows)} rows holds out {held_out} and trains on "
            f"{len(rows) - held_out}: each needs at least one row of each of the {len(classes)} classes"
        )
    train, test = train_test_split(rows, test_size=held_out, random_state=options.seed, stratify=data.labels)
    return np.sort(train), np.sort(test)


def _measure(pipeline: Pipeline, features: NDArray[np.float64], labels: NDArray[Any]) -> dict[str, float]:
    log_probabilities = pipeline.predict_log_proba(features)
    own = np.searchsorted(pipeline[-1].classes_, labels)
    return {
        "rows": len(labels),
        "accuracy": float(np.mean(pipeline.predict(features) == labels)),
        "log_loss": float(-log_probabilities[np.arange(len(labels)), own].mean()),
    }


@contextmanager
def _progress(max_iter: int) -> Iterator[Callable[[regression.Progress], None]]:
    """A line that moves while the fit runs, on a terminal only; what to call after each iteration."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("iteration {task.completed} of at most {task.total}"),
        TextColumn("objective {task.fields[objective]}, gap {task.fields[gap]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("fit", total=max_iter, objective="…", gap="…")

        def listen(reached: regression.Progress) -> None:
            progress.update(
                task, completed=reached.iteration, objective=f"{reached.objective:.6g}", gap=f"{reached.gap:.1e}"
            )

        yield listen


def _show(data: Data, pipeline: Pipeline, metrics: dict[str, dict[str, float]], output: Path) -> None:
    console = Console()
    table = Table("rows", title=f"classes: {len(pipeline[-1].classes_)}, features: {len(data.feature_names)}")
    for heading in ("number", "accuracy", "log-loss"):
        table.add_column(heading, justify="right")
    for name, row in metrics.items():
        table.add_row(name, str(row["rows"]), f"{row['accuracy']:.4f}", f"{row['log_loss']:.4f}")
    console.print(table)
    classifier, kernel = pipeline[-1], softgrad.info()["instruction_set"]
    gap = "" if math.isnan(classifier.gap_) else f", at most {classifier.gap_:.1e} of itself above the optimum"
    console.print(
        f"{classifier.n_iter_[0]} iterations, {kernel} kernel, objective {classifier.objective_:.6g}{gap}",
        highlight=False,
    )
    console.out(f"model saved as {shown(output)}", highlight=False)
