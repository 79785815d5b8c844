"""Tables written batch by batch, as CSV or Parquet, to a file that is there whole or not at all, or to the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from softgrad.cli.tables._output import check_output, replacing
from softgrad.cli.terminal._messages import UserError, shown

EXTENSIONS = (".csv", ".parquet")

__all__ = ["EXTENSIONS", "Writer", "check_table", "writing"]


class Writer:
    """Writes batches of columns, the same ones each time."""

    def __init__(self, file: BinaryIO, *, parquet: bool) -> None:
        self._file, self._parquet = file, parquet
        self._names: list[str] | None = None
        self._to: Any = None

    def write(self, columns: dict[str, Any]) -> None:
        """Some more rows."""
        table = pa.table({name: pa.array(values) for name, values in columns.items()})
        if self._parquet:
            if self._to is None:
                self._to = pa.parquet.ParquetWriter(self._file, table.schema)
            self._to.write_table(table)
            return
        if self._names is None:
            self._names = list(columns)
            self._file.write(_csv_line(self._names))
        self._file.write(_csv_body(table))

    def close(self) -> None:
        """The end of the rows."""
        if self._to is not None:
            self._to.close()


def check_table(output: Path, inputs: list[Path]) -> None:
    """Say before the work begins that a table cannot be written; ``-`` is standard output."""
    if str(output) == "-":
        return
    check_output(output, EXTENSIONS, "-o")
    for path in inputs:
        if output.exists() and path.exists() and output.samefile(path):
            raise UserError(f"-o {shown(output)}: is read by this command; predictions would replace it")


@contextmanager
def writing(output: Path) -> Iterator[Writer]:
    """A writer of ``output``, CSV on standard output for ``-``."""
    if str(output) == "-":
        writer = Writer(sys.stdout.buffer, parquet=False)
        yield writer
        sys.stdout.buffer.flush()
        return
    with replacing(output) as file:
        writer = Writer(file, parquet=output.suffix.lower() == ".parquet")
        yield writer
        writer.close()


def _csv_body(table: Any) -> Any:
    body = pa.BufferOutputStream()
    try:  # pyarrow's other style quotes every text; this one refuses what needs quotes
        pa.csv.write_csv(table, body, pa.csv.WriteOptions(include_header=False, quoting_style="none"))
    except pa.ArrowInvalid:
        body = pa.BufferOutputStream()
        pa.csv.write_csv(table, body, pa.csv.WriteOptions(include_header=False))
    return body.getvalue()


def _csv_line(cells: list[str]) -> bytes:
    """One line of CSV, quoted where it must be."""
    quoted = ['"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell for cell in cells]
    return (",".join(quoted) + "\n").encode()
