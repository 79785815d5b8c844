"""``softgrad bench``: this machine, softgrad and its rivals, in about ten seconds.

A round times both calls of a pair, one after the other, each first in turn: a machine that slows down for a while slows
both, and a ratio is the median over the rounds of (rival's time ÷ softgrad's time in the same round). Results are
compared before anything is timed. `benchmarks/` measures more, and in fresh processes; this is the short answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import softgrad
from softgrad._core.threads import resolve_threads
from softgrad.cli._bench_contests import Contest, Pair, all_contests
from softgrad.cli._messages import UserError

_MOST_ROUNDS = 100
_LEAST_PART = 0.4  # of the seconds that a contest's weight stands for; with less, it is not begun
_PAUSE = 0.02  # seconds: the last rival's pool of threads spins for a while on a processor that this one needs
_PACKAGES = ("softgrad", "numpy", "scikit-learn", "torch")


@dataclass(frozen=True)
class Row:
    """One pair: softgrad against one rival in one contest; without rounds, ``note`` says why there are none.

    ``ratio`` is the rival's time over softgrad's, with its quartiles; times are medians in seconds; ``extra_bytes`` is
    the memory that one call takes at its height beyond what was there before it, results included; None where there was
    no time for another call, or the system does not tell.
    """

    contest: str
    shape: str
    dtype: str
    rival: str
    threads: int
    rounds: int = 0
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    seconds: float | None = None
    rival_seconds: float | None = None
    extra_bytes: int | None = None
    rival_extra_bytes: int | None = None
    note: str = ""


def run(seconds: float = 10.0, *, threads: int | None = None, contests: Sequence[Contest] | None = None) -> list[Row]:
    """Measure, and stop in time.

    Parameters
    ----------
    seconds : float
        Time for all of it but the imports, shared out by weight. It is looked at between calls: the end may be late
        by one.
    threads : int, optional
        For softgrad, its rivals and their BLAS alike; all that the process may use if not given. Beside NumPy, and
        in fits, it is one.
    contests : sequence of Contest, optional
        Those of :func:`softgrad.cli._bench_contests.all_contests` if not given.

    Returns
    -------
    list of Row
        A row for each pair, those that were left out among them.

    Raises
    ------
    UserError
        For a time or a number of threads that cannot be.
    WrongResultError
        When softgrad and a rival do not agree.
    """
    if not 0 < seconds < math.inf:
        raise UserError(f"--seconds must be positive, not {seconds:g}")
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be at least 1, not {threads}")
    count = resolve_threads(threads)
    rows: list[Row] = []
    left = list(all_contests() if contests is None else contests)
    _load()
    with _limited(count):
        end = time.perf_counter() + seconds
        while left:
            now = time.perf_counter()
            share = (end - now) * left[0].weight / sum(contest.weight for contest in left)
            rows += _contest(left.pop(0), count, now + share, end)
    return rows


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain data, for JSON."""
    return [asdict(row) for row in rows]


def machine(threads: int | None = None) -> dict[str, Any]:
    """What a reader of the figures must know about where they were made."""
    facts = softgrad.info()
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "threads": resolve_threads(threads),
        "instruction_set": facts["instruction_set"],
        "blas": facts["blas"],
        "system": facts["machine"],
        "python": facts["python"],
        "versions": versions,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _load() -> None:
    """Import the rivals before the clock starts, and before their pools of threads are limited."""
    import sklearn.linear_model  # noqa: F401

    import softgrad.sklearn

    if find_spec("torch") is not None:
        import softgrad.torch._rivals  # noqa: F401


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    """So many threads for the BLAS and OpenMP that are loaded, and for PyTorch."""
    with contextlib.ExitStack() as stack:
        if find_spec("torch") is not None:
            from softgrad.torch import _rivals

            stack.enter_context(_rivals.n_threads(threads))
        stack.enter_context(threadpool_limits(threads))
        yield


def _contest(contest: Contest, threads: int, share_end: float, end: float) -> list[Row]:
    """The rows of a contest, whose pairs share its time; a pair that is set up gets one round beyond that."""

    def within() -> bool:
        return time.perf_counter() < end

    threads = min(threads, contest.most_threads or threads)
    rows: list[Row] = []
    if end - time.perf_counter() > _LEAST_PART * contest.weight:
        for pair in contest.pairs(threads, within):
            to_come = len(contest.rivals) - len(rows)
            now = time.perf_counter()
            rows.append(_measure(contest, pair, now + (share_end - now) / to_come, within))
    measured = {row.rival for row in rows}
    for rival in contest.rivals:
        if rival not in measured:
            missing = rival == "PyTorch" and find_spec("torch") is None
            note = "PyTorch is not installed" if missing else "left out: no time was left"
            rows.append(Row(contest.name, contest.shape, contest.dtype, rival, threads, note=note))
    return rows


def _measure(contest: Contest, pair: Pair, end: float, within: Callable[[], bool]) -> Row:
    head = (contest.name, contest.shape, contest.dtype, pair.rival, pair.threads)
    if pair.theirs is pair.ours:  # there is no rival, and the note says why
        return Row(*head, note=pair.note)
    taken: list[tuple[float, float]] = []
    longest = 0.0
    while len(taken) < _MOST_ROUNDS and (not taken or time.perf_counter() + longest < end):
        if not taken and not within():
            return Row(*head, note="left out: no time was left")
        started = time.perf_counter()
        calls = (pair.ours, pair.theirs)
        first = len(taken) % 2
        times = [0.0, 0.0]
        for which in (first, 1 - first):
            times[which] = _seconds(calls[which])
        taken.append((times[0], times[1]))
        longest = max(longest, time.perf_counter() - started)
    ours, theirs = np.array(taken).T
    low, median, high = np.quantile(theirs / ours, [0.25, 0.5, 0.75]).tolist()
    in_time = time.perf_counter() < end
    extra = [_peak_bytes(call) if in_time else None for call in (pair.ours, pair.theirs)]
    return Row(
        *head,
        rounds=len(taken),
        ratio=median,
        ratio_quartiles=(low, high),
        seconds=float(np.median(ours)),
        rival_seconds=float(np.median(theirs)),
        extra_bytes=extra[0],
        rival_extra_bytes=extra[1],
        note=pair.note,
    )


def _seconds(call: Callable[[], Any]) -> float:
    time.sleep(_PAUSE)
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _peak_bytes(call: Callable[[], Any]) -> int | None:
    """The high-water mark of one call over what was there before it; None where the system does not tell."""
    with contextlib.suppress(
        OSError, AttributeError
    ):  # glibc: what an earlier call has freed would be used again, unseen
        ctypes.CDLL(None).malloc_trim(0)
    try:
        before = _status_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the mark begins anew
        result = call()
        high = _status_bytes("VmHWM")
    except (OSError, StopIteration):
        return None
    del result
    return max(0, high - before)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
