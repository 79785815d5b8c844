"""Cases × rivals: check each rival's result, then time them in turn, measure their memory, and write one table.

A benchmark script describes its cases and its rivals and calls `main`; `regression` needs more than one table of calls
and uses the parts. What the numbers mean:

* Every case runs in a fresh process for each state of the allocator and each number of threads, and that process is
  confined to so many CPUs: some rivals obey no other way of asking. softgrad and all its rivals run in it side by side.
* A round times every rival once, in an order drawn anew: what one leaves behind costs its successor (small pages that
  were freed are merged when huge ones are asked for next), and no rival has the same predecessor always. A ratio is
  the median over the rounds of (rival's time ÷ softgrad's time in the same round), so a machine that slows down for a
  while slows both.
* Peak memory is another fresh process for each rival: the kernel's high-water mark over what the inputs occupied.
* A rival that gives a wrong result is reported as wrong and not timed.
"""

from __future__ import annotations

import os
import sys

# Overrides of OpenBLAS's choice of kernel would time another library than the one people run.
_OVERRIDES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
if any(name in os.environ for name in _OVERRIDES) and "numpy" not in sys.modules:
    _clean = {name: value for name, value in os.environ.items() if name not in _OVERRIDES}
    os.execve(sys.executable, [sys.executable, *sys.argv], _clean)

import argparse
import contextlib
import csv
import ctypes
import importlib.metadata
import json
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
STATES: dict[str, dict[str, str]] = {
    "as shipped": {},
    # PyTorch reads this when it loads: its own allocations then ask for huge pages.
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    # glibc keeps every freed block, so no call pays for page faults after the first.
    "warm heap": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 60), "MALLOC_TOP_PAD_": str(1 << 26)},
}
PACKAGES = ("softgrad", "numpy", "scipy", "scikit-learn", "torch", "jax", "optax", "threadpoolctl")
SLOW_CALL = 1.0  # seconds (of one processor, if the machine is busy); a longer call needs no second warm-up


class UnavailableError(Exception):
    """A rival that cannot run this case here; the message goes into the table."""


