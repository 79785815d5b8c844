"""The target: a column of labels, or columns of probabilities; and the weights of the rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from softgrad.cli.tables._cells import UnreadableError, as_numbers, cut, decoded, is_text, missing, trimmed, try_cast
from softgrad.cli.tables._reader import Reader
from softgrad.cli.terminal._messages import UserError, names

# A target with more distinct values than this, and few rows for each, is a quantity or a name, not a class.
MOST_LABELS = 20
FEWEST_ROWS_A_LABEL = 5
FEWEST_ROWS_A_NAME = 2

__all__ = ["labels", "own_classes", "soft_labels", "weights"]


def labels(reader: Reader, name: str, column: Any, like: Any = None) -> NDArray[Any]:
    """Return a whole column as labels: integers, booleans, whole floats or text.

    Text is stripped. Cells of a text file get the type that all of them have, or that of the labels ``like``, which a
    model knows already.
    """
    column = decoded(column)
    if is_text(column.type):
        column = trimmed(column)
    _refuse_gaps(reader, name, column)
    if like is not None:
        column = _converted(reader, name, column, like)
    elif reader.is_text:
        column = _inferred(reader, name, column)
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
        _refuse_quantities(reader, name, column)
    elif pa.types.is_integer(kind):
        _refuse_many(reader, name, column, FEWEST_ROWS_A_LABEL, "numbers")
    elif is_text(kind):
        _refuse_many(reader, name, column, FEWEST_ROWS_A_NAME, "texts")
        encoded = column.cast(pa.string()).dictionary_encode().combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.chunk(0)
        values: NDArray[Any] = np.array(encoded.dictionary.to_pylist())
        return np.asarray(values[encoded.indices.to_numpy(zero_copy_only=False)])
    elif not pa.types.is_boolean(kind):
        raise UserError(
            f"{reader.source.text}: column {name!r} holds {kind} values: a target holds text, integers or booleans"
        )
    return np.asarray(column.to_numpy())


def soft_labels(reader: Reader, names: list[str], columns: list[Any]) -> NDArray[np.float64]:
    """Columns of probabilities as soft labels, a column for each class."""
    values = np.column_stack([_non_negative(reader, *pair) for pair in zip(names, columns, strict=True)])
    totals = values.sum(axis=1)
    off = np.flatnonzero(np.abs(totals - 1) > 1e-3)
    if off.size:
        raise UserError(
            f"{reader.where(int(off[0]))}: the probabilities of --target-proba sum to {totals[off[0]]:g}, not to 1"
        )
    return np.asarray(values / totals[:, None])


def weights(reader: Reader, name: str, column: Any) -> NDArray[np.float64]:
    """Weights of the rows."""
    values = _non_negative(reader, name, column)
    if not values.any():
        raise UserError(f"{reader.source.text}: every weight in column {name!r} is 0")
    return values


def own_classes(part: Any, classes: NDArray[Any]) -> NDArray[np.intp]:
    """The number of each row's class, of a part of the data; an error that names the first row of another class.

    A row of weight 0 may have any class.
    """
    order = np.argsort(classes, kind="stable")
    place = np.searchsorted(classes, part.labels, sorter=order)
    found = order[np.minimum(place, len(classes) - 1)]
    known = classes[found] == part.labels
    if part.weight is not None:
        known |= part.weight == 0
    wrong = np.flatnonzero(~known)
    if wrong.size:
        row = int(wrong[0])
        raise UserError(
            f"{part.reader.where(int(part.rows[row]))}: {part.labels[row].item()!r} is not a class of the model; "
            f"it has {names([str(label) for label in classes.tolist()])}"
        )
    return np.asarray(found)


def _non_negative(reader: Reader, name: str, column: Any) -> NDArray[np.float64]:
    try:
        values = as_numbers(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    except UnreadableError as error:
        raise UserError(f"{reader.where(error.row, name)}: {error.what}") from error
    bad = np.flatnonzero(~(values >= 0))
    if bad.size:
        what = "the cell is empty" if np.isnan(values[bad[0]]) else f"{values[bad[0]]:g} is negative"
        raise UserError(f"{reader.where(int(bad[0]), name)}: {what}; a number of at least 0 is needed")
    return values


def _refuse_gaps(reader: Reader, name: str, column: Any) -> None:
    gaps = column.is_null()
    if is_text(column.type):
        gaps = pc.or_kleene(gaps, pc.equal(column, pa.scalar("")))
    row = pc.index(gaps, value=True).as_py()
    if row >= 0:
        raise UserError(f"{reader.where(row, name)}: the cell is empty; a row needs its class")


def _inferred(reader: Reader, name: str, cells: Any) -> Any:
    """Return labels written as text in their own type: integers as written (007 stays text), booleans, floats.

    Among numbers and booleans a mark such as NA says that there is no label, among texts it is one.
    """
    gaps = missing(cells)
    held = pc.if_else(gaps, pa.scalar(None, pa.string()), cells)
    typed = _typed(held)
    row = pc.index(gaps, value=True).as_py()
    if row >= 0 and not is_text(typed.type):
        raise UserError(
            f"{reader.where(row, name)}: {cut(cells[row].as_py())} says that there is no value; a row needs its class"
        )
    return cells if is_text(typed.type) else typed


def _typed(held: Any) -> Any:
    integers = try_cast(held, pa.int64())
    if integers is not None:
        return integers if pc.all(pc.equal(integers.cast(pa.string()), held)).as_py() else held
    booleans = _booleans(held)
    if booleans is not None:
        return booleans
    floats = try_cast(held, pa.float64())
    return held if floats is None else floats


def _booleans(held: Any) -> Any | None:
    lower = pc.utf8_lower(held)
    yes = pc.equal(lower, pa.scalar("true"))
    return yes if pc.all(pc.or_(yes, pc.equal(lower, pa.scalar("false")))).as_py() else None


def _converted(reader: Reader, name: str, column: Any, like: NDArray[Any]) -> Any:
    """Return a column in the type of labels that are known."""
    kind = like.dtype.kind
    if kind in "UO":
        if pa.types.is_boolean(column.type):
            return pc.if_else(column, pa.scalar("true"), pa.scalar("false"))
        return column if is_text(column.type) else column.cast(pa.string())
    if not is_text(column.type):
        return column
    convert = _booleans if kind == "b" else partial(try_cast, kind=pa.float64() if kind == "f" else pa.int64())
    found = convert(column)
    if found is None:
        row = next(i for i in range(len(column)) if convert(column.slice(i, 1)) is None)
        kinds = {"b": "true and false", "f": "numbers", "i": "integers"}[kind]
        wrong = cut(column[row].as_py())
        raise UserError(f"{reader.where(row, name)}: {wrong} is not a class of the model; its classes are {kinds}")
    return found


def _refuse_quantities(reader: Reader, name: str, column: Any) -> None:
    values = column.to_numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise UserError(f"{reader.where(int(bad[0]), name)}: {values[bad[0]]} is not a class")
    broken = np.flatnonzero(values != np.floor(values))
    if broken.size:
        row = int(broken[0])
        raise UserError(
            f"{reader.where(row, name)}: the target looks continuous: {values[row]} is not a class label; "
            "classes are text, integers or booleans"
        )
    _refuse_many(reader, name, column, FEWEST_ROWS_A_LABEL, "numbers")


def _refuse_many(reader: Reader, name: str, column: Any, fewest: int, kind: str) -> None:
    distinct, n_rows = pc.count_distinct(column).as_py(), len(column)
    if distinct > MOST_LABELS and n_rows < fewest * distinct:
        looks = "looks continuous" if kind == "numbers" else "looks like free text or names"
        raise UserError(
            f"{reader.source.text}: the target column {name!r} {looks}: {distinct} distinct {kind} in "
            f"{n_rows} rows; classes that are {kind} need at least {fewest} rows each on average"
        )
