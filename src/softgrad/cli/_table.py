"""Tables in files: CSV and Parquet by pyarrow, and where in the file a row stands."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from softgrad.cli._messages import UserError, names, shown, suggestion

EXTENSIONS = (".csv", ".parquet")


@dataclass(frozen=True)
class Table:
    """Some columns of a file; those of a CSV file hold text, as they stand there."""

    path: Path
    is_text: bool
    columns: dict[str, Any]  # name → pyarrow.ChunkedArray
    n_rows: int

    def where(self, row: int, column: str | None = None) -> str:
        """The place of a row or a cell for a message; rows count from 1 and the header is not one of them."""
        line = f" (line {_line_of_row(self.path, row)})" if self.is_text else ""
        cell = "" if column is None else f", column {column!r}"
        return f"{shown(self.path)}: row {row + 1}{line}{cell}"


def column_names(path: Path) -> list[str]:
    """The names in the header of a table file, which must be there, distinct and not empty."""
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{shown(path)}: tables are read from .csv and .parquet files")
    if not path.exists():
        raise UserError(f"{shown(path)}: no such file")
    if not path.is_file():
        raise UserError(f"{shown(path)}: is not a file")
    try:
        found = _csv_header(path) if _is_csv(path) else list(pa.parquet.ParquetFile(path).schema_arrow.names)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise UserError(f"{shown(path)}: is not a Parquet file that can be read ({error})") from error
    if not found:
        raise UserError(f"{shown(path)}: the file is empty: it needs a header line with the column names")
    if _is_csv(path) and "" in found:
        raise UserError(
            f"{shown(path)}: column {found.index('') + 1} of the header has no name; "
            "if it is a row index, write the file without it"
        )
    repeated = [name for name, count in Counter(found).items() if count > 1]
    if repeated:
        raise UserError(f"{shown(path)}: the header names column {repeated[0]!r} more than once")
    # pandas stores the index of a filtered or shuffled table under such a name: it is the row's place, not a feature.
    return [name for name in found if not (name.startswith("__index_level_") and name.endswith("__"))]


def read_table(path: Path, wanted: list[str]) -> Table:
    """Read the wanted columns of a file, each of which must be there, and at least one row."""
    known = column_names(path)
    missing = [name for name in wanted if name not in known]
    if missing:
        hint = suggestion(missing[0], known)
        if len(known) == 1 and any(mark in known[0] for mark in ";\t|"):
            hint = "; the header has no comma: is the file separated by something else?"
        noun = "column" if len(missing) == 1 else "columns"
        raise UserError(f"{shown(path)}: no {noun} {names(missing)}; it has {names(known)}{hint}")
    try:
        arrow = _read_csv(path, wanted) if _is_csv(path) else pa.parquet.ParquetFile(path).read(columns=wanted)
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise UserError(f"{shown(path)}: {_diagnosis(path, error)}") from error
    if arrow.num_rows == 0:
        raise UserError(f"{shown(path)}: has a header but no rows")
    columns = {name: arrow.column(name) for name in wanted}
    return Table(path=path, is_text=_is_csv(path), columns=columns, n_rows=arrow.num_rows)


def write_table(file: BinaryIO, path: Path, columns: dict[str, Any]) -> None:
    """Write columns to an open file, in the format of the path's extension."""
    arrow = pa.table({name: pa.array(values) for name, values in columns.items()})
    if not _is_csv(path):
        pa.parquet.write_table(arrow, file)
        return
    body = pa.BufferOutputStream()
    try:  # pyarrow's other style quotes every text; this one refuses what needs quotes
        plain = pa.csv.WriteOptions(include_header=False, quoting_style="none")
        pa.csv.write_csv(arrow, body, plain)
    except pa.ArrowInvalid:
        body = pa.BufferOutputStream()
        pa.csv.write_csv(arrow, body, pa.csv.WriteOptions(include_header=False))
    file.write(_csv_line(list(columns)))
    file.write(body.getvalue())


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _csv_line(cells: list[str]) -> bytes:
    """One line of CSV, quoted where it must be."""
    quoted = ['"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell for cell in cells]
    return (",".join(quoted) + "\n").encode()


def _csv_header(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next((record for record in csv.reader(file) if record), [])
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{shown(path)}: is not a CSV file ({error})") from error


def _read_csv(path: Path, wanted: list[str]) -> Any:
    return pa.csv.read_csv(
        path,
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        # Every cell as text: its meaning is decided, and its mistakes are found, a column at a time.
        convert_options=pa.csv.ConvertOptions(
            include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
        ),
    )


def _records(path: Path) -> Any:
    """Each record of a CSV file with the line it begins on, as pyarrow counts records: blank lines are none."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        begins = 1
        for record in reader:
            if record:
                yield begins, record
            begins = reader.line_num + 1


def _line_of_row(path: Path, row: int) -> int:
    """The line of the file on which a data row begins; read anew, for messages only."""
    return next((line for number, (line, _) in enumerate(_records(path)) if number == row + 1), -1)


def _diagnosis(path: Path, error: Exception) -> str:
    """What is wrong with a file that pyarrow cannot read."""
    if not _is_csv(path):
        return f"cannot be read ({error})"
    if "UTF8" in str(error):
        return "is not UTF-8 text; save it as UTF-8"
    try:
        width = 0
        for number, (line, record) in enumerate(_records(path)):
            width = width or len(record)
            if len(record) != width:
                return f"row {number} (line {line}) has {len(record)} cells, the header has {width}"
    except csv.Error as refusal:
        return f"is not a CSV file ({refusal})"
    return f"cannot be read ({error})"
