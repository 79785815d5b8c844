"""The same bits for any number of threads, many callers at once, fork, the environment, errors in workers."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cases import logits, targets

import softgrad
from softgrad._core import backend, schedule, threads
from softgrad._core.blas import single_threaded_blas

COUNTS = (1, 2, 3, 5, 8, 16)


def results(o: Any, y: Any, n_threads: int, **options: Any) -> dict[str, bytes]:
    """The bits of every function."""
    transform = {k: v for k, v in options.items() if k in ("softcap", "temperature", "logit_scale")}
    stats = softgrad.PredictionStats.empty(o.shape[:-1], np.float64)
    loss, gradient = softgrad.cross_entropy_with_grad(o, y, n_threads=n_threads, stats=stats, **options)
    plain, plain_gradient = softgrad.cross_entropy_with_grad(o, y, n_threads=n_threads, **options)
    arrays = {
        "loss": loss,
        "gradient": gradient,
        "loss without by-products": plain,
        "gradient without by-products": plain_gradient,
        "loss alone": softgrad.cross_entropy(o, y, n_threads=n_threads, **options),
        "hvp": softgrad.cross_entropy_hvp(o, y, o, n_threads=n_threads, **options),
        "softmax": softgrad.softmax(o, n_threads=n_threads, **transform),
        "log_softmax": softgrad.log_softmax(o, n_threads=n_threads, **transform),
        "logsumexp": softgrad.logsumexp(o, n_threads=n_threads, **transform),
        "jvp": softgrad.softmax_jvp(o, o, n_threads=n_threads, **transform),
        **stats._asdict(),
        **softgrad.prediction_stats(o, y, n_threads=n_threads, **transform)._asdict(),
    }
    return {name: np.ascontiguousarray(value).tobytes() for name, value in arrays.items()}


# (rows, columns): many narrow rows, rows by blocks, few wide rows split by columns, one very wide row
SHAPES = ((40_000, 10), (701, 1000), (3, 70_001), (1, 200_000))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_same_bits_for_any_number_of_threads(dtype: str, shape: tuple[int, int], instruction_set: str) -> None:
    if instruction_set == "numpy":
        shape = (max(1, shape[0] // 8), shape[1])  # slow, and the same
    o = logits("flat", *shape, dtype)
    weight = np.random.default_rng(0).random(shape[1])
    cases: tuple[tuple[Any, dict[str, Any]], ...] = (
        (targets("labels", o), {}),
        (targets("labels", o), {"label_smoothing": 0.1, "class_weight": weight, "softcap": 5.0, "z_loss": 0.01}),
        (targets("sparse", o), {"reduction": "none", "temperature": 2.0}),
    )
    for y, options in cases:
        expected = results(o, y, 1, **options)
        for n_threads in COUNTS[1:] if dtype == "float32" else (2, 5):
            got = results(o, y, n_threads, **options)
            different = [name for name in expected if got[name] != expected[name]]
            assert not different, f"{n_threads} threads, {list(options)}"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_column_split_equals_row_path_bit_for_bit(dtype: str, instruction_set: str) -> None:
    """A few wide rows are split by columns; the same rows in a tall batch are not."""
    wide = logits("masked", 2, 100_001, dtype)
    wide[0, :70_000] = -np.inf  # two whole panels
    y = np.array([99_999, 3 if wide[1, 3] > -np.inf else int(np.argmax(wide[1]))])
    tall = np.concatenate([wide, wide[::-1]] * 3)
    tall_y = np.concatenate([y, y[::-1]] * 3)
    for options in ({}, {"softcap": 4.0}, {"logit_scale": 0.3, "z_loss": 0.1}):
        loss, gradient = softgrad.cross_entropy_with_grad(wide, y, reduction="none", n_threads=2, **options)
        stats = softgrad.prediction_stats(wide, y, n_threads=2)
        by_row, by_row_gradient = softgrad.cross_entropy_with_grad(
            tall, tall_y, reduction="none", n_threads=2, **options
        )
        by_row_stats = softgrad.prediction_stats(tall, tall_y, n_threads=2)
        np.testing.assert_array_equal(loss, by_row[:2])
        assert gradient.tobytes() == by_row_gradient[:2].tobytes()
        for a, b in zip(stats, by_row_stats, strict=True):
            np.testing.assert_array_equal(a, b[:2])


def test_the_column_split_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above compares two different paths, where the native kernels have two."""
    if backend.current() == "numpy":
        assert backend.available() == ("numpy",)
        return
    counts: list[int] = []
    original = threads.run_blocks

    def counting(work: Any, count: int, n_threads: int) -> None:
        counts.append(count)
        original(work, count, n_threads)

    monkeypatch.setattr(schedule, "run_blocks", counting)
    softgrad.cross_entropy_with_grad(np.zeros((2, 100_001), np.float32), [0, 1], n_threads=2)
    panels = -(-100_001 // backend.kernels().panel)
    assert counts == [panels, panels]  # statistics, then gradient


def test_long_rows_and_batches_are_cut_for_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is answered between blocks: none has more than two million logits, of whatever shape they are."""
    if backend.current() == "numpy":
        return
    counts: list[int] = []
    original = threads.run_blocks

    def counting(work: Any, count: int, n_threads: int) -> None:
        counts.append(count)
        original(work, count, n_threads)

    monkeypatch.setattr(schedule, "run_blocks", counting)
    panels = -(-5_000_000 // backend.kernels().panel)
    row = np.zeros((1, 5_000_000), np.float16)
    both = functools.partial(softgrad.cross_entropy_with_grad, targets=[0])
    for call, passes in ((softgrad.logsumexp, 1), (softgrad.softmax, 2), (both, 2)):
        counts.clear()
        call(row, n_threads=1)
        assert counts == [panels] * passes
        counts.clear()
        call(np.zeros((1, 1_000_000), np.float16), n_threads=1)
        assert counts == []
    counts.clear()
    softgrad.logsumexp(np.broadcast_to(row[:, :1000], (50_000, 1000)), n_threads=1)
    assert counts == [25]


def test_an_interrupt_ends_a_single_threaded_call() -> None:
    """In a small part of the time that the call takes."""
    code = """
import _thread, threading, time, numpy as np, softgrad
o = np.broadcast_to(np.linspace(-9, 9, 100_000, dtype=np.float32), (20_000, 100_000))  # 8 GB, read from 400 kB
times = []
def interrupt():
    time.sleep(0.2)
    times.append(time.perf_counter())
    _thread.interrupt_main()
threading.Thread(target=interrupt, daemon=True).start()
try:
    softgrad.logsumexp(o, softcap=5.0, n_threads=1)
    print("not interrupted")
except KeyboardInterrupt:
    print(time.perf_counter() - times[0])
"""
    done = run(code)
    assert float(done.stdout) < 0.2, done


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_linear_head_same_bits_for_any_number_of_threads(dtype: str) -> None:
    from cases import DTYPES

    random = np.random.default_rng(3)
    x, weight = (
        random.normal(size=(300, 33)).astype(DTYPES[dtype]),
        random.normal(size=(3001, 33)).astype(DTYPES[dtype]),
    )
    bias, y = random.normal(size=3001).astype(DTYPES[dtype]), random.integers(3001, size=300)
    for options in ({}, {"max_memory": 1 << 20, "softcap": 5.0}):
        expected: list[bytes] | None = None
        for n_threads in (1, 2, 3, 8):
            loss, grads = softgrad.linear_cross_entropy_with_grad(
                x, weight, y, bias=bias, n_threads=n_threads, **options
            )
            alone = softgrad.linear_cross_entropy(x, weight, y, bias=bias, n_threads=n_threads, **options)
            got = [np.asarray(a).tobytes() for a in (loss, alone, *grads)]
            expected = expected or got
            assert [a == b for a, b in zip(got, expected, strict=True)] == [True] * 5, n_threads


# --- many callers ----------------------------------------------------------------------------------------------------


def test_many_callers_at_once() -> None:
    o = logits("flat", 400, 1000, "float32")
    y = targets("labels", o)
    x, weight = np.random.default_rng(0).normal(size=(200, 16)), np.random.default_rng(1).normal(size=(500, 16))
    expected = softgrad.cross_entropy_with_grad(o, y, n_threads=1)
    linear = softgrad.linear_cross_entropy_with_grad(x, weight, y[:200] % 500, n_threads=1)
    start = threading.Barrier(12)

    def call(k: int) -> bool:
        start.wait(60)
        same = True
        for _ in range(6):
            if k % 3:
                loss, gradient = softgrad.cross_entropy_with_grad(o, y, n_threads=1 + k % 4)
                same &= loss == expected[0] and gradient.tobytes() == expected[1].tobytes()
            else:
                loss, grads = softgrad.linear_cross_entropy_with_grad(x, weight, y[:200] % 500, n_threads=1 + k % 4)
                same &= loss == linear[0] and grads.weight.tobytes() == linear[1].weight.tobytes()
        return bool(same)

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(call, range(12), timeout=120))


def test_blas_limit_is_lifted_again() -> None:
    from threadpoolctl import threadpool_info

    def blas() -> list[int]:
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    x, weight = np.ones((50, 4)), np.ones((30, 4))
    before = blas()
    softgrad.linear_cross_entropy_with_grad(x, weight, np.zeros(50, int), n_threads=2)
    assert blas() == before
    with pytest.raises(ValueError, match="targets"):
        softgrad.linear_cross_entropy_with_grad(x, weight, np.full(50, 99), n_threads=2)
    assert blas() == before
    with single_threaded_blas():
        assert set(blas()) == {1}
        with single_threaded_blas():
            assert set(blas()) == {1}
        assert set(blas()) == {1}
    assert blas() == before
    with pytest.raises(KeyError), single_threaded_blas():
        raise KeyError
    assert blas() == before


def test_blas_limit_works_from_any_thread_and_is_lifted_by_any() -> None:
    """threadpoolctl may let one thread alone change the limit: the first user need not be the last."""
    from threadpoolctl import threadpool_info

    def blas() -> list[int]:
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    before = blas()
    entered, leave = threading.Event(), threading.Event()
    seen: list[list[int]] = []

    def other() -> None:
        with single_threaded_blas():
            seen.append(blas())
            entered.set()
            leave.wait(30)

    for _ in range(2):
        with single_threaded_blas():
            assert set(blas()) == {1}
            thread = threading.Thread(target=other)
            thread.start()
            assert entered.wait(30)
        assert set(blas()) == {1}  # the other thread still needs it
        leave.set()
        thread.join(30)
        assert blas() == before
        thread = threading.Thread(target=other)  # and a thread that comes first, after the main thread has been
        thread.start()
        thread.join(30)
        assert blas() == before
        entered.clear()
        leave.clear()
    assert all(set(counts) == {1} for counts in seen)
    assert len(seen) == 4


# --- the pool --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_block_is_run_once(count: int, n_threads: int) -> None:
    done: list[int] = []
    threads.run_blocks(done.append, count, n_threads)
    assert sorted(done) == list(range(count))


def test_blocks_are_run_by_several_threads() -> None:
    """Two blocks that wait for each other finish only if two threads run them."""
    meet = threading.Barrier(2)
    names: list[str] = []

    def work(_: int) -> None:
        meet.wait(30)
        names.append(threading.current_thread().name)

    threads.run_blocks(work, 2, 2)
    assert len(set(names)) == 2


@pytest.mark.parametrize("n_threads", [1, 4])
def test_the_first_exception_is_raised_after_all_threads_stopped(n_threads: int) -> None:
    running = 0
    lock = threading.Lock()

    class TroubleError(Exception):
        pass

    def work(i: int) -> None:
        nonlocal running
        with lock:
            running += 1
        try:
            if i == 3:
                raise TroubleError(i)
            threading.Event().wait(0.005)
        finally:
            with lock:
                running -= 1

    for _ in range(3):
        with pytest.raises(TroubleError, match="3"):
            threads.run_blocks(work, 20, n_threads)
        assert running == 0
    done: list[int] = []
    threads.run_blocks(done.append, 5, n_threads)  # the pool still works
    assert sorted(done) == [0, 1, 2, 3, 4]


def test_exception_in_a_kernel_worker_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    o = logits("flat", 400, 1000, "float32")
    original = schedule.run_blocks

    def sabotaged(work: Any, count: int, n_threads: int) -> None:
        def wrapped(i: int) -> None:
            if i == count - 1:
                raise MemoryError("worker")
            work(i)

        original(wrapped, count, n_threads)

    monkeypatch.setattr(schedule, "run_blocks", sabotaged)
    with pytest.raises(MemoryError, match="worker"):
        softgrad.cross_entropy_with_grad(o, targets("labels", o), n_threads=2)
    monkeypatch.undo()
    assert np.isfinite(softgrad.cross_entropy(o, targets("labels", o), n_threads=2))


def test_nested_use_runs_inline() -> None:
    """Parallel code inside a block: no new threads, no deadlock, the same result."""
    o = logits("flat", 400, 1000, "float32")
    y = targets("labels", o)
    expected = softgrad.cross_entropy(o, y, n_threads=1)
    inner: list[tuple[int, bool]] = []
    losses: list[Any] = []

    def outer(_: int) -> None:
        me = threading.get_ident()
        threads.run_blocks(lambda i: inner.append((i, threading.get_ident() == me)), 4, 4)
        losses.append(softgrad.cross_entropy(o, y, n_threads=4))

    threads.run_blocks(outer, 6, 3)
    assert len(inner) == 24
    assert all(own for _, own in inner)
    assert losses == [expected] * 6


def test_more_callers_than_the_pool_has_threads() -> None:
    """Every caller works itself, so a full pool delays nobody for ever."""
    done: list[int] = []

    def caller(_: int) -> None:
        threads.run_blocks(lambda i: done.append(i), 8, threads.MOST_THREADS)

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(20)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert not any(thread.is_alive() for thread in callers)
    assert len(done) == 160


# --- processes -------------------------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith("SOFTGRAD_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**keep, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_use_after_fork() -> None:
    """A child has none of its parent's threads; a parent in the middle of a call must not lock its child."""
    code = """
import os, sys, threading, warnings
import numpy as np
import softgrad
warnings.filterwarnings("ignore", category=DeprecationWarning)  # Python 3.12 on fork with threads: the point here
o, y = np.random.default_rng(0).normal(size=(400, 1000)).astype(np.float32), np.arange(400)
x, w = o[:, :16].copy(), o[:300, :16].copy()
expected = softgrad.cross_entropy(o, y, n_threads=4)
linear = softgrad.linear_cross_entropy(x, w, y % 300, n_threads=4)
stop = False
def busy():
    while not stop:
        softgrad.cross_entropy(o, y, n_threads=3)  # no product: NumPy's own products hang in a child forked during one
others = [threading.Thread(target=busy) for _ in range(3)]
for t in others: t.start()
children = []
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        same = softgrad.cross_entropy(o, y, n_threads=4) == expected
        same &= softgrad.linear_cross_entropy(x, w, y % 300, n_threads=4) == linear
        os._exit(0 if same else 3)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
stop = True
for t in others: t.join()
assert softgrad.cross_entropy(o, y, n_threads=4) == expected
print(codes)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([0] * 10)


@pytest.mark.parametrize("count", ["1", "3"])
def test_environment_sets_the_threads(count: str) -> None:
    code = """
import os, numpy as np, softgrad
from softgrad._core import threads
assert softgrad.info()["n_threads"] == threads.resolve_threads(None)
assert threads.resolve_threads(5) == 5
softgrad.cross_entropy(np.zeros((400, 1000), np.float32), np.zeros(400, int))
tasks = "/proc/self/task"
names = [open(f"{tasks}/{task}/comm").read() for task in os.listdir(tasks)] if os.path.exists(tasks) else []
print(threads.default_threads(), names.count("softgrad\\n"))
"""
    done = run(code, SOFTGRAD_NUM_THREADS=count)
    assert done.returncode == 0, done.stderr
    threads, alive = map(int, done.stdout.split())
    assert threads == int(count)
    assert alive <= threads - 1  # the caller is one of them
    if count == "1":
        assert alive == 0


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1000000", "2 3", "٣"])
def test_bad_environment_is_refused(value: str) -> None:
    done = run("import numpy as np, softgrad; softgrad.softmax(np.zeros(3))", SOFTGRAD_NUM_THREADS=value)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError")
    assert "SOFTGRAD_NUM_THREADS" in last
    assert ascii(value)[1:-1] in last or value in last


def test_empty_environment_is_the_default() -> None:
    code = "from softgrad import info; print(info()['n_threads'], len(__import__('os').sched_getaffinity(0)))"
    done = run(code, SOFTGRAD_NUM_THREADS="")
    assert done.returncode == 0, done.stderr
    threads, processors = done.stdout.split()
    assert threads == processors


@pytest.mark.parametrize("name", [*backend.available()])
def test_environment_sets_the_instruction_set(name: str) -> None:
    code = "import softgrad; i = softgrad.info(); print(i['instruction_set'], i['fallback_reason'])"
    done = run(code, SOFTGRAD_INSTRUCTION_SET=name)
    assert done.returncode == 0, done.stderr
    chosen, reason = done.stdout.strip().split(" ", 1)
    assert chosen == name
    assert (reason == "None") == (name != "numpy")


def test_unknown_instruction_set_is_refused() -> None:
    done = run("import softgrad", SOFTGRAD_INSTRUCTION_SET="avx1024")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "SOFTGRAD_INSTRUCTION_SET" in last
    assert "avx1024" in last
    assert "numpy" in last  # what could be chosen
