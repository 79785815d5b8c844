"""From columns of cells to arrays: numbers for the features, labels for the target, or the first bad cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from softgrad.cli._messages import UserError
from softgrad.cli._table import Table

# A numeric target with more distinct values than this, and few rows for each, is a quantity, not a class.
MOST_LABELS = 20
FEWEST_ROWS_A_LABEL = 5


def feature_matrix(table: Table, names: list[str]) -> NDArray[np.float64]:
    """The named columns as a float64 matrix; every cell must be a finite number."""
    matrix = np.empty((table.n_rows, len(names)))
    for position, name in enumerate(names):
        matrix[:, position] = _numbers(table, name)
    return matrix


def labels(table: Table, name: str) -> NDArray[Any]:
    """The named column as labels: integers, booleans, whole floats or text, decided for text by all its cells."""
    column = _decoded(table.columns[name])
    _refuse_gaps(table, name, column, "a row needs its class")
    kind = column.type
    if table.is_text:
        column = _inferred(column)
        kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
        _refuse_quantities(table, name, column)
    elif pa.types.is_integer(kind):
        _refuse_many_values(table, name, column)
    elif _is_text(kind):
        encoded = column.dictionary_encode().combine_chunks()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.chunk(0)
        values: NDArray[Any] = np.array(encoded.dictionary.to_pylist())
        return np.asarray(values[encoded.indices.to_numpy(zero_copy_only=False)])
    elif not pa.types.is_boolean(kind):
        raise UserError(f"{table.path}: column {name!r} holds {kind} values: a target holds text, integers or booleans")
    return np.asarray(column.to_numpy())


def _numbers(table: Table, name: str) -> NDArray[np.float64]:
    column = _decoded(table.columns[name])
    kind = column.type
    _refuse_gaps(table, name, column, "features must be numbers; fill the cell in or leave the row out")
    if _is_text(kind):
        found = _parse_numbers(column)
        if found is None:
            row = _first_unreadable(column)
            cell = column[row].as_py()
            raise UserError(f"{table.where(row, name)}: {_cut(cell)} is not a number; features must be numbers")
        column = found
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UserError(f"{table.path}: column {name!r} holds {kind} values; features must be numbers")
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy())
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise UserError(f"{table.where(int(bad[0]), name)}: {values[bad[0]]} is not a finite number")
    return values


def _decoded(column: Any) -> Any:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _refuse_gaps(table: Table, name: str, column: Any, advice: str) -> None:
    """Refuse nulls, and in text cells that hold nothing but spaces."""
    gaps = column.is_null()
    if _is_text(column.type):
        gaps = pc.or_kleene(gaps, pc.equal(pc.utf8_trim_whitespace(column), pa.scalar("")))
    row = pc.index(gaps, value=True).as_py()
    if row >= 0:
        raise UserError(f"{table.where(row, name)}: the cell is empty; {advice}")


def _parse_numbers(column: Any) -> Any | None:
    """Text as float64, or true and false as 1 and 0, or None if some cell is no such thing."""
    trimmed = pc.utf8_trim_whitespace(column)
    numbers = _cast(trimmed, pa.float64())
    if numbers is None:
        booleans = _booleans(trimmed)
        return None if booleans is None else booleans.cast(pa.uint8())
    return numbers


def _cast(column: Any, kind: Any) -> Any | None:
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return None


def _booleans(trimmed: Any) -> Any | None:
    """A column whose every cell is true or false, in any case."""
    lower = pc.utf8_lower(trimmed)
    yes = pc.equal(lower, pa.scalar("true"))
    return yes if pc.all(pc.or_(yes, pc.equal(lower, pa.scalar("false")))).as_py() else None


def _first_unreadable(column: Any) -> int:
    """The first cell that is no number, by bisection: the cells before it parse, those up to it do not."""
    trimmed = pc.utf8_trim_whitespace(column)
    low, high = 0, len(trimmed)
    while high - low > 1:
        middle = (low + high) // 2
        if _cast(trimmed.slice(low, middle - low), pa.float64()) is None:
            high = middle
        else:
            low = middle
    return low


def _inferred(column: Any) -> Any:
    """Labels written as text in their own type: integers as people write them (007 stays text), booleans, floats."""
    trimmed = pc.utf8_trim_whitespace(column)
    integers = _cast(trimmed, pa.int64())
    if integers is not None:
        return integers if pc.all(pc.equal(integers.cast(pa.string()), trimmed)).as_py() else column
    booleans = _booleans(trimmed)
    if booleans is not None:
        return booleans
    floats = _cast(trimmed, pa.float64())
    return column if floats is None else floats


def _refuse_quantities(table: Table, name: str, column: Any) -> None:
    values = column.to_numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise UserError(f"{table.where(int(bad[0]), name)}: {values[bad[0]]} is not a class")
    broken = np.flatnonzero(values != np.floor(values))
    if broken.size:
        row = int(broken[0])
        raise UserError(
            f"{table.where(row, name)}: the target looks continuous: {values[row]} is not a class label; "
            "classes are text, integers or booleans"
        )
    _refuse_many_values(table, name, column)


def _refuse_many_values(table: Table, name: str, column: Any) -> None:
    distinct = pc.count_distinct(column).as_py()
    if distinct > MOST_LABELS and table.n_rows < FEWEST_ROWS_A_LABEL * distinct:
        raise UserError(
            f"{table.path}: the target column {name!r} looks continuous: {distinct} distinct numbers in "
            f"{table.n_rows} rows; classes that are numbers need at least {FEWEST_ROWS_A_LABEL} rows each on average"
        )


def _cut(cell: str, most: int = 40) -> str:
    return repr(cell if len(cell) <= most else cell[: most - 1] + "…")
