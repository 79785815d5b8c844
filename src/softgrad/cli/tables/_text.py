"""Delimited text: its header, its rows as batches of text cells, and what is wrong with a file that cannot be read."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.csv

from softgrad.cli.terminal._messages import UserError

BLOCK_BYTES = 4 << 20
MOST_BLOCK_BYTES = 1 << 30  # of a row that is longer than a block
MOST_CELL = (1 << 31) - 1  # letters of a cell

__all__ = ["batches", "header", "lines_of_rows"]


def header(path: Path, delimiter: str, place: str) -> list[str]:
    """The names in the first line of a file, which must be there, and be names; ``place``: the file in messages."""
    try:
        with _lines(path) as file:
            found = next((record for record in csv.reader(file, delimiter=delimiter) if record), [])
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{place}: is not a table of text ({error})") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {place}: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise UserError(f"{place}: the file is empty: it needs a header line with the column names")
    if all(_is_number(cell) for cell in found):
        raise UserError(
            f"{place}: the first line holds numbers ({', '.join(found[:3])}, …): it needs a header line with the "
            "column names"
        )
    if "" in found:
        raise UserError(
            f"{place}: column {found.index('') + 1} of the header has no name; "
            "if it is a row index, write the file without it"
        )
    return found


def batches(path: Path, wanted: list[str], delimiter: str, known: list[str], place: str) -> Iterator[Any]:
    """The wanted columns, every cell as text; blocks grow with the longest row."""
    own = header(path, delimiter, place)
    missing = [name for name in known if name not in own]
    if missing:
        raise UserError(f"{place}: no column {missing[0]!r}, which the first file has")
    size, done = BLOCK_BYTES, 0
    try:
        while True:
            try:
                for batch in _blocks(path, wanted, delimiter, own, size, done):
                    yield batch
                    done += batch.num_rows
                return
            except pa.ArrowInvalid as error:
                if "straddling object" not in str(error) or size >= MOST_BLOCK_BYTES:
                    raise
                size *= 8
    except pa.ArrowException as error:
        raise UserError(f"{place}: {_diagnosis(path, delimiter, error)}") from error
    except OSError as error:
        raise UserError(f"cannot read {place}: {error.strerror or error}") from error


def _blocks(path: Path, wanted: list[str], delimiter: str, own: list[str], size: int, skipped: int) -> Iterator[Any]:
    """Batches of a file in blocks of so many bytes, without its first rows."""
    with _stream(path) as file:
        reader = pa.csv.open_csv(
            file,
            read_options=pa.csv.ReadOptions(block_size=size),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(own, pa.string()), strings_can_be_null=False
            ),
        )
        for batch in reader:
            known = min(skipped, batch.num_rows)
            skipped -= known
            if known < batch.num_rows:
                yield batch.slice(known)


def lines_of_rows(path: Path, rows: Collection[int], delimiter: str) -> dict[int, int]:
    """The lines of the file on which some data rows begin; read anew, for messages only."""
    wanted, last = set(rows), max(rows, default=-1)
    found = {}
    for number, (line, _) in enumerate(_records(path, delimiter)):
        if number - 1 in wanted:
            found[number - 1] = line
        if number > last:
            break
    return found


def _stream(path: Path) -> Any:
    """The bytes of a file, decompressed."""
    return pa.input_stream(str(path), compression="detect")


@contextmanager
def _lines(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """The lines of a file for a `csv.reader`, whose limit of the letters of a cell is lifted meanwhile."""
    limit = csv.field_size_limit(MOST_CELL)
    try:
        with io.TextIOWrapper(
            io.BufferedReader(_stream(path)), encoding="utf-8-sig", errors=errors, newline=""
        ) as file:
            yield file
    finally:
        csv.field_size_limit(limit)


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record of a file with the line it begins on, as pyarrow counts records: blank lines are none."""
    with _lines(path, "replace") as file:
        reader = csv.reader(file, delimiter=delimiter)
        begins = 1
        for record in reader:
            if record:
                yield begins, record
            begins = reader.line_num + 1


def _diagnosis(path: Path, delimiter: str, error: Exception) -> str:
    if "UTF8" in str(error):
        return "is not UTF-8 text; save it as UTF-8"
    try:
        width = 0
        for number, (line, record) in enumerate(_records(path, delimiter)):
            width = width or len(record)
            if len(record) != width:
                return f"row {number} (line {line}) has {len(record)} cells, the header has {width}"
    except csv.Error as refusal:
        return f"is not a table of text ({refusal})"
    except (OSError, pa.ArrowException):
        pass
    return f"cannot be read ({error})"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
