"""Softmax regression: how soon softgrad, scikit-learn, its Intel extension and Cyanure reach the same objective.

Tolerances mean something else in each of them, so each is run down a ladder of its own: a fresh fit at every rung, its
coefficients evaluated by one function (`optimum`), its gap ``(F − F*) / F*`` noted. A method's time to a gap is that of
the loosest rung that got there, measured again side by side with the others, in rounds whose order rotates. Only
``fit`` is timed. As in `harness`, every process is confined to so many CPUs and peak memory is measured in others.

* ``python benchmarks/regression.py --csv regression.csv``: single fits, of all data sets at three C;
* ``--sweep``: 13 values of C on embeddings, at the same worst gap over the 13;
* ``--memory``: peak memory of dense fits, and fits of more than 2 GB on disk;
* ``--smoke``: a little of all three.

``--data``, ``--C``, ``--threads`` and ``--rivals`` do less. Data and minima stay in ``--cache``.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import data
import regression_memory
import regression_report
import regression_runs
from harness import Row
from solvers import METHODS

TARGETS = (1e-4, 1e-6)
DATA = (
    *("20ng-embedding", "r52-embedding", "letter", "shuttle", "indian-pines", "mnist-5k"),
    *("20ng-tfidf", "r52-tfidf", "probe", "tall"),
    *("iris", "wine", "breast-cancer", "digits"),
)
SWEEP_DATA = ("20ng-embedding", "r52-embedding")
SWEEP_CS = tuple(float(f"{C:.3g}") for C in np.logspace(-3, 3, 13))
PACKAGES = ("softgrad", "numpy", "scipy", "scikit-learn", "scikit-learn-intelex", "cyanure", "pyarrow", "threadpoolctl")


def compare(order: Row, methods: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """One table: every method's way to every target, for one data set, list of C and number of threads."""
    about = harness.spawn(order | {"mode": "minima", "threads": os.cpu_count() or 1}, {})
    order = order | {"minima": [row["objective"] for row in about]}
    climbed = climb_all(order, methods)
    shape = {key: about[0][key] for key in ("n", "p", "K")}
    known = {"F*": about[-1]["objective"], "F* known to": max(row["bound"] for row in about)}
    low = min((row["least_gap"] for row in climbed if "gap" in row), default=0.0)
    if low < -1e-9:
        raise SystemExit(f"{order['data']}: a method came {-low:.2g} below what was taken for the minimum")
    results = [reached(climbed, label, target) for label in methods for target in TARGETS]
    again(order, results, options)
    memory = peaks(order, results, options)
    for row in results:
        row |= {"peak_mb": memory.get(row["method"])}
    common = {"kind": order["kind"], "data": order["data"]} | shape
    common |= {"C": regression_report.name_of(order["Cs"]), "threads": order["threads"]} | known
    common["load"] = harness.load_average()
    kept = [common | {"what": "rung"} | row for row in climbed]
    return [common | {"what": "time to gap"} | row for row in results] + kept


def climb_all(order: Row, methods: Sequence[str]) -> list[Row]:
    """The rungs of every method. The process that one of them ends is followed by another for the rest."""
    rows: dict[tuple[str, float | None], Row] = {}
    waiting = list(methods)
    while waiting:
        found = harness.spawn(order | {"mode": "climb", "methods": waiting}, {}, may_die=True)
        if not found:
            raise SystemExit(f"the process for {order} ended without a result")
        rows |= {(row["method"], row["tol"]): row for row in found}
        waiting = waiting[waiting.index(found[-1]["method"]) + 1 :]
    return list(rows.values())


def reached(climbed: Sequence[Row], label: str, target: float) -> Row:
    """The loosest rung with a gap no larger than the target, or why there is none."""
    mine = [row for row in climbed if row["method"] == label]
    there = [row for row in mine if row.get("gap", math.inf) <= target]
    row: Row = {"method": label, "target": target}
    if there:
        return row | max(there, key=lambda rung: rung["tol"]) | {"rounds": 1}
    last = mine[-1] if mine else {"note": "not run"}
    gaps = [rung["gap"] for rung in mine if "gap" in rung]
    note = last["note"] or f"stays at {min(gaps):.2g}"
    return row | {key: last.get(key) for key in ("at_least_s", "unavailable")} | {"note": note}


def again(order: Row, results: Sequence[Row], options: argparse.Namespace) -> None:
    """Time the two fastest of each family (all, of a sweep) again, side by side, but for fits that take very long."""
    picks: list[tuple[str, float]] = []
    most = 2 if order["kind"] == "single" else None
    for target in TARGETS:
        families: dict[str, list[Row]] = {}
        for row in results:
            if row["target"] == target and row.get("wall_s", math.inf) < options.seconds / 2:
                families.setdefault(METHODS[order["kind"]][row["method"]].family, []).append(row)
        for rows in families.values():
            picks += [(row["method"], row["tol"]) for row in sorted(rows, key=lambda row: row["wall_s"])[:most]]
    if not picks:
        return
    extra = {"picks": list(dict.fromkeys(picks)), "seconds": options.seconds, "max_rounds": options.rounds}
    for measured in harness.spawn(order | {"mode": "rounds"} | extra, {}):
        for row in results:
            if (row["method"], row.get("tol")) == (measured["method"], measured["tol"]):
                row |= measured


