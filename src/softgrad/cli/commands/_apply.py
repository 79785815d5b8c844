"""A model applied to a source, batch by batch: what ``predict`` and ``evaluate`` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softgrad.cli.features._frame import frame
from softgrad.cli.model._archive import Model
from softgrad.cli.model._measure import logits_of
from softgrad.cli.tables._reader import Reader, RowChunk
from softgrad.cli.tables._sources import Source
from softgrad.cli.terminal._messages import UserError, names, warning

__all__ = ["Applied", "rows_of"]


def rows_of(model: Model, source: Source, keep: int = 0) -> Any:
    """The rows of a source as the model wants them, its columns checked."""
    if not model.ingredients:
        from softgrad.cli.tables._svmlight import SparseRows

        if source.format != "svmlight":
            raise UserError(f"{source.text}: the model was trained on svmlight rows, and reads no others")
        base = model.description.get("first_feature")
        if base not in (0, 1):
            raise UserError("the model file is damaged: it does not say whether svmlight features count from 0 or 1")
        return SparseRows(source, n_features=model.classifier.n_features_in_, base=base)
    if source.format == "svmlight":
        raise UserError(f"{source.text}: is svmlight; the model reads the columns {names(model.columns)}")
    reader = Reader(source, keep=keep)
    reader.require(model.columns)
    return reader


class Applied:
    """Logits of every row, in the order of the rows.

    Parameters
    ----------
    model : Model
    rows : Reader or SparseRows
    also : list of str
        Other columns that each batch shall have.
    """

    def __init__(self, model: Model, rows: Any, also: list[str]) -> None:
        self.model, self.rows, self.also = model, rows, also
        self._known = _levels(model)
        self._unseen: dict[str, tuple[int, list[str]]] = {}

    def batches(self, tick: Callable[[int], None]) -> Iterator[tuple[RowChunk, NDArray[np.float64]]]:
        """Batches with their logits, two columns for two classes, the first then 0."""
        if not self.model.ingredients:
            n_rows, step = self.rows.x.shape[0], 1 << 14
            for first in range(0, n_rows, step):
                x = self.rows.x[first : first + step]
                yield RowChunk(first, x.shape[0], {}), self._logits(first, x)
                tick(first + x.shape[0])
            return
        wanted = list(dict.fromkeys([*self.model.columns, *self.also]))
        for batch in self.rows.batches(wanted):
            table = frame(self.rows, batch, self.model.ingredients)
            self._look(table)
            with np.errstate(over="ignore", invalid="ignore"):
                features = self.model.transformer.transform(table) if self.model.transformer else table
            yield batch, self._logits(batch.first, features)
            tick(batch.first + batch.n_rows)

    def _logits(self, first: int, features: Any) -> NDArray[np.float64]:
        held = getattr(features, "data", features) if hasattr(features, "indptr") else features
        with np.errstate(over="ignore", invalid="ignore"):
            sound = np.isfinite(held).all()
            logits = logits_of(self.model.classifier, features) if sound else np.full((features.shape[0], 1), np.nan)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if bad.size:
            dense = features.toarray() if hasattr(features, "toarray") else features
            broken = np.flatnonzero(~np.isfinite(dense).all(axis=1))
            row = int(broken[0] if broken.size else bad[0])
            raise UserError(f"{self.rows.where(first + row)}: its features are too large for this model: they overflow")
        return logits

    def _look(self, table: Any) -> None:
        for name, known in self._known.items():
            new = [level for level in table[name].tolist() if level not in known]
            if new:
                count, levels = self._unseen.get(name, (0, []))
                self._unseen[name] = (count + len(new), list(dict.fromkeys([*levels, *new]))[:3])

    def warn(self) -> None:
        """One line for each column with levels that the training did not have."""
        for name, (count, levels) in self._unseen.items():
            shown = ", ".join(repr(level) if level else "no value" for level in levels)
            warning(
                f"column {name!r}: {count} rows have levels that the training data did not have ({shown}); "
                "they count as rare, or as none where no level was rare"
            )


def _levels(model: Model) -> dict[str, set[str]]:
    if model.transformer is None:
        return {}
    for name, step, columns in model.transformer.transformers_:
        if name == "categorical":
            return {column: set(levels) for column, levels in zip(columns, step.categories_, strict=True)}
    return {}
