"""Delimited text: its header, its rows as batches of text cells, and what is wrong with a file that cannot be read."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.csv

from softgrad.cli.terminal._messages import UserError, shown

BLOCK_BYTES = 4 << 20

__all__ = ["batches", "header", "lines_of_rows"]


def header(path: Path, delimiter: str) -> list[str]:
    """The names in the first line of a file, which must be there, and be names."""
    try:
        with _lines(path) as file:
            found = next((record for record in csv.reader(file, delimiter=delimiter) if record), [])
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{shown(path)}: is not a table of text ({error})") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise UserError(f"{shown(path)}: the file is empty: it needs a header line with the column names")
    if all(_is_number(cell) for cell in found):
        raise UserError(
            f"{shown(path)}: the first line holds numbers ({', '.join(found[:3])}, …): it needs a header line with the "
            "column names"
        )
    if "" in found:
        raise UserError(
            f"{shown(path)}: column {found.index('') + 1} of the header has no name; "
            "if it is a row index, write the file without it"
        )
    return found


def batches(path: Path, wanted: list[str], delimiter: str, known: list[str]) -> Iterator[Any]:
    """The wanted columns, every cell as text."""
    own = header(path, delimiter)
    missing = [name for name in known if name not in own]
    if missing:
        raise UserError(f"{shown(path)}: no column {missing[0]!r}, which the first file has")
    try:
        with _stream(path) as file:
            reader = pa.csv.open_csv(
                file,
                read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pa.csv.ConvertOptions(
                    include_columns=wanted, column_types=dict.fromkeys(own, pa.string()), strings_can_be_null=False
                ),
            )
            yield from reader
    except pa.ArrowException as error:
        raise UserError(f"{shown(path)}: {_diagnosis(path, delimiter, error)}") from error
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error


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


def _lines(path: Path, errors: str = "strict") -> TextIO:
    return io.TextIOWrapper(io.BufferedReader(_stream(path)), encoding="utf-8-sig", errors=errors, newline="")


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
