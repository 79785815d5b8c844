"""``softgrad predict``: a model and a table in, labels and probabilities out, row for row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.cli import _cells, _model, _table
from softgrad.cli._data import BUILT_IN
from softgrad.cli._messages import UserError, plain_warnings, shown
from softgrad.cli._output import check_output, replacing


def _refuse_overflow(table: _table.Table, values: NDArray[np.float64]) -> None:
    unsound = np.flatnonzero(~np.isfinite(values.reshape(table.n_rows, -1)).all(axis=1))
    if unsound.size:
        raise UserError(f"{table.where(int(unsound[0]))}: its features are too large for this model: they overflow")


def _text(label: Any) -> str:
    """A label as a table file shows it: true, and 1 for 1.0."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) else str(label)


def predict(model_path: Path, data: Path, output: Path) -> None:
    """Run the command."""
    check_output(output, _table.EXTENSIONS, "-o")
    if str(data) in BUILT_IN:
        raise UserError(f"{data}: write the built-in data as a table first: softgrad data {data} -o {data}.csv")
    if output.exists() and data.exists() and output.samefile(data):
        raise UserError(f"-o {shown(output)}: is the data itself; predictions would replace it")
    model = _model.load(model_path)
    table = _table.read_table(data, model.feature_names)
    features = _cells.feature_matrix(table, model.feature_names)
    classifier = model.pipeline[-1]
    with np.errstate(over="ignore", invalid="ignore"), plain_warnings():
        for step in model.pipeline[:-1]:
            features = step.transform(features)
        _refuse_overflow(table, features)
        _refuse_overflow(table, classifier.decision_function(features))
        predicted = classifier.predict(features)
        probabilities = classifier.predict_proba(features)
    columns: dict[str, Any] = {"prediction": predicted}
    for position, label in enumerate(model.classes):
        columns[f"probability_{_text(label)}"] = probabilities[:, position]
    with replacing(output) as file:
        _table.write_table(file, output, columns)
    print(f"{len(predicted)} predictions written to {shown(output)}")