@dataclass(frozen=True)
class Case:
    """One problem size in one storage type."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    threads: tuple[int, ...] = (1, 2)
    states: tuple[str, ...] = ("as shipped",)

    @property
    def label(self) -> str:
        return f"{self.name} {self.dtype}"


@dataclass
class Prepared:
    """A rival with its inputs in place: ``run`` is timed, ``reset`` before it is not."""

    run: Callable[[], Any]
    reset: Callable[[], Any] | None = None
    view: Callable[[Any], Any] = lambda result: result  # what run returned → what the benchmark's check takes
    returned_bytes: int = 0  # fresh arrays that run hands back
    note: str = ""  # goes into the table


@dataclass(frozen=True)
class Benchmark:
    """Everything `main` needs to know."""

    name: str
    cases: Sequence[Case]
    smoke_cases: Sequence[Case]
    rivals: Mapping[str, Callable[[Case, Any, int], Prepared]]  # (case, inputs, threads) → Prepared
    make_inputs: Callable[[Case], Any]
    check: Callable[[Case, Any, Any], str]  # (case, inputs, viewed result) → "" or what is wrong
    baselines: tuple[str, ...]  # the rivals that ratios are taken against
    tiny: Case  # warms a rival up before its memory is measured
    slow: frozenset[str] = field(default_factory=frozenset)  # rivals left out of a smoke run
    packages: tuple[str, ...] = ()  # whose versions belong beside the result, beyond PACKAGES
    patience: float = float("inf")  # seconds; a rival whose first call takes longer is timed by that call alone
    peak_threads: int | None = None  # the number of threads that memory is measured with; None: with each


# --- one process: one case, one state, one number of threads ---------------------------------------------------------


def confine(threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))


def _child(benchmarks: Sequence[Benchmark], order: Row) -> list[Row]:
    # The limit is set after the rivals have loaded their pools, hence in `_prepare`.
    threads = order["threads"]
    confine(threads)
    benchmark = next(b for b in benchmarks if b.name == order["benchmark"])
    case = next(c for c in (*benchmark.cases, *benchmark.smoke_cases) if c.label == order["case"])
    if order["mode"] == "peak":
        return [_peak(benchmark, case, order["rival"], threads)]
    return _rounds(benchmark, case, order["rivals"], threads, order["seconds"], order["max_rounds"])


def _prepare(benchmark: Benchmark, case: Case, rival: str, inputs: Any, threads: int) -> Prepared:
    from threadpoolctl import threadpool_limits

    try:
        prepared = benchmark.rivals[rival](case, inputs, threads)
    except ImportError as error:
        raise UnavailableError(f"{error.name or error} is not installed") from error
    threadpool_limits(threads)
    return prepared


def _rounds(
    benchmark: Benchmark, case: Case, rivals: Sequence[str], threads: int, seconds: float, max_rounds: int
) -> list[Row]:
    inputs = benchmark.make_inputs(case)
    rows: dict[str, Row] = {}
    ready: dict[str, Prepared] = {}
    lengthy: dict[str, bool] = {}
    for rival in rivals:
        rows[rival] = {"rival": rival, "note": ""}
        try:
            prepared = _prepare(benchmark, case, rival, inputs, threads)
            if prepared.reset:
                prepared.reset()
            first, result = _first_call(prepared)
            wrong = benchmark.check(case, inputs, prepared.view(result))
            del result
        except UnavailableError as reason:
            rows[rival]["note"] = str(reason)
            continue
        except Exception as error:  # the others are still worth timing
            rows[rival]["note"] = f"WRONG: {brief(error)}"
            continue
        rows[rival]["note"] = f"WRONG: {wrong}" if wrong else prepared.note
        if wrong:
            continue
        if min(first[:2]) > benchmark.patience:
            once = "one call, the first"
            rows[rival] |= _summary([first]) | {"note": f"{prepared.note}; {once}" if prepared.note else once}
            continue
        ready[rival], lengthy[rival] = prepared, min(first[:2]) > SLOW_CALL
    samples: dict[str, list[tuple[float, float, float]]] = {rival: [] for rival in ready}
    number = {rival: 1 if lengthy[rival] else _calls_per_sample(prepared) for rival, prepared in ready.items()}
    for rival, prepared in ready.items():  # a second warm-up: the heap has now seen every rival's blocks
        if not lengthy[rival]:
            sample(prepared, 1)
    started, names = time.perf_counter(), list(ready)
    done = 0
    while names and done < max_rounds and (done < 3 or time.perf_counter() - started < seconds):
        for rival in random.Random(done).sample(names, len(names)):
            samples[rival].append(sample(ready[rival], number[rival]))
        done += 1
    for rival, taken in samples.items():
        rows[rival] |= _summary(taken)
        for baseline in benchmark.baselines:
            if baseline in samples:
                both = list(zip(taken, samples[baseline], strict=True))
                pairs = sorted(mine[0] / base[0] for mine, base in both)
                rows[rival][f"ratio to {baseline}"] = statistics.median(pairs)
                rows[rival][f"ratio to {baseline}, quartiles"] = (
                    f"{pairs[len(pairs) // 4]:.3g} to {pairs[(3 * len(pairs)) // 4]:.3g}"
                )
                # With one thread, what a busy machine leaves to go by.
                rows[rival][f"cpu ratio to {baseline}"] = statistics.median(
                    mine[1] / max(base[1], 1e-9) for mine, base in both
                )
    return list(rows.values())


def brief(error: Exception) -> str:
    """An error in a line of a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _first_call(prepared: Prepared) -> tuple[tuple[float, float, float], Any]:
    faults, cpu, wall = _page_faults(), time.process_time(), time.perf_counter()
    result = prepared.run()
    return (time.perf_counter() - wall, time.process_time() - cpu, float(_page_faults() - faults)), result


def _summary(taken: Sequence[tuple[float, float, float]]) -> Row:
    wall, cpu, faults = zip(*taken, strict=True)
    return {
        "rounds": len(taken),
        "wall_ms": 1e3 * statistics.median(wall),
        "wall_ms_min": 1e3 * min(wall),
        "cpu_ms": 1e3 * statistics.median(cpu),
        "page_faults": round(statistics.median(faults)),
        "load": load_average(),
    }


def _calls_per_sample(prepared: Prepared) -> int:
    """Enough calls in one sample to be far above the clock's resolution; one where the input must be restored."""
    if prepared.reset:
        return 1
    number = 1
    while True:
        started = time.perf_counter()
        for _ in range(number):
            prepared.run()
        if (elapsed := time.perf_counter() - started) > 0.02 or number >= 4096:
            return number
        number = max(2 * number, int(number * 0.003 / max(elapsed, 1e-7))) if elapsed < 0.001 else 2 * number


