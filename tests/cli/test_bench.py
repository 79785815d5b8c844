"""``softgrad bench``: what a row says, that wrong results are not timed, and that the time is kept. No timings."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from softgrad import reference
from softgrad.cli import _bench, _bench_contests
from softgrad.cli._bench_contests import Contest, Pair, WrongResultError
from softgrad.cli._messages import UserError
from softgrad.torch import _rivals

TINY = [
    _bench_contests.cross_entropy(64, 30),
    _bench_contests.linear_head(16, 8, 40),
    _bench_contests.regression(
        "200 x 5, 3 classes",
        1.0,
        lambda: _bench_contests.synthetic(200, 5, 3),
        C=1.0,
        solvers=("lbfgs", "newton-cholesky"),
    ),
]


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench, "_MOST_ROUNDS", 5)
    monkeypatch.setattr(_bench, "_PAUSE", 0.0)


def contest(ours: Callable[[], Any], theirs: Callable[[], Any], rivals: tuple[str, ...] = ("slow",)) -> Contest:
    def pairs(threads: int, within: Callable[[], bool]) -> Iterator[Pair]:
        for rival in rivals:
            yield Pair(rival, threads, ours, theirs)

    return Contest("test", "1", "float64", rivals, 1.0, pairs)


def test_rows_of_every_contest() -> None:
    before = torch.get_num_threads()
    rows = _bench.run(5.0, threads=1, contests=TINY)
    assert torch.get_num_threads() == before
    assert [row.rival for row in rows] == [
        "NumPy", "PyTorch", "PyTorch", "scikit-learn lbfgs", "scikit-learn newton-cholesky"
    ]  # fmt: skip
    for row in rows:
        assert row.rounds >= 1, row.note
        assert row.threads == 1
        assert row.seconds is not None
        assert row.rival_seconds is not None
        assert row.ratio is not None
        assert row.ratio_quartiles is not None
        low, high = row.ratio_quartiles
        assert 0 < low <= row.ratio <= high
        assert row.seconds > 0
        assert row.rival_seconds > 0
    assert "at tol=" in rows[-1].note
    assert "above the optimum" in rows[-1].note
    plain = json.loads(json.dumps(_bench.as_dicts(rows)))
    assert plain[0]["contest"] == "cross-entropy and gradient"
    assert plain[0]["ratio"] == rows[0].ratio
    assert set(plain[0]) == set(_bench.Row.__dataclass_fields__)


def test_all_contests_are_named_when_there_is_no_time() -> None:
    started = time.perf_counter()
    rows = _bench.run(1e-9)
    assert time.perf_counter() - started < 30
    assert all(row.rounds == 0 and row.ratio is None and "no time" in row.note for row in rows)
    shapes = {row.shape for row in rows}
    assert {"8192 x 1000", "256 x 50257", "65536 x 10", "512 x 256 x 16384"} <= shapes
    assert any("20000 x 64" in shape for shape in shapes)
    assert any("digits" in shape for shape in shapes)


def test_no_round_begins_that_would_end_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the calls move: three calls of a second each way fit into six seconds and a bit."""
    now = 0.0
    calls = []

    def takes(seconds: float, name: str) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            now += seconds
            calls.append(name)

        return call

    monkeypatch.setattr(_bench.time, "perf_counter", lambda: now)
    monkeypatch.setattr(_bench.time, "sleep", lambda _: None)
    (row,) = _bench.run(13.0, threads=1, contests=[contest(takes(1, "a"), takes(3, "b"))])
    assert row.rounds == 3
    assert row.ratio == 3
    assert row.ratio_quartiles == (3, 3)
    assert (row.seconds, row.rival_seconds) == (1, 3)
    assert calls[:6] == ["a", "b", "b", "a", "a", "b"]  # each first in turn

    rows = _bench.run(13.0, threads=1, contests=[contest(takes(8, "a"), takes(8, "b"), ("one", "two"))])
    assert [r.rounds for r in rows] == [1, 0]
    assert rows[1].note == "left out: no time was left"


