"""Tables of any size: the columns of a source as batches of rows, as often as wanted, and where each row stands.

Text, Parquet and Arrow files are opened by pyarrow; arrays of NumPy become tables of a list column ``x`` and a column
of labels.  Cells of text files stay text: what they mean is decided, and their mistakes are found, a column at a time.
Rows are counted from 0 over all files of the source; messages count from 1 within a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from softgrad.cli.tables import _text
from softgrad.cli.tables._sources import Source
from softgrad.cli.terminal._messages import UserError, names, shown, suggestion

BATCH_ROWS = 1 << 14
BATCH_BYTES = 8 << 20

_dataset: Any = pyarrow.dataset.dataset  # its stub knows fewer formats and arguments

__all__ = ["Reader", "RowChunk"]


@dataclass(frozen=True)
class RowChunk:
    """Some rows: columns by name, and the number of the first."""

    first: int
    n_rows: int
    columns: dict[str, Any]  # pyarrow.Array


class Reader:
    """The columns of a source.

    Attributes
    ----------
    source : Source
    names : list of str
        Columns, in order.
    is_text : bool
        Whether cells are text as it stands in the file.
    types : dict
        Arrow type of each column; text of a text file's.
    n_rows : int or None
        Known after the first whole pass.
    """

    def __init__(self, source: Source, keep: int = 0) -> None:
        self.source = source
        self.keep = keep  # bytes of parsed columns that the next passes need not parse again
        self.is_text = source.format in ("csv", "tsv")
        self.n_rows: int | None = None
        self._starts: list[tuple[int, Path]] = []
        self._kept: list[RowChunk] | None = None
        if self.is_text:
            found = _text.header(source.paths[0], source.delimiter, self.place(0))
            self.types: dict[str, Any] = dict.fromkeys(found, pa.string())
        else:
            self._tables = _opened(source)
            found = list(self._tables.schema.names)
            self.types = {field.name: field.type for field in self._tables.schema}
        repeated = [name for name, count in Counter(found).items() if count > 1]
        if repeated:
            raise UserError(f"{self.place(0)}: the header names column {repeated[0]!r} more than once")
        # pandas stores the index of a filtered or shuffled table under such a name: it is the row's place, no feature.
        self.names = [name for name in found if not (name.startswith("__index_level_") and name.endswith("__"))]
        self.types = {name: self.types[name] for name in self.names}

    def place(self, file: int) -> str:
        """A file of the source, for messages."""
        text = self.source.text
        return text if len(self.source.paths) < 2 else shown(self.source.paths[file])

    def spans(self) -> list[tuple[int, int, Path]]:
        """The rows of each file, after a whole pass: the first, and the one after the last."""
        firsts = [first for first, _ in self._starts]
        return [
            (first, last, path)
            for (first, path), last in zip(self._starts, [*firsts[1:], self.n_rows or 0], strict=True)
        ]

    def require(self, wanted: list[str], where: str = "") -> None:
        """Refuse columns that are not there."""
        missing = [name for name in wanted if name not in self.types]
        if not missing:
            return
        hint = suggestion(missing[0], self.names)
        if len(self.names) == 1 and self.is_text and any(mark in self.names[0] for mark in ";\t|,"):
            mark = next(mark for mark in ";\t|," if mark in self.names[0])
            shown_mark = "\\t" if mark == "\t" else mark
            hint = f"; its cells seem to be separated by {mark!r}: say so with --delimiter {shown_mark!r}"
        noun = "column" if len(missing) == 1 else "columns"
        raise UserError(f"{self.source.text}: {where}no {noun} {names(missing)}; it has {names(self.names)}{hint}")

    def batches(self, wanted: list[str]) -> Iterator[RowChunk]:
        """The wanted columns from the first row to the last."""
        if self._kept and set(wanted) <= set(self._kept[0].columns):
            for batch in self._kept:
                yield RowChunk(batch.first, batch.n_rows, {name: batch.columns[name] for name in wanted})
            return
        first, held = 0, 0
        starts: list[tuple[int, Path]] = []
        self._starts = starts
        kept: list[RowChunk] = []
        for number, columns, rows in self._parts(wanted):
            if self.source.paths and (not starts or starts[-1][1] != self.source.paths[number]):
                starts.append((first, self.source.paths[number]))
            if rows:
                batch = RowChunk(first, rows, columns)
                held += sum(column.nbytes for column in columns.values())
                if held <= self.keep:
                    kept.append(batch)
                yield batch
            first += rows
        if first == 0:
            raise UserError(f"{self.source.text}: has a header but no rows")
        if self.n_rows is not None and first != self.n_rows:
            raise UserError(f"{self.source.text}: changed while it was read: {first} rows now, {self.n_rows} before")
        self.n_rows = first
        if held <= self.keep and (self._kept is None or len(wanted) >= len(self._kept[0].columns)):
            self._kept = kept

    def _parts(self, wanted: list[str]) -> Iterator[tuple[int, dict[str, Any], int]]:
        if self.is_text:
            for number, path in enumerate(self.source.paths):
                for batch in _text.batches(path, wanted, self.source.delimiter, self.names, self.place(number)):
                    yield number, dict(zip(wanted, batch.columns, strict=True)), batch.num_rows
            return
        for number, batch in self._tables.batches(wanted):
            yield number, dict(zip(wanted, batch.columns, strict=True)), batch.num_rows

    def where(self, row: int, column: str | None = None) -> str:
        """The place of a row or a cell for a message."""
        cell = "" if column is None else f", column {column!r}"
        return self.places([row])[0] + cell

    def places(self, rows: list[int]) -> list[str]:
        """The places of some rows; text files are read once more, to tell the line."""
        single = len(self.source.paths) < 2
        homes = [self._home(row) for row in rows]
        lines: dict[Any, dict[int, int]] = {}
        if self.is_text:
            for path in {path for path, _ in homes}:
                wanted = [row - first for row, (home, first) in zip(rows, homes, strict=True) if home == path]
                lines[path] = _text.lines_of_rows(path, wanted, self.source.delimiter)
        found = []
        for row, (path, first) in zip(rows, homes, strict=True):
            text = self.source.text if single else shown(path)
            line = f" (line {lines[path].get(row - first, '?')})" if self.is_text else ""
            found.append(f"{text}: row {row - first + 1}{line}")
        return found

    def _home(self, row: int) -> tuple[Any, int]:
        """The file of a row and the number of its first row."""
        path, first = self.source.paths[0] if self.source.paths else None, 0
        for start, file in self._starts:
            if start <= row:
                first, path = start, file
        return path, first


class _Tables:
    """Files that know their types, through a dataset of Arrow."""

    def __init__(self, source: Source) -> None:
        self.source = source
        kind = "ipc" if source.format == "feather" else "parquet"
        try:
            paths = [str(path) for path in source.paths]
            base = None if source.root is None else str(source.root)
            self.dataset: Any = _dataset(
                paths, format=kind, partitioning="hive" if base else None, partition_base_dir=base
            )
            for path in source.paths[1:]:  # a dataset takes the columns of the first file for those of all
                self._check_alike(path, kind)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{source.text}: is not a {_NAMES[kind]} file that can be read ({error})") from error
        self.schema = self.dataset.schema

    def _check_alike(self, path: Path, kind: str) -> None:
        found = _dataset(str(path), format=kind).schema
        for field in found:
            index = self.dataset.schema.get_field_index(field.name)
            if index >= 0 and self.dataset.schema.field(index).type != field.type:
                raise UserError(
                    f"{shown(path)}: column {field.name!r} is {field.type}, but "
                    f"{self.dataset.schema.field(index).type} in {shown(self.source.paths[0])}"
                )
        known = {name for name in self.dataset.schema.names if f"{name}=" not in str(path)}
        missing = sorted(known - set(found.names))
        if missing:
            raise UserError(f"{shown(path)}: no column {missing[0]!r}, which {shown(self.source.paths[0])} has")

    def batches(self, wanted: list[str]) -> Iterator[tuple[int, Any]]:
        rows = max(256, min(BATCH_ROWS, BATCH_BYTES // max(1, 8 * len(wanted))))
        number = {path.resolve(): i for i, path in enumerate(self.source.paths)}
        for fragment in self.dataset.get_fragments():
            at = number[Path(fragment.path).resolve()]
            try:
                scanner = fragment.scanner(
                    schema=self.schema, columns=wanted, batch_size=rows, batch_readahead=2, fragment_readahead=1
                )
                for batch in scanner.to_batches():
                    yield at, batch
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{shown(self.source.paths[at])}: cannot be read ({error})") from error


_NAMES = {"ipc": "Feather", "parquet": "Parquet"}


def _opened(source: Source) -> Any:
    if source.format in ("parquet", "feather"):
        return _Tables(source)
    from softgrad.cli.tables import _arrays

    return _arrays.Arrays(source)
