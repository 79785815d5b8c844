"""What a model is trained on: a built-in data set, or a table file and its target column."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.cli._messages import UserError, names, shown
from softgrad.cli._output import check_output, replacing

BUILT_IN = ("digits", "iris", "wine", "breast_cancer")
TARGET = "target"


@dataclass(frozen=True)
class Data:
    """Rows of features and their labels."""

    source: str
    features: NDArray[np.float64]
    labels: NDArray[Any]
    feature_names: list[str]
    target_name: str


def check_source(data: str) -> None:
    """Refuse what is neither a built-in data set nor a table file by its name."""
    if data not in BUILT_IN and Path(data).suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{shown(data)}: give a .csv or .parquet file, or one of {', '.join(BUILT_IN)}")


def load(data: str, target: str | None) -> Data:
    """A built-in data set by its name, or a file and the column that holds its labels."""
    check_source(data)
    if data in BUILT_IN:
        if target is not None:
            raise UserError(f"--target {target}: {data} is built in and has its own target; leave --target out")
        return built_in(data)
    from softgrad.cli import _cells, _table

    path = Path(data)
    known = _table.column_names(path)
    if target is None:
        raise UserError(f"{shown(path)}: say which column holds the labels with --target; it has {names(known)}")
    table = _table.read_table(path, [*(name for name in known if name != target), target])
    feature_names = [name for name in known if name != target]
    if not feature_names:
        raise UserError(f"{shown(path)}: has no column but the target {target!r}: there is nothing to learn from")
    labels = _cells.labels(table, target)
    return Data(shown(path), _cells.feature_matrix(table, feature_names), labels, feature_names, target)


def built_in(name: str) -> Data:
    """One of the real data sets that scikit-learn carries; digits has integers as labels, the others names."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    labels = bunch.target if name == "digits" else np.asarray(bunch.target_names)[bunch.target]
    return Data(name, np.asarray(bunch.data, dtype=np.float64), labels, [str(n) for n in bunch.feature_names], TARGET)


def export(name: str, output: Path) -> int:
    """Write a built-in data set as a table file and return its number of rows."""
    from softgrad.cli import _table

    if name not in BUILT_IN:
        raise UserError(f"{shown(name)}: there is no such built-in data set; choose one of {', '.join(BUILT_IN)}")
    check_output(output, _table.EXTENSIONS, "-o")
    data = built_in(name)
    columns = dict(zip(data.feature_names, data.features.T, strict=True))
    with replacing(output) as file:
        _table.write_table(file, output, {**columns, data.target_name: data.labels})
    return len(data.labels)