def sample(prepared: Prepared, number: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds of all threads and page faults of one call, its result's release included."""
    if prepared.reset:
        prepared.reset()
    time.sleep(0.03)  # the last rival's OpenMP pool spins for 10 ms and more, on a processor that this one needs
    run = prepared.run
    if number > 1:
        run()  # its own threads wake up, for every rival alike: a halted processor takes longer than a small call
    faults, cpu, wall = _page_faults(), time.process_time(), time.perf_counter()
    for _ in range(number):
        run()
    wall, cpu, faults = time.perf_counter() - wall, time.process_time() - cpu, _page_faults() - faults
    return wall / number, cpu / number, faults / number


def load_average() -> float | None:
    """What else the machine was doing: spinning thread pools suffer from it much more than others."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _page_faults() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _peak(benchmark: Benchmark, case: Case, rival: str, threads: int) -> Row:
    """The high-water mark of one run, over what was there before it."""
    row: Row = {"rival": rival}
    try:
        tiny = _prepare(benchmark, benchmark.tiny, rival, benchmark.make_inputs(benchmark.tiny), threads)
        if tiny.reset:
            tiny.reset()
        tiny.run()
        prepared = _prepare(benchmark, case, rival, benchmark.make_inputs(case), threads)
        if prepared.reset:
            prepared.reset()
    except Exception:  # the rounds say why
        return row
    peak = peak_bytes(prepared.run)
    if peak is not None:
        row["peak_mb"] = peak / 1e6
        row["beyond_result_mb"] = max(0, peak - prepared.returned_bytes) / 1e6
    return row


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """The high-water mark of one call, its result included, over what was there before it."""
    with contextlib.suppress(OSError, AttributeError):  # glibc: what a warm-up has left would be used again, unseen
        ctypes.CDLL(None).malloc_trim(0)
    before = status_kib("VmRSS")
    if before is None:
        return None
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = run()
    high = status_kib("VmHWM")
    del result
    assert high is not None
    return max(0, high - before) * 1024


def status_kib(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(key + ":")), None)


# --- the parent ------------------------------------------------------------------------------------------------------


def spawn(order: Row, environment: Mapping[str, str], *, may_die: bool = False) -> list[Row]:
    """The rows that this script, started again with ``--child``, puts into ``order["answer"]``, one a line."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.jsonl"
        answer.touch()
        command = [sys.executable, sys.argv[0], "--child", json.dumps(order | {"answer": str(answer)})]
        outcome = subprocess.run(command, env=os.environ | dict(environment), check=False)
        if outcome.returncode != 0 and not may_die:
            raise SystemExit(f"{sys.argv[0]}: the process for {order} ended with code {outcome.returncode}")
        return [json.loads(line) for line in answer.read_text().splitlines()]


def report(order: Row, row: Row) -> None:
    """What a child has found so far outlives it."""
    with Path(order["answer"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def machine(packages: Iterable[str] = PACKAGES) -> Row:
    """What a reader of the table must know about where it was made."""
    import softgrad

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "commit": described.stdout.strip() or "unknown",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "instruction_set": softgrad.info()["instruction_set"],
        "python": platform.python_version(),
        **versions,
    }


def main(*benchmarks: Benchmark) -> None:
    """Parse the command line, run, print one table a case, and write the CSV if it was asked for."""
    names = ", ".join(benchmark.name for benchmark in benchmarks)
    parser = argparse.ArgumentParser(description=f"Benchmarks of softgrad: {names}.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and few rounds: does it run, is it right?")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose 'benchmark: name dtype' contains TEXT")
    parser.add_argument(
        "--rivals", default="", metavar="A,B", help="rivals whose names contain A or B (softgrad stays)"
    )
    parser.add_argument("--state", default="", metavar="TEXT", help=f"states containing TEXT, of {', '.join(STATES)}")
    parser.add_argument("--threads", type=int, metavar="N", help="this number of threads alone")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="time to spend on the rounds of one case (default 6)"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        order = json.loads(arguments.child)
        for row in _child(benchmarks, order):
            report(order, row)
        return
    pairs = [(b, case) for b in benchmarks for case in (b.smoke_cases if arguments.smoke else b.cases)]
    chosen = [(b, case) for b, case in pairs if arguments.only in f"{b.name}: {case.label}"]
    if not chosen:
        raise SystemExit(f"no case contains {arguments.only!r}; there are {[f'{b.name}: {c.label}' for b, c in pairs]}")
    seconds, max_rounds = (0.2, 3) if arguments.smoke else (arguments.seconds, 200)
    about, table, wrong = machine(dict.fromkeys(p for b in benchmarks for p in (*PACKAGES, *b.packages))), [], False
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    available = os.cpu_count() or 1
    for benchmark, case in chosen:
        rivals = _chosen_rivals(benchmark, arguments)
        peaks: dict[str, Row] = {}
        measured = rivals
        if arguments.smoke:  # one process is enough to see whether it runs
            measured = rivals[:1] if (benchmark, case) == chosen[0] else []
        for threads in case.threads:
            if threads > available or arguments.threads not in (None, threads):
                continue
            if arguments.no_memory:
                peaks = {}
            elif benchmark.peak_threads is None:
                peaks = _peaks(benchmark, case, measured, threads)
            elif not peaks:  # all threads share one measurement
                peaks = _peaks(benchmark, case, measured, min(benchmark.peak_threads, available))
            for state in (s for s in case.states if arguments.state in s):
                order = {"mode": "rounds", "benchmark": benchmark.name, "case": case.label, "rivals": rivals}
                order |= {"threads": threads, "seconds": seconds, "max_rounds": max_rounds}
                rows = spawn(order, STATES[state])
                for row in rows:
                    row |= peaks.get(row["rival"], {}) if state == "as shipped" else {}
                    wrong |= row["note"].startswith("WRONG")
                    table.append(
                        {"benchmark": benchmark.name, "case": case.name, "dtype": case.dtype}
                        | {"threads": threads, "state": state}
                        | row
                        | about
                    )
                title = f"{case.label}, {threads} thread(s), {state}"
                _print(benchmark, f"{benchmark.name}: {title}" if len(benchmarks) > 1 else title, rows)
                if arguments.csv:  # what there is so far outlives an interruption
                    write(arguments.csv, table, about)
    if arguments.csv:
        print(f"\n{len(table)} rows written to {arguments.csv}")
    if wrong:
        raise SystemExit("a rival or softgrad gave a wrong result: see the notes")


def _chosen_rivals(benchmark: Benchmark, arguments: argparse.Namespace) -> list[str]:
    wanted = [part for part in arguments.rivals.split(",") if part]
    return [
        name
        for name in benchmark.rivals
        if (not wanted or name in benchmark.baselines or any(part in name for part in wanted))
        and not (arguments.smoke and name in benchmark.slow)
    ]


def _peaks(benchmark: Benchmark, case: Case, rivals: Sequence[str], threads: int) -> dict[str, Row]:
    order = {"mode": "peak", "benchmark": benchmark.name, "case": case.label, "threads": threads}
    orders = (order | {"rival": rival} for rival in rivals)
    return {row["rival"]: row for order in orders for row in spawn(order, {})}


def _print(benchmark: Benchmark, title: str, rows: Sequence[Row]) -> None:
    def cell(row: Row, key: str, form: str) -> str:
        return format(row[key], form) if isinstance(row.get(key), int | float) else "–"

    width = max(len(row["rival"]) for row in rows)
    loads = [row["load"] for row in rows if row.get("load") is not None]
    if loads:
        title += f", load of the machine {max(loads):.1f}"
    heads = ["wall ms", "min", "cpu ms", "faults", "peak MB", "beyond", *(f"÷ {b}" for b in benchmark.baselines)]
    heads += [f"cpu ÷ {benchmark.baselines[0]}"]
    print(f"\n{title}\n{'':{width}}" + "".join(f"  {head:>8}" for head in heads))
    for row in rows:
        cells = [cell(row, "wall_ms", ".4g"), cell(row, "wall_ms_min", ".4g"), cell(row, "cpu_ms", ".4g")]
        cells += [cell(row, "page_faults", "d"), cell(row, "peak_mb", ".1f"), cell(row, "beyond_result_mb", ".1f")]
        cells += [cell(row, f"ratio to {baseline}", ".3g") for baseline in benchmark.baselines]
        cells += [cell(row, f"cpu ratio to {benchmark.baselines[0]}", ".3g")]
        line = "".join(f"  {text:>{max(8, len(head))}}" for text, head in zip(cells, heads, strict=True))
        print(f"{row['rival']:{width}}{line}  {row['note']}".rstrip(), flush=True)


def write(path: Path, table: Sequence[Row], about: Row) -> None:
    columns = [key for key in dict.fromkeys(key for row in table for key in row) if key not in about]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, *about], restval="")
        writer.writeheader()
        for row in table:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in (about | row).items()})
