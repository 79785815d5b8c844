"""What ``softgrad bench`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from softgrad.cli import _bench, _show
from softgrad.cli._bench_contests import WrongResultError
from softgrad.cli._messages import UserError
from softgrad.cli._progress import Stages

__all__ = ["bench"]


def bench(seconds: float, threads: int | None, json: bool) -> None:
    """Run the command."""
    with Stages() as stages:
        stages.begin("bench")
        try:
            rows = _bench.run(seconds, threads=threads)
        except WrongResultError as error:
            raise UserError(str(error)) from error
    facts = _bench.machine(threads)
    if json:
        _show.print_json({"machine": facts, "rows": _bench.as_dicts(rows)})
        return
    _tables(rows, facts)


def _tables(rows: Sequence[_bench.Row], facts: dict[str, Any]) -> None:
    console = _show.console()
    for name, value in facts.items():
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        if isinstance(value, dict | list | tuple):
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else ", ".join(value)
        console.print(f"{name.replace('_', ' '):16} {text}", soft_wrap=True, markup=False)
    console.print()
    table = Table("", "shape", "dtype", "against", box=None, pad_edge=False, header_style="dim")
    for heading in ("threads", "softgrad", "rival", "times faster", "quartiles", "memory", "rival's", "rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.ratio is None or row.ratio_quartiles is None or row.seconds is None or row.rival_seconds is None:
            continue
        low, high = row.ratio_quartiles
        cells = [row.contest, row.shape, row.dtype, row.rival, str(row.threads)]
        cells += [_time(row.seconds), _time(row.rival_seconds), f"{row.ratio:.2f}", f"{low:.2f}–{high:.2f}"]
        table.add_row(*cells, _size(row.extra_bytes), _size(row.rival_extra_bytes), str(row.rounds))
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.contest} {row.shape}, {row.rival}: {row.note}", soft_wrap=True, markup=False)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f} MB"
