"""Results on standard output: tables for people, JSON for machines."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softgrad.cli.terminal._results import Column, Evaluation, Training

CLASSES = 30  # rows of the table of classes

__all__ = [
    "as_json",
    "columns_table",
    "console",
    "evaluation_json",
    "evaluation_tables",
    "plain",
    "print_json",
    "training_json",
]


def console(*, stderr: bool = False) -> Console:
    """A console that breaks no lines where nobody looks."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=200)


def print_json(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(as_json(value), indent=2, ensure_ascii=False))


def as_json(value: Any) -> Any:
    """Numbers, text, lists and dictionaries; NaN, for which JSON has no number, is null, ∞ the text "inf" or "-inf"."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def columns_table(to: Console, columns: list[Column]) -> None:
    """What each column is taken for."""
    table = Table("column", "taken as", box=None, pad_edge=False, header_style="dim")
    for heading in ("missing", "distinct", "features"):
        table.add_column(heading, justify="right")
    table.add_column("")
    alike = _alike(columns)
    for first, last, count in alike:
        name = first.name if count == 1 else f"{first.name} … {last.name} ({count})"
        style = "dim" if first.role == "left out" else ""
        missing = sum(c.missing for c in columns if first.role == c.role) if count > 1 else first.missing
        distinct = "" if first.distinct is None or count > 1 else str(first.distinct)
        features = first.features if count == 1 else sum(c.features for c in columns if c.role == first.role)
        notes = {c.note for c in columns if c.role == first.role} if count > 1 else {first.note}
        note = first.note if len(notes) == 1 else ""
        cells = (name, first.role, str(missing or ""), distinct, str(features or ""), note)
        table.add_row(*(Text(plain(cell), style=style) for cell in cells))
    to.print(table)


def _alike(columns: list[Column]) -> list[tuple[Column, Column, int]]:
    """Of very many columns those of one role as one line."""
    if len(columns) <= CLASSES:
        return [(column, column, 1) for column in columns]
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.role, []).append(column)
    return [(group[0], group[-1], len(group)) for group in groups.values()]


def evaluation_tables(to: Console, evaluations: list[Evaluation], classes: list[Any]) -> None:
    """The figures that count, then classes and mistakes of the last."""
    table = Table("rows", box=None, pad_edge=False, header_style="dim")
    for heading in ("number", "accuracy", "balanced", "macro-F1", "log-loss", "95 %", "calibr. error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for e in evaluations:
        low, high = e.log_loss_interval
        table.add_row(
            Text(plain(e.name)), f"{e.rows}", f"{e.accuracy:.4f}", f"{e.balanced_accuracy:.4f}", f"{e.macro_f1:.4f}",
            f"{e.log_loss:.4f}", f"{low:.4f}–{high:.4f}", f"{e.calibration_error:.4f}",
        )  # fmt: skip
    to.print(table)
    last = evaluations[-1]
    unit = "rows" if round(float(last.support.sum()), 6) == last.rows else "weight"
    to.print()
    table = Table(f"class ({plain(last.name)})", box=None, pad_edge=False, header_style="dim")
    for heading in (unit, "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    order = np.argsort(np.where(np.isnan(last.f1), np.inf, last.f1), kind="stable")
    shown = range(len(classes)) if len(classes) <= CLASSES else order[:CLASSES]
    for k in shown:
        cells = (_number(last.precision[k]), _number(last.recall[k]), _number(last.f1[k]))
        table.add_row(Text(plain(str(classes[k]))), f"{last.support[k]:.6g}", *cells)
    to.print(table)
    if len(classes) > CLASSES:
        to.print(f"… and {len(classes) - CLASSES} more classes, all with a larger F1")
    if last.confused:
        to.print()
        table = Table("most confused", "taken for", box=None, pad_edge=False, header_style="dim")
        table.add_column(unit, justify="right")
        for pair in last.confused[:5]:
            names = (Text(plain(str(pair.true))), Text(plain(str(pair.predicted))))
            table.add_row(*names, f"{pair.rows:.6g}")
        to.print(table)


def evaluation_json(e: Evaluation, classes: list[Any]) -> dict[str, Any]:
    """An evaluation for machines."""
    return {
        "rows": e.rows,
        "accuracy": e.accuracy,
        "balanced_accuracy": e.balanced_accuracy,
        "macro_f1": e.macro_f1,
        "log_loss": e.log_loss,
        "log_loss_interval": list(e.log_loss_interval),
        "calibration_error": e.calibration_error,
        "classes": [
            {"class": name, "rows": rows, "precision": precision, "recall": recall, "f1": f1}
            for name, rows, precision, recall, f1 in zip(classes, e.support, e.precision, e.recall, e.f1, strict=True)
        ],
        "confused": [{"true": c.true, "predicted": c.predicted, "rows": c.rows} for c in e.confused],
    }


def training_json(training: Training, output: str) -> dict[str, Any]:
    """The account of a fit for machines."""
    path = training.path
    return {
        "model": output,
        "source": training.source,
        "target": training.target,
        "classes": training.classes,
        "features": len(training.feature_names),
        "columns": [
            {"name": c.name, "role": c.role, "missing": c.missing, "distinct": c.distinct, "features": c.features,
             "note": c.note}
            for c in training.columns
        ],
        "options": training.options,
        "C": path.chosen if path else training.options["C"],
        "temperature": training.temperature,
        "objective": training.objective,
        "gap": training.gap,
        "iterations": len(training.history),
        "interrupted": training.interrupted,
        "path": None if path is None else [
            {"C": C, "log_loss": -score, "gap": gap}
            for C, score, gap in zip(path.Cs, path.scores.mean(axis=0), path.gaps, strict=True)
        ],
        "evaluations": {e.name: evaluation_json(e, training.classes) for e in training.evaluations},
        "seconds": training.seconds,
        "versions": training.versions,
        "command": training.command,
    }  # fmt: skip


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def plain(text: str, most: int = 60) -> str:
    """One printable line, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
