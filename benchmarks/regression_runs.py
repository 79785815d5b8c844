"""What `regression` does in processes of its own: find minima, run methods down their ladders, time, measure memory."""

from __future__ import annotations

import faulthandler
import functools
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import data
import harness
import optimum
import regression_memory
from harness import Prepared, Row, UnavailableError
from solvers import METHODS, Method, Run


class Problem:
    """One data set, in both types when they are asked for."""

    def __init__(self, order: Row) -> None:
        self.name, self.cache = order["data"], Path(order["cache"])
        self.X, self.y = data.load(self.name, self.cache)

    @property
    def shape(self) -> Row:
        return {"n": self.X.shape[0], "p": self.X.shape[1], "K": int(self.y.max()) + 1}

    @functools.cached_property
    def wide(self) -> Any:
        return self.X.astype(np.float64)

    def ready(self, method: Method, threads: int) -> Run:
        from threadpoolctl import threadpool_limits

        try:
            run = method.prepare(self.X if method.dtype == "float32" else self.wide, self.y, threads)
        except ImportError as error:
            raise UnavailableError(f"{error.name or error} is not installed") from error
        threadpool_limits(threads)  # of the libraries that have been loaded by now
        return run


def child(order: Row) -> None:
    warnings.simplefilter("ignore")
    _quiet()
    harness.confine(order["threads"])
    modes: tuple[Callable[[Row], None], ...] = (minima, climb, rounds, peak, regression_memory.disk)
    next(mode for mode in modes if mode.__name__ == order["mode"])(order)


def _quiet() -> None:
    """Python keeps its standard error; C++ loses it, since Cyanure's cannot be asked to be quiet."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def minima(order: Row) -> None:
    problem = Problem(order)
    for C in order["Cs"]:
        found = optimum.minimum(problem.X, problem.y, C, problem.name, problem.cache)
        harness.report(order, found | problem.shape)


def climb(order: Row) -> None:
    """Each method down its ladder. One that outstays its time takes this process with it: see `climb_all`."""
    problem = Problem(order)
    for label in order["methods"]:
        method = METHODS[order["kind"]][label]
        try:
            run = problem.ready(method, order["threads"])
        except UnavailableError as reason:
            harness.report(order, {"method": label, "tol": None, "note": str(reason), "unavailable": True})
            continue
        descend(method.tols, order["targets"], functools.partial(measure, order, problem, run, label))


def descend(tols: Sequence[float], targets: Sequence[float], measured: Callable[[float], Row]) -> None:
    """Down to the tightest target, with a rung half-way before each first one that reaches a target."""
    waiting, before, best, idle = list(targets), None, math.inf, 0
    for tol in tols:
        gap = measured(tol).get("gap", math.nan)
        if math.isnan(gap):
            return
        if gap <= waiting[0] and before is not None:
            measured(math.sqrt(tol * before))
        waiting = [target for target in waiting if gap > target]
        # Tighter tolerances do not help a method that has come to the end of its arithmetic.
        idle = idle + 1 if 0.9 * best < gap < 1e-2 else 0
        if not waiting or idle == 3:
            return
        before, best = tol, min(best, gap)


def measure(order: Row, problem: Problem, run: Run, label: str, tol: float) -> Row:
    row: Row = {"method": label, "tol": tol, "note": f"more than {order['cap']:g} s", "at_least_s": order["cap"]}
    harness.report(order, row)  # stands if the fit does not end
    kept: list[Any] = []
    with Path(os.devnull).open("w") as nowhere:
        # From C, so that it also ends a fit that never returns to Python.
        faulthandler.dump_traceback_later(order["cap"], exit=True, file=nowhere)
        try:
            wall, cpu, _ = harness.sample(Prepared(lambda: kept.append(run(order["Cs"], tol))), 1)
        except Exception as error:  # whatever it is, it is this method's result
            row |= {"note": f"{type(error).__name__}: {str(error)[:80]}", "at_least_s": None}
            harness.report(order, row)
            return row
        finally:
            faulthandler.cancel_dump_traceback_later()
    gaps = []
    for C, minimum, fit in zip(order["Cs"], order["minima"], kept[0], strict=True):
        value = optimum.objective(problem.X, problem.y, C, fit.coef, fit.intercept)
        gaps.append(value / minimum - 1 if math.isfinite(value) else math.inf)
    passes = [fit.passes for fit in kept[0] if fit.passes is not None]
    row |= {"note": "", "at_least_s": None, "gap": max(gaps), "least_gap": min(gaps), "wall_s": wall, "cpu_s": cpu}
    row["passes"] = sum(passes) if passes else None
    harness.report(order, row)
    return row


def rounds(order: Row) -> None:
    problem = Problem(order)
    ready = {}
    for label, tol in order["picks"]:
        run = problem.ready(METHODS[order["kind"]][label], order["threads"])
        ready[label, tol] = Prepared(lambda run=run, tol=tol: run(order["Cs"], tol))
    samples: dict[tuple[str, float], list[Any]] = {key: [] for key in ready}
    names, started, done = list(ready), time.perf_counter(), 0
    while done < order["max_rounds"] and (done < 3 or time.perf_counter() - started < order["seconds"]):
        shift = done % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(harness.sample(ready[name], 1))
        done += 1
    for (label, tol), taken in samples.items():
        wall, cpu, _ = (statistics.median(values) for values in zip(*taken, strict=True))
        harness.report(order, {"method": label, "tol": tol, "wall_s": wall, "cpu_s": cpu, "rounds": done})


def peak(order: Row) -> None:
    """The memory of one fit, after a first small one has loaded what it needs."""
    problem, method = Problem(order), METHODS[order["kind"]][order["method"]]
    shape = problem.shape
    try:
        Problem(order | {"data": "digits"}).ready(method, order["threads"])([1.0], 1e-2)
        run = problem.ready(method, order["threads"])
    except UnavailableError as reason:
        harness.report(order, shape | {"note": str(reason)})
        return
    used = harness.peak_bytes(lambda: run(order["Cs"], order["tol"]))
    harness.report(order, shape | {"note": "", "peak_mb": None if used is None else used / 1e6})
