"""From cells to values: numbers, dates, lists and text as NumPy arrays, or the first cell that is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# How tables say that a number is not known: what pandas reads as missing, and the marks of SAS, UCI and C.
# In a column of text these are texts like any other, but for the first.
MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null", "na", "NAN", "-NAN", "Null", "none", ".", "?",
)  # fmt: skip
_MISSING = pa.array(MISSING)
_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?Z?)?$"
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

__all__ = [
    "MISSING", "UnreadableError", "as_dates", "as_lists", "as_numbers", "as_texts", "cut", "decoded", "is_date",
    "is_list", "is_text", "looks_like_dates", "missing", "readable_numbers", "trimmed", "try_cast",
]  # fmt: skip


class UnreadableError(Exception):
    """A cell that is not what its column holds."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row, self.what = row, what


def decoded(column: Any) -> Any:
    """A column without its dictionary."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_date(kind: Any) -> bool:
    """Whether an Arrow type is a day or a moment."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is a list of numbers."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    inner = kind.value_type
    return bool(pa.types.is_integer(inner) or pa.types.is_floating(inner))


def trimmed(column: Any) -> Any:
    """Text without the spaces around it."""
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    return pc.utf8_trim_whitespace(column)


def missing(column: Any) -> Any:
    """Which cells have no value; of text, trimmed, those that say so."""
    gaps = column.is_null()
    if is_text(column.type):
        return pc.or_kleene(gaps, pc.is_in(column, value_set=_MISSING))
    if pa.types.is_floating(column.type):
        return pc.or_kleene(gaps, pc.is_nan(column))
    return gaps


def try_cast(column: Any, kind: Any) -> Any | None:
    """The column in another type, or None if some cell is none of it."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return None


def readable_numbers(cells: Any) -> Any:
    """Which cells of trimmed text are numbers."""
    return pc.match_substring_regex(cells, _NUMBER)


def looks_like_dates(cells: Any) -> bool:
    """Whether all cells of trimmed text, but those that are missing, are ISO dates or times that exist."""
    held = pc.if_else(missing(cells), None, cells)
    if not pc.all(pc.match_substring_regex(held, _DATE), min_count=0).as_py():
        return False
    return try_cast(pc.utf8_rtrim(held, "Z"), pa.timestamp("us")) is not None


def as_numbers(column: Any) -> NDArray[np.float64]:
    """Numbers, NaN where there is none; true and false are 1 and 0."""
    column = decoded(column)
    kind = column.type
    if is_text(kind):
        cells = trimmed(column)
        held = pc.if_else(missing(cells), None, cells)
        numbers = try_cast(held, pa.float64())
        if numbers is None:
            numbers = _booleans(held)
        if numbers is None:
            row = _first_unreadable(held)
            raise UnreadableError(row, f"{cut(cells[row].as_py())} is not a number")
        column = numbers
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UnreadableError(0, f"{kind} values are not numbers")
    values = np.array(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    bad = np.flatnonzero(np.isinf(values))
    if bad.size:
        raise UnreadableError(int(bad[0]), f"{values[bad[0]]} is not a finite number")
    return values


def as_texts(column: Any) -> NDArray[np.object_]:
    """Text, empty where there is none."""
    column = decoded(column)
    kind = column.type
    if pa.types.is_boolean(kind):
        column = pc.if_else(column, pa.scalar("true"), pa.scalar("false"))
    elif not is_text(kind):
        column = column.cast(pa.string())
    return np.array(pc.fill_null(trimmed(column), "").to_pylist(), dtype=object)


def as_dates(column: Any) -> NDArray[np.datetime64]:
    """Moments, NaT where there is none."""
    column = decoded(column)
    if is_text(column.type):
        cells = trimmed(column)
        held = pc.utf8_rtrim(pc.if_else(missing(cells), None, cells), "Z")
        moments = try_cast(held, pa.timestamp("us"))
        if moments is None:
            row = next(i for i in range(len(held)) if try_cast(held.slice(i, 1), pa.timestamp("us")) is None)
            raise UnreadableError(
                row, f"{cut(cells[row].as_py())} is not a date such as 2024-02-29 or 2024-02-29 17:30"
            )
        column = moments
    elif pa.types.is_timestamp(column.type) and column.type.tz is not None:
        column = pc.cast(column, pa.timestamp("us", column.type.tz)).cast(pa.timestamp("us"))
    return np.asarray(column.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False), dtype="datetime64[us]")


def as_lists(column: Any, width: int) -> NDArray[np.floating[Any]]:
    """Lists of numbers as a matrix, a row of NaN where there is none."""
    lengths = pc.fill_null(pc.list_value_length(column), width).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        raise UnreadableError(int(wrong[0]), f"the list has {lengths[wrong[0]]} numbers, others have {width}")
    flat = column.flatten()
    kind = np.float32 if pa.types.is_float32(flat.type) or pa.types.is_float16(flat.type) else np.float64
    held = np.asarray(flat.cast(pa.float32() if kind == np.float32 else pa.float64()).to_numpy(zero_copy_only=False))
    gaps = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if not gaps.any():
        values = held.reshape(len(column), width)
    else:
        values = np.full((len(column), width), np.nan, dtype=kind)
        values[~gaps] = held.reshape(-1, width)
    infinite = np.flatnonzero(np.isinf(values).any(axis=1))
    if infinite.size:
        raise UnreadableError(int(infinite[0]), "the list holds a number that is not finite")
    return values


def cut(cell: str, most: int = 40) -> str:
    """A cell for a message."""
    return repr(cell if len(cell) <= most else cell[: most - 1] + "…")


def _booleans(held: Any) -> Any | None:
    """A column whose every cell is true or false, in any case."""
    lower = pc.utf8_lower(held)
    yes = pc.equal(lower, pa.scalar("true"))
    sound = pc.all(pc.or_(yes, pc.equal(lower, pa.scalar("false"))), min_count=0).as_py()
    return yes.cast(pa.uint8()) if sound else None


def _first_unreadable(held: Any) -> int:
    """The first cell that is no number, by bisection: the cells before it parse, those up to it do not."""
    low, high = 0, len(held)
    while high - low > 1:
        middle = (low + high) // 2
        if try_cast(held.slice(low, middle - low), pa.float64()) is None:
            high = middle
        else:
            low = middle
    return low
