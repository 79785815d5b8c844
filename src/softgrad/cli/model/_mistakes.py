"""The rows that a model got wrong and was surest of, with their cells as they stand in the file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.cli.features._load import Part
from softgrad.cli.tables._cells import as_texts
from softgrad.cli.tables._reader import Reader
from softgrad.cli.terminal._results import Mistake
from softgrad.loss import softmax

MOST = 12
CELLS = 12  # columns that are shown
LONG = 300  # characters of a cell

__all__ = ["mistakes"]


def mistakes(part: Part, logits: NDArray[np.float64], own: NDArray[np.intp], classes: list[Any]) -> list[Mistake]:
    """The surest mistakes first."""
    chosen = logits.argmax(axis=1)
    wrong = np.flatnonzero(chosen != own)
    if not wrong.size:
        return []
    p = softmax(logits[wrong])
    sure = p[np.arange(len(wrong)), chosen[wrong]]
    order = np.argsort(-sure, kind="stable")[:MOST]
    rows = part.rows[wrong[order]]
    cells, places = _cells(part.reader, rows), part.reader.places(rows.tolist())
    return [
        Mistake(
            place=place,
            true=classes[own[wrong[i]]],
            predicted=classes[chosen[wrong[i]]],
            probability=float(sure[i]),
            probability_true=float(p[i, own[wrong[i]]]),
            cells=cells.get(int(row), {}),
        )
        for row, place, i in zip(rows, places, order, strict=True)
    ]


def _cells(reader: Any, rows: NDArray[np.intp]) -> dict[int, dict[str, str]]:
    """The first columns of some rows, as text."""
    if not isinstance(reader, Reader):
        return {}
    shown = reader.names[:CELLS]
    found: dict[int, dict[str, str]] = {}
    for batch in reader.batches(shown):
        inside = rows[(rows >= batch.first) & (rows < batch.first + batch.n_rows)] - batch.first
        for i in inside.tolist():
            texts = {name: _text(batch.columns[name].slice(i, 1)) for name in shown}
            found[batch.first + i] = {name: text[:LONG] + "…" * (len(text) > LONG) for name, text in texts.items()}
    return found


def _text(cell: Any) -> str:
    try:
        return str(as_texts(cell)[0])
    except Exception:  # a type that Arrow has no text of, such as a list
        return str(cell[0].as_py())