def test_a_wrong_rival_is_caught_before_any_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    right = _bench_contests.numpy_cross_entropy

    def wrong(logits: Any, labels: Any, out: Any) -> tuple[float, Any]:
        loss, gradient = right(logits, labels, out)
        gradient[3, 4] += 0.01
        return loss, gradient

    monkeypatch.setattr(_bench_contests, "numpy_cross_entropy", wrong)
    monkeypatch.setattr(_bench, "_seconds", lambda call: pytest.fail("timed"))
    with pytest.raises(WrongResultError, match=r"NumPy and softgrad differ by 1\.00e-02"):
        _bench.run(2.0, contests=TINY[:1])


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_wrong_torch_is_caught(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = _rivals.linear_cross_entropy

    def wrong(*arrays: Any) -> Callable[[], tuple[Any, ...]]:
        run = right(*arrays)
        return lambda: tuple(value * (1.01 if i == part else 1) for i, value in enumerate(run()))

    monkeypatch.setattr(_rivals, "linear_cross_entropy", wrong)
    with pytest.raises(WrongResultError, match="PyTorch and softgrad differ"):
        _bench.run(2.0, contests=TINY[1:2])


def test_nan_and_shapes_are_wrong() -> None:
    with pytest.raises(WrongResultError, match="differ by nan"):
        _bench_contests.agree("x", "r", (1.0,), (math.nan,))
    with pytest.raises(WrongResultError, match="shape"):
        _bench_contests.agree("x", "r", (np.zeros(3),), (np.zeros(4),))


def test_a_fit_that_does_not_reach_the_objective_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench_contests, "_TOLERANCES", {"lbfgs": (1.0, 0.1)})
    tiny = _bench_contests.regression(
        "200 x 5", 1.0, lambda: _bench_contests.synthetic(200, 5, 3), C=1.0, solvers=("lbfgs",)
    )
    (row,) = _bench.run(2.0, contests=[tiny])
    assert row.rounds == 0
    assert "above the objective, however small its tolerance" in row.note


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_bench, _bench_contests):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    rows = _bench.run(2.0, threads=1, contests=TINY[:2])
    assert [(row.rival, row.rounds > 0) for row in rows] == [("NumPy", True), ("PyTorch", False), ("PyTorch", False)]
    assert rows[1].note == rows[2].note == "PyTorch is not installed"


def test_the_objective_is_the_definition() -> None:
    X, y = _bench_contests.synthetic(50, 4, 3)
    rng = np.random.default_rng(0)
    W, b = rng.standard_normal((3, 4)), rng.standard_normal(3)
    expected = 0.7 * reference.cross_entropy(X @ W.T + b, y, reduction="sum") + 0.5 * np.sum(W**2)
    assert _bench_contests.objective(X, y, 0.7, W, b) == pytest.approx(float(expected), rel=1e-12)
    two = (y > 0).astype(int)
    logits = np.stack([np.zeros(50), X @ W[0] + b[0]], axis=1)
    expected = 0.7 * reference.cross_entropy(logits, two, reduction="sum") + 0.5 * np.sum(W[0] ** 2)
    assert _bench_contests.objective(X, two, 0.7, W[:1], b[:1]) == pytest.approx(float(expected), rel=1e-12)


def test_machine() -> None:
    facts = json.loads(json.dumps(_bench.machine(1)))
    assert facts["processor"]
    assert facts["threads"] == 1
    assert facts["versions"]["numpy"] == np.__version__
    assert torch.__version__.startswith(facts["versions"]["torch"].partition("+")[0])
    assert facts["instruction_set"]


@pytest.mark.parametrize(("seconds", "threads"), [(0.0, None), (math.inf, None), (math.nan, None), (1.0, 0)])
def test_options_that_cannot_be(seconds: float, threads: int | None) -> None:
    with pytest.raises(UserError, match="--threads" if threads == 0 else "--seconds"):
        _bench.run(seconds, threads=threads, contests=[])


def test_fits_have_one_thread() -> None:
    seen = []
    tiny = contest(lambda: None, lambda: None)

    def pairs(threads: int, within: Callable[[], bool]) -> Iterator[Pair]:
        seen.append(threads)
        return tiny.pairs(threads, within)

    _bench.run(1e9, threads=2, contests=[replace(tiny, pairs=pairs), replace(tiny, pairs=pairs, most_threads=1)])
    assert seen == [2, 1]