def peaks(order: Row, results: Sequence[Row], options: argparse.Namespace) -> dict[str, float | None]:
    """Peak memory with all threads, of the loosest fit that is good enough: more iterations need no more."""
    found: dict[str, float | None] = {}
    if options.no_memory or order["kind"] != "single" or order["threads"] != max(numbers(options.threads)):
        return found
    for row in results:
        if row.get("wall_s", math.inf) < options.seconds and row["method"] not in found:
            measured = harness.spawn(order | {"mode": "peak", "method": row["method"], "tol": row["tol"]}, {})
            found[row["method"]] = measured[0].get("peak_mb")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The softmax regression benchmark of softgrad.")
    parser.add_argument(
        "--smoke", action="store_true", help="a small data set and few rounds: does it run, is it right?"
    )
    parser.add_argument("--sweep", action="store_true", help="13 values of C on embeddings instead of single fits")
    parser.add_argument("--memory", action="store_true", help="peak memory, and data on disk, instead of single fits")
    parser.add_argument("--data", default="", metavar="A,B", help=f"of {', '.join(DATA)}")
    parser.add_argument("--C", default="0.01,1,100", metavar="C,C", help="penalties of single fits")
    parser.add_argument("--threads", default=f"1,{os.cpu_count()}", metavar="N,N", help="numbers of threads")
    parser.add_argument("--rivals", default="", metavar="A,B", help="rivals containing A or B (softgrad stays)")
    parser.add_argument("--cap", type=float, default=120.0, help="most seconds for one fit (default 120)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for the rounds of one table (default 20)")
    parser.add_argument("--rounds", type=int, default=7, help="most rounds (default 7)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure the peak memory of single fits")
    parser.add_argument("--gigabytes", type=float, default=2.2, help="size of the data on disk (default 2.2)")
    parser.add_argument("--cache", type=Path, default=data.CACHE, help=f"default {data.CACHE}")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        regression_runs.child(json.loads(options.child))
        return
    with tempfile.TemporaryDirectory() as temporary:
        if options.smoke:
            options.data, options.C, options.threads, options.no_memory = "digits", "1", "1", True
            options.rivals = (
                options.rivals
                or "lbfgs float64,lbfgs cold float64,newton-cg cold float64,newton-cholesky float64,ista float64"
            )
            options.seconds, options.rounds, options.gigabytes, options.cache = 1.0, 2, 0.01, Path(temporary)
        run(options)


def run(options: argparse.Namespace) -> None:
    options.cache.mkdir(parents=True, exist_ok=True)
    single = options.smoke or not (options.sweep or options.memory)
    about, table, failed = harness.machine(PACKAGES), [], []
    print("  ".join(f"{key}: {value}" for key, value in about.items()))

    def save() -> None:  # after every table: all of them take hours
        if options.csv:
            harness.write(options.csv, [row | about for row in table], about)

    for kind, wanted, Cs in (
        ("single", single, [[float(C)] for C in options.C.split(",")]),
        ("sweep", options.sweep or options.smoke, [list(SWEEP_CS[4:9:2] if options.smoke else SWEEP_CS)]),
    ):
        names = options.data.split(",") if options.data else (DATA if kind == "single" else SWEEP_DATA)
        for order in orders(names, Cs, options) if wanted else ():
            rows = compare(order | {"kind": kind}, chosen(kind, options.rivals), options)
            regression_report.table(rows, TARGETS)
            table += rows
            save()
    regression_report.summary(table, TARGETS)
    if options.memory or options.smoke:
        rows = regression_memory.run(options, [name for name in DATA if "tfidf" not in name])
        failed += [row["note"] for row in rows if row["note"].startswith("WRONG")]
        table += rows
        save()
    if options.csv:
        print(f"\n{len(table)} rows written to {options.csv}")
    failed += regression_report.missed(table)
    if failed:
        raise SystemExit("\n".join(failed))


def orders(names: Sequence[str], Cs: Sequence[list[float]], options: argparse.Namespace) -> Iterator[Row]:
    for name in names:
        for several in Cs:
            for threads in numbers(options.threads):
                order = {"data": name, "Cs": several, "threads": threads, "targets": TARGETS}
                yield order | {"cap": options.cap, "cache": str(options.cache)}


def numbers(text: str) -> list[int]:
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def chosen(kind: str, rivals: str) -> list[str]:
    wanted = [part for part in rivals.split(",") if part]
    methods = METHODS[kind].items()
    return [
        label
        for label, method in methods
        if not wanted or method.family == "softgrad" or any(part in label for part in wanted)
    ]


if __name__ == "__main__":
    main()
