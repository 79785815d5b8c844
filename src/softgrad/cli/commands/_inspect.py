"""``softgrad inspect``: what a model is, what it reads, and what it goes by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softgrad.cli.features._names import names_of, origins_of
from softgrad.cli.model import _archive
from softgrad.cli.terminal import _show

TOP = 5

__all__ = ["inspect"]


def inspect(path: Path, *, top: int, json: bool) -> None:
    """Run the command."""
    model = _archive.load(path)
    facts = model.description
    names, origins = _features(model)
    coef, intercept = _archive.symmetric_weights(model.classifier)
    columns = [
        {"name": item.name, "role": item.role, "features": origins.count(item.name)} for item in model.ingredients
    ]
    weights = [
        {
            "class": label,
            "intercept": float(intercept[k]),
            "for": [{"feature": names[i], "weight": float(coef[k, i])} for i in order[::-1][:top] if coef[k, i] > 0],
            "against": [{"feature": names[i], "weight": float(coef[k, i])} for i in order[:top] if coef[k, i] < 0],
        }
        for k, label, order in zip(
            range(len(coef)), model.classes, (np.argsort(row, kind="stable") for row in coef), strict=True
        )
    ]
    if json:
        known = {name: value for name, value in facts.items() if name != "columns"}
        _show.print_json(known | {"columns": columns, "n_features": len(names), "weights": weights})
        return
    console = _show.console()
    _print_facts(console, model, facts, len(names))
    _print_columns(console, columns)
    _print_weights(console, weights)


def _features(model: _archive.Model) -> tuple[list[str], list[str]]:
    if model.transformer is None:
        names = [f"feature {i}" for i in range(model.classifier.n_features_in_)]
        return names, names
    origins = origins_of(model.transformer, model.ingredients)
    return names_of(model.transformer, origins), origins


def _print_facts(console: Console, model: _archive.Model, facts: dict[str, Any], n_features: int) -> None:
    options = facts.get("options") or {}
    labels = ", ".join(map(str, model.classes[:12])) + (", …" if len(model.classes) > 12 else "")
    lines = {
        "trained on": facts.get("source"),
        "target": facts.get("target"),
        "classes": f"{len(model.classes)}: {labels}",
        "features": f"{n_features} of {len(model.ingredients) or n_features} columns",
        "C": f"{model.classifier.C:g}",
        "objective": f"{model.classifier.objective_:.6g}, gap {model.classifier.gap_:.1e}",
        "temperature": None if facts.get("temperature") is None else f"{facts['temperature']:.4f}",
        "interrupted": "yes: the fit did not reach its tolerance" if facts.get("interrupted") else None,
    }
    for name, figures in (facts.get("metrics") or {}).items():
        lines[name] = (
            f"{figures['rows']} rows, accuracy {figures['accuracy']:.4f}, macro-F1 {figures['macro_f1']:.4f}, "
            f"log-loss {figures['log_loss']:.4f}, calibration error {figures['calibration_error']:.4f}"
        )
    lines["seed"] = options.get("seed")
    lines["versions"] = ", ".join(f"{name} {value}" for name, value in (facts.get("versions") or {}).items())
    lines["command"] = facts.get("command")
    for name, value in lines.items():
        if value is not None:
            console.print(Text(f"{name:12} {_show.plain(str(value), 500)}"), soft_wrap=True)


def _print_columns(console: Console, columns: list[dict[str, Any]]) -> None:
    if not columns:
        return
    console.print()
    table = Table("column", "taken as", box=None, pad_edge=False, header_style="dim")
    table.add_column("features", justify="right")
    for column in columns[:50]:
        table.add_row(Text(_show.plain(column["name"])), column["role"], str(column["features"]))
    console.print(table)
    if len(columns) > 50:
        console.print(f"… and {len(columns) - 50} more")


def _print_weights(console: Console, weights: list[dict[str, Any]]) -> None:
    console.print()
    table = Table("class", "features that speak for it", "against it", box=None, pad_edge=False, header_style="dim")
    for row in weights[:30]:
        sides = [", ".join(f"{_show.plain(f['feature'], 30)} {f['weight']:+.3g}" for f in row[side])
                 for side in ("for", "against")]  # fmt: skip
        table.add_row(Text(_show.plain(str(row["class"]))), *map(Text, sides))
    console.print(table)
    if len(weights) > 30:
        console.print(f"… and {len(weights) - 30} more classes")
