"""``softgrad predict``: a model and a table in, labels and probabilities out, row for row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from softgrad.cli.commands._apply import Applied, rows_of
from softgrad.cli.model import _archive
from softgrad.cli.tables._sources import opened
from softgrad.cli.tables._writing import check_table, writing
from softgrad.cli.terminal._messages import UserError, plain_warnings, shown
from softgrad.cli.terminal._progress import Stages
from softgrad.loss import softmax

__all__ = ["predict"]


def predict(
    model_path: Path,
    data: str,
    output: Path,
    *,
    ids: list[str],
    top_k: int | None,
    probabilities: bool,
    delimiter: str | None,
    data_format: str | None,
) -> None:
    """Run the command."""
    if top_k is not None and top_k < 1:
        raise UserError(f"--top-k must be at least 1, not {top_k}")
    check_table(output, [model_path, Path(data)])
    model = _archive.load(model_path)
    with opened(data, delimiter=delimiter, data_format=data_format) as source, Stages() as stages, plain_warnings():
        check_table(output, source.paths)
        rows = rows_of(model, source)
        if ids:
            if not model.ingredients:
                raise UserError(f"--id {ids[0]}: svmlight has no columns with names")
            rows.require(ids, "--id: ")
        applied = Applied(model, rows, ids)
        classes, written = np.asarray(model.classes), 0
        with writing(output) as writer:
            for batch, logits in applied.batches(
                lambda done: stages.tick("predict", done, getattr(rows, "n_rows", None))
            ):
                columns: dict[str, Any] = {name: batch.columns[name] for name in ids}
                writer.write(columns | _columns(logits, classes, top_k, probabilities))
                written += batch.n_rows
        applied.warn()
    if str(output) == "-":
        print(f"{written} predictions written to standard output", file=sys.stderr)
    else:
        print(f"{written} predictions written to {shown(output)}")


def _columns(logits: Any, classes: Any, top_k: int | None, probabilities: bool) -> dict[str, Any]:
    p = softmax(logits)
    if top_k is None:
        columns = {"prediction": classes[logits.argmax(axis=1)]}
        if probabilities:
            columns |= {f"probability_{_text(label)}": p[:, k] for k, label in enumerate(classes.tolist())}
        return columns
    columns = {}
    order = np.argsort(-logits, axis=1, kind="stable")[:, : min(top_k, len(classes))]
    for rank in range(order.shape[1]):
        ending = "" if rank == 0 else f"_{rank + 1}"
        columns[f"prediction{ending}"] = classes[order[:, rank]]
        if probabilities:
            columns[f"probability{ending}"] = p[np.arange(len(p)), order[:, rank]]
    return columns


def _text(label: Any) -> str:
    """A label as a table file shows it: true, and 1 for 1.0."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) else str(label)
