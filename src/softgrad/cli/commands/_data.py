"""``softgrad data``: a built-in data set as a table file."""

from __future__ import annotations

from pathlib import Path

from softgrad.cli.tables._arrays import built_in
from softgrad.cli.tables._sources import BUILT_IN
from softgrad.cli.tables._writing import check_table, writing
from softgrad.cli.terminal._messages import UserError, shown

__all__ = ["export"]


def export(name: str, output: Path) -> int:
    """Write a built-in data set as a table file and return its number of rows."""
    if name not in BUILT_IN:
        raise UserError(f"{shown(name)}: there is no such built-in data set; choose one of {', '.join(BUILT_IN)}")
    check_table(output, [])
    columns = built_in(name)
    with writing(output) as writer:
        writer.write(columns)
    return len(next(iter(columns.values())))
