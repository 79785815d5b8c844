"""What each column is: one pass over all rows, and a role for every column with the reason for it.

Roles follow the cells, never the first rows only: a column is numeric if every cell is a number or says that there is
none, and a few cells that are not are a mistake to be told, not a reason to make categories of numbers.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softgrad.cli.tables._cells import (
    UnreadableError,
    as_numbers,
    cut,
    decoded,
    is_date,
    is_list,
    is_text,
    looks_like_dates,
    missing,
    readable_numbers,
    trimmed,
    try_cast,
)  # fmt: skip
from softgrad.cli.tables._reader import Reader, RowChunk
from softgrad.cli.terminal._messages import UserError
from softgrad.cli.terminal._results import Column

LEVELS = 100_000  # distinct texts that are counted
STRAY = 0.1  # up to this part of cells that are no numbers, they are mistakes in a column of numbers
WORDS = 3.0  # a cell of text has so many on average
FEW = 100  # distinct texts that may be levels however long they are
_IDENTIFIER = re.compile(r"(^|_)(id|idx|index|row|rowid|uuid|unnamed)($|_|:)", re.IGNORECASE)

__all__ = ["Profile", "roles"]


class Profile:
    """What is known about a column after the rows so far."""

    def __init__(self, name: str, kind: Any, role: str | None) -> None:
        self.name, self.kind, self.forced = name, kind, role
        self.rows = self.missing = 0
        # Numbers, and cells of a text column that are some.
        self.low, self.high = np.inf, -np.inf
        self.start: float | None = None
        self.sequence = True  # whether each number is one more than the one before
        self.numbers, self.strays, self.first_stray = 0, 0, (-1, "")
        self.width: int | None = None  # of lists
        self.text = is_text(kind)
        self.dates = self.text and role is None
        self.counts: dict[str, int] | None = {}
        self.words = 0
        self.uncounted = False  # whether texts of some rows were not counted, being numbers
        self.only_texts = role is not None

    def add(self, column: Any, first: int) -> None:
        """Some more rows."""
        column = decoded(column)
        self.rows += len(column)
        if self.text or self.forced:
            self._add_texts(column, first)
        elif is_list(self.kind):
            self.missing += column.null_count
            lengths = pc.list_value_length(column).drop_null()
            if self.width is None and len(lengths):
                self.width = int(lengths[0].as_py())
        elif is_date(self.kind):
            self.missing += column.null_count
        else:
            values = as_numbers(column)
            self.missing += int(np.isnan(values).sum())
            self._add_numbers(values, first)

    def _add_numbers(self, values: Any, first: int) -> None:
        held = values[~np.isnan(values)]
        self.numbers += len(held)
        if len(held):
            self.low, self.high = min(self.low, float(held.min())), max(self.high, float(held.max()))
        if self.sequence and len(values):
            self.start = float(values[0]) - first if self.start is None else self.start
            self.sequence = bool(np.array_equal(values, self.start + first + np.arange(len(values))))

    def _add_texts(self, column: Any, first: int) -> None:
        cells = trimmed(column if is_text(column.type) else column.cast(pa.string()))
        gaps = missing(cells)
        held = pc.if_else(gaps, None, cells)
        if not self.only_texts:
            numbers = try_cast(held, pa.float64())
            if numbers is not None:
                self.missing += int(pc.sum(gaps).as_py() or 0)
                self._add_numbers(as_numbers(cells), first)
                self.uncounted = True
                self.dates = self.dates and held.null_count == len(held)
                return
            self._count_strays(held, first)
        gaps = pc.equal(pc.fill_null(cells, ""), pa.scalar("")) if self.forced else gaps
        self.missing += int(pc.sum(gaps).as_py() or 0)
        self.dates = self.dates and looks_like_dates(cells)
        self._count_texts(pc.if_else(gaps, "", cells))

    def _count_strays(self, held: Any, first: int) -> None:
        readable = readable_numbers(held)
        self.numbers += int(pc.sum(readable).as_py() or 0)
        wrong = pc.fill_null(pc.invert(readable), False)
        if self.strays == 0:
            row = pc.index(wrong, value=True).as_py()
            self.first_stray = (first + row, held[row].as_py())
        self.strays += int(pc.sum(wrong).as_py() or 0)

    def _count_texts(self, cells: Any) -> None:
        self.words += int(pc.sum(pc.count_substring_regex(cells, r"\S+")).as_py() or 0)
        if self.counts is None:
            return
        for level in pc.value_counts(cells).to_pylist():
            self.counts[level["values"]] = self.counts.get(level["values"], 0) + level["counts"]
        if len(self.counts) > LEVELS:
            self.counts = None

    @property
    def held(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing

    @property
    def mostly_numbers(self) -> bool:
        """Whether the cells that are no numbers are mistakes."""
        return 0 < self.strays <= STRAY * (self.numbers + self.strays)

    def again(self) -> bool:
        """Whether its texts have to be counted from the beginning: it began as numbers, and is none."""
        return self.uncounted and self.strays > 0 and not self.mostly_numbers

    def decide(self, reader: Reader) -> Column:
        """The role of the column."""
        if self.held == 0:
            return self._out("every cell is empty")
        if not self.forced:
            if is_list(self.kind):
                return Column(self.name, "list", self.missing, None, f"{self.width} numbers each")
            if is_date(self.kind):
                return Column(self.name, "date", self.missing)
            if pa.types.is_boolean(self.kind):
                constant = self.low == self.high and not self.missing
                return self._out("constant") if constant else Column(self.name, "boolean", self.missing, 2)
            if self.numbers == self.held and not self.only_texts:
                return self._decide_number()
            if self.mostly_numbers:
                row, cell = self.first_stray
                raise UserError(
                    f"{reader.where(row, self.name)}: {cut(cell)} is not a number, but {self.numbers} of the column's "
                    f"{self.held} cells are: correct the cell, leave it empty, or read the column as categories with "
                    f"--categorical {self.name}"
                )
            if self.dates:
                return Column(self.name, "date", self.missing)
        return self._decide_text()

    def _decide_number(self) -> Column:
        if self.low == self.high and not self.missing:
            return self._out(f"constant: {self.low:g}")
        if self.sequence and self.rows >= 20 and _IDENTIFIER.search(self.name):
            return self._out("counts the rows")
        return Column(self.name, "numeric", self.missing, None, f"{self.low:.6g} … {self.high:.6g}")

    def _decide_text(self) -> Column:
        words = self.words / max(1, self.held)
        if self.counts is None:
            if self.forced == "text" or (not self.forced and words >= WORDS):
                return Column(self.name, "text", self.missing, None, f"{words:.0f} words each")
            return self._out(f"more than {LEVELS} different texts")
        levels = {level: count for level, count in self.counts.items() if level}
        distinct = len(levels)
        if self.forced == "text":
            return Column(self.name, "text", self.missing, distinct, f"{words:.0f} words each")
        if not self.forced:
            if {level.lower() for level in levels} <= {"true", "false"}:
                return Column(self.name, "boolean", self.missing, 2)
            if words >= WORDS and distinct > min(FEW, self.held // 2):
                return Column(self.name, "text", self.missing, distinct, f"{words:.0f} words each")
            if distinct > self.held // 2 and self.rows >= 20:
                return self._out(f"{distinct} different texts in {self.held} rows: a name or an identifier")
        if distinct == 1 and not self.missing:
            return self._out(f"constant: {cut(next(iter(levels)))}")
        common = sorted(levels.items(), key=lambda item: (-item[1], item[0]))[:3]
        note = ", ".join(f"{cut(level, 20)} {count}" for level, count in common) + (", …" if distinct > 3 else "")
        return Column(self.name, "categorical", self.missing, distinct, note)

    def _out(self, why: str) -> Column:
        return Column(self.name, "left out", self.missing, None, why)


def roles(reader: Reader, names: list[str], forced: dict[str, str], watch: Any = None) -> tuple[list[Column], Any]:
    """The role of each column, and the profiles.

    Parameters
    ----------
    reader : Reader
    names : list of str
        Columns that may become features.
    forced : dict
        Roles that the user gave: "text" or "categorical".
    watch : callable (RowChunk), optional
        Sees every batch, which also has the columns that it asked for by ``watch.columns``.
    """
    also = [] if watch is None else [name for name in watch.columns if name not in names]
    profiles = {name: Profile(name, reader.types[name], forced.get(name)) for name in names}
    for name in names:
        _refuse_type(reader, name)
    for batch in reader.batches([*names, *also]):
        _add(reader, profiles, batch)
        if watch is not None:
            watch(batch)
    once_more = [name for name, profile in profiles.items() if profile.again()]
    if once_more:
        for name in once_more:
            fresh = profiles[name] = Profile(name, reader.types[name], None)
            fresh.only_texts, fresh.dates = True, False
        for batch in reader.batches(once_more):
            _add(reader, {name: profiles[name] for name in once_more}, batch)
    return [profiles[name].decide(reader) for name in names], profiles


def _add(reader: Reader, profiles: dict[str, Profile], batch: RowChunk) -> None:
    for name, profile in profiles.items():
        try:
            profile.add(batch.columns[name], batch.first)
        except UnreadableError as error:
            raise UserError(f"{reader.where(batch.first + error.row, name)}: {error.what}") from error


def _refuse_type(reader: Reader, name: str) -> None:
    kind = reader.types[name]
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (
        is_text(value) or is_date(value) or is_list(value) or pa.types.is_boolean(value) or pa.types.is_null(value)
        or pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_decimal(value)
    )  # fmt: skip
    if not known:
        raise UserError(
            f"{reader.source.text}: column {name!r} holds {kind} values, of which no features are made: leave it out "
            f"with --drop {name}"
        )
