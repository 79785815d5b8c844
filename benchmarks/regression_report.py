"""What `regression` prints: a table for each problem, and how many times faster softgrad was over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness import Row


def name_of(Cs: Sequence[float]) -> str:
    return f"{Cs[0]:g}" if len(Cs) == 1 else f"{len(Cs)} from {Cs[0]:g} to {Cs[-1]:g}"


def table(rows: Sequence[Row], targets: Sequence[float]) -> None:
    first = rows[0]
    title = f"{first['data']} ({first['n']} x {first['p']}, {first['K']} classes), C {first['C']}, "
    title += f"{first['threads']} thread(s)"
    if first["load"] is not None:
        title += f", load of the machine {first['load']:.1f}"
    print(f"\n{title}, F* = {first['F*']:.10g} to {first['F* known to']:.0e}")
    results = [row for row in rows if row["what"] == "time to gap"]
    width = max(len(row["method"]) for row in results)
    heads = "".join(f"  {f'gap {target:g}: s':>16} {'cpu s':>8} {'passes':>7} {'tol':>7}" for target in targets)
    print(f"{'':{width}}{heads}  {'peak MB':>8}")
    for method in dict.fromkeys(row["method"] for row in results):
        mine = {row["target"]: row for row in results if row["method"] == method}
        line = "".join(
            f"  {_cell(mine[t], 'wall_s', '.4g'):>16} {_cell(mine[t], 'cpu_s', '.4g'):>8}"
            f" {_cell(mine[t], 'passes', '.0f'):>7} {_cell(mine[t], 'tol', '.0e'):>7}"
            for t in targets
        )
        notes = "; ".join(dict.fromkeys(row["note"] for row in mine.values() if row["note"]))
        print(f"{method:{width}}{line}  {_cell(mine[targets[0]], 'peak_mb', '.1f'):>8}  {notes}".rstrip(), flush=True)


def _cell(row: Row, key: str, form: str) -> str:
    return format(row[key], form) if isinstance(row.get(key), int | float) and "wall_s" in row else "–"


def summary(rows: Sequence[Row], targets: Sequence[float]) -> None:
    """softgrad against the fastest of each family, its own fastest type against theirs."""
    results = [row for row in rows if row.get("what") == "time to gap"]
    for kind in dict.fromkeys(row["kind"] for row in results):
        mine = [row for row in results if row["kind"] == kind]
        rivals = _rivals(mine) if kind == "single" else _sweep_rivals(mine)
        for threads in dict.fromkeys(row["threads"] for row in mine):
            for target in targets:
                some = [row for row in mine if row["threads"] == threads and row["target"] == target]
                print(f"\ntimes faster to gap {target:g}, {kind}, {threads} thread(s)")
                for name, (ours, theirs) in rivals.items():
                    _line(name, some, ours, theirs)


Rivals = dict[str, tuple[set[str], set[str]]]


def _rivals(rows: Sequence[Row]) -> Rivals:
    methods = {row["method"] for row in rows}
    own = {method for method in methods if method.startswith("softgrad")}
    families = dict.fromkeys(method.split(" ")[0] for method in sorted(methods - own))
    return {family: (own, {method for method in methods if method.startswith(family)}) for family in families}


def _sweep_rivals(rows: Sequence[Row]) -> Rivals:
    """Each rival in the same type."""
    labels = dict.fromkeys(row["method"] for row in rows if not row["method"].startswith("softgrad"))
    return {label: ({f"softgrad path {label.split(' ')[-1]}"}, {label}) for label in labels}


def _line(name: str, rows: Sequence[Row], ours: set[str], theirs: set[str]) -> None:
    cells, ratios, by_data = [], [], {}
    rows = [row for row in rows if not row.get("unavailable")]
    if not any(row["method"] in theirs for row in rows):
        return
    for key in dict.fromkeys((row["data"], row["C"]) for row in rows):
        some = [row for row in rows if (row["data"], row["C"]) == key]
        own, rival = _fastest(some, ours), _fastest(some, theirs)
        if own is None or rival is None:
            # A rival that ran out of time took at least that long; one that never gets there has no time.
            floors = [row["at_least_s"] for row in some if row["method"] in theirs and row.get("at_least_s")]
            bound = f">{min(floors) / own:.3g}" if own and floors else "only softgrad gets there"
            cells.append((*key, bound if own else "softgrad did not get there"))
            continue
        ratios.append(rival / own)
        by_data.setdefault(key[0], []).append(rival / own)
        cells.append((*key, f"{rival / own:.3g}"))
    print(f"  {name}: geometric mean {geometric_mean(ratios):.3g} of {len(ratios)}, least {min(ratios, default=0):.3g}")
    for data in dict.fromkeys(cell[0] for cell in cells):
        each = ", ".join(f"C {C}: {text}" for own, C, text in cells if own == data)
        mean = f"{geometric_mean(by_data[data]):.3g}" if data in by_data else "–"
        print(f"    {data:16} {mean:>6}   {each}", flush=True)


def _fastest(rows: Sequence[Row], methods: set[str]) -> Any:
    return min((row["wall_s"] for row in rows if row["method"] in methods and "wall_s" in row), default=None)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def missed(rows: Sequence[Row]) -> list[str]:
    """softgrad has to reach every target, in one type at least."""
    results = [r for r in rows if r.get("what") == "time to gap" and r["method"].startswith("softgrad")]
    keys = dict.fromkeys((r["kind"], r["data"], r["C"], r["threads"], r["target"]) for r in results)
    there = {(r["kind"], r["data"], r["C"], r["threads"], r["target"]) for r in results if "wall_s" in r}
    return [f"WRONG: softgrad did not reach a gap of {key[-1]:g}: {key[:-1]}" for key in keys if key not in there]
