"""The native pool and the BLAS limit under interrupts, forks, hard limits, and at the end of the interpreter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

import numpy as np
import pytest

import softgrad
from softgrad._core import backend, threads
from softgrad._core.blas import single_threaded_blas

needs_native = pytest.mark.skipif(backend.native() is None, reason="without the native module nothing is parallel")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")

PRELUDE = """
import os, signal, sys, threading, time, warnings
import numpy as np
import softgrad
from softgrad._core import threads
from softgrad._core.blas import single_threaded_blas
from threadpoolctl import ThreadpoolController

warnings.filterwarnings("ignore", category=DeprecationWarning)  # Python 3.12 on fork with threads: the point here
libraries = ThreadpoolController().select(user_api="blas").lib_controllers
def limits(): return [library.get_num_threads() for library in libraries]
def workers():
    count = 0
    for task in os.listdir("/proc/self/task"):
        try: count += open(f"/proc/self/task/{task}/comm").read() == "softgrad\\n"
        except OSError: pass  # it has ended
    return count

random = np.random.default_rng(0)
o, y = random.normal(size=(400, 1000)).astype(np.float32), np.arange(400)
x, w = random.normal(size=(300, 16)).astype(np.float32), random.normal(size=(900, 16)).astype(np.float32)
def loss(n_threads): return softgrad.cross_entropy(o, y, n_threads=n_threads)
def linear(n_threads): return softgrad.linear_cross_entropy_with_grad(x, w, y[:300], n_threads=n_threads)[0]
expected, expected_linear = loss(1), linear(1)
"""


def run(code: str, *options: str, timeout: float = 60, **environment: str) -> str:
    """Output of a child process that ends in time, without an error, and says nothing on standard error."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("SOFTGRAD_")}
    done = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + code],
        env={**keep, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    assert done.stderr == ""
    return done.stdout


def blas_limits() -> list[int]:
    from threadpoolctl import ThreadpoolController

    return [library.get_num_threads() for library in ThreadpoolController().select(user_api="blas").lib_controllers]


# --- blocks ----------------------------------------------------------------------------------------------------------


@needs_native
def test_workers_keep_their_thread_local_data() -> None:
    """A limit that a worker sets for its own thread must not be set again for every job."""
    code = """
data, meet, fresh = threading.local(), threading.Barrier(2), []
def work(i):
    meet.wait(30)
    if not hasattr(data, "seen"): fresh.append(threading.get_ident())
    data.seen = True
for _ in range(20): threads.run_blocks(work, 2, 2)
print(len(fresh), len(set(fresh)))
"""
    assert run(code).split() == ["2", "2"]


@needs_native
def test_few_blocks_begin_after_a_failure() -> None:
    begun: list[int] = []

    def work(i: int) -> None:
        begun.append(i)
        if i == 10:
            raise ValueError(i)
        time.sleep(0.001)

    with pytest.raises(ValueError, match="10"):
        threads.run_blocks(work, 10_000, 3)
    ended = len(begun)
    assert ended < 1000
    time.sleep(0.02)
    assert len(begun) == ended  # nothing begins after the call


@needs_native
def test_an_interrupt_is_not_lost_behind_an_earlier_failure() -> None:
    failed, meet = threading.Event(), threading.Barrier(2)
    main = threading.get_ident()

    def work(_: int) -> None:
        meet.wait(30)
        if threading.get_ident() != main:
            failed.set()
            raise ValueError("first")
        failed.wait(30)
        time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run_blocks(work, 2, 2)


@needs_native
def test_a_call_without_free_workers_is_computed_by_its_caller() -> None:
    """One worker is held by another caller; a second caller must not wait for it."""
    held, release = threading.Barrier(3), threading.Event()

    def hold(_: int) -> None:
        held.wait(30)
        release.wait(30)

    code_ran: list[int] = []
    other = threading.Thread(target=threads.run_blocks, args=(hold, 2, 2))
    other.start()
    try:
        held.wait(30)
        threads.run_blocks(code_ran.append, 40, 2)
        assert sorted(code_ran) == list(range(40))
    finally:
        release.set()
        other.join(30)
    assert not other.is_alive()


@pytest.mark.parametrize("work", [None, 3, "work"])
@needs_native
def test_work_that_cannot_be_called_is_an_error(work: Any) -> None:
    for n_threads in (1, 3):
        with pytest.raises(TypeError):
            threads.run_blocks(work, 5, n_threads)


@needs_native
def test_numbers_of_any_size() -> None:
    done: list[int] = []
    for count, n_threads in ((-5, 4), (0, 0), (3, -7), (3, 2**62)):
        done.clear()
        threads.run_blocks(done.append, count, n_threads)
        assert sorted(done) == list(range(max(count, 0)))


@needs_native
@needs_proc
def test_no_more_workers_than_the_largest_call_asks_for() -> None:
    code = """
assert workers() == 0
for _ in range(20):
    assert loss(1) == expected
assert workers() == 0
def calls():
    for _ in range(30):
        assert loss(3) == expected and linear(3) == expected_linear
callers = [threading.Thread(target=calls) for _ in range(8)]
for caller in callers: caller.start()
for caller in callers: caller.join()
print(workers())
assert linear(5) == expected_linear
print(workers(), threading.active_count())
"""
    first, second, listed = map(int, run(code).split())
    assert 1 <= first <= 2
    assert first <= second <= 4
    assert listed == 1


@needs_native
def test_memory_tracing_asks_for_the_interpreter_in_a_new_worker() -> None:
    """Under tracemalloc every allocation of Python's takes the interpreter's lock, also a new thread's first."""
    assert run("print(all(loss(k) == expected for k in range(2, 30)))", "-X", "tracemalloc=1").strip() == "True"


# --- interrupts ------------------------------------------------------------------------------------------------------


@needs_native
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that signals")
def test_interrupts_leave_nothing_behind() -> None:
    """Many interrupts at random points: no lock stays held, no thread goes on writing, the BLAS's limit is lifted."""
    code = """
before, written = limits(), np.empty_like(o)
signal.signal(signal.SIGALRM, signal.default_int_handler)
inside = late = limited = 0
for k in range(600):
    calling = True
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
        for _ in range(1000):
            if k % 2: softgrad.cross_entropy_with_grad(o, y, n_threads=4, out=written)
            else: linear(3)
        calling = False
    except KeyboardInterrupt:
        limited += limits() != before
        written[...] = 9.0
        time.sleep(0.002)  # long enough for a thread that goes on
        late += not (written == 9.0).all()
        inside += calling
signal.setitimer(signal.ITIMER_REAL, 0)
print(inside, late, limited, loss(4) == expected, linear(4) == expected_linear)
"""
    interrupted, late, limited, *same = run(code, timeout=180).split()
    assert int(interrupted) == 600
    assert (late, limited) == ("0", "0")
    assert same == ["True", "True"]


@needs_native
@needs_fork
def test_an_interrupt_waits_for_running_blocks_and_begins_no_other() -> None:
    """The main thread waits for a worker that is inside a block, or is inside one itself."""
    code = """
for by_worker in (True, False):
    meet, begun, ended = threading.Barrier(2), [], []
    def work(i):
        begun.append(i)
        if i > 1: return
        meet.wait(30)
        in_main = threading.current_thread() is threading.main_thread()
        if in_main == by_worker: return time.sleep(0 if by_worker else 0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        ended.append(i)
    try: threads.run_blocks(work, 2 if by_worker else 1000, 2)
    except KeyboardInterrupt: print(len(begun), len(ended))
"""
    waiting, computing = run(code).splitlines()
    assert waiting == "2 1"  # the worker ended its block
    assert computing == "2 0"  # the main thread's was cut short, and none followed


@needs_native
@needs_fork
def test_signal_handlers_run_while_the_main_thread_waits() -> None:
    code = """
meet, order = threading.Barrier(2), []
signal.signal(signal.SIGUSR1, lambda *_: order.append("handled"))
def work(i):
    meet.wait(30)
    if threading.current_thread() is threading.main_thread(): return
    time.sleep(0.1)  # the main thread waits by now
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.5)
    order.append("ended")
threads.run_blocks(work, 2, 2)
print(*order)
"""
    assert run(code).split() == ["handled", "ended"]


@needs_native
@needs_fork
def test_blocks_in_c_are_interrupted_too() -> None:
    """No Python instruction of a block would see the interrupt."""
    code = """
for n_threads in (1, 3):
    done = []
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try: threads.run_blocks(done.append, 1 << 40, n_threads)
    except KeyboardInterrupt: print("interrupted")
"""
    assert run(code).split() == ["interrupted"] * 2


@needs_native
def test_an_interrupt_at_any_instruction_lifts_the_limit() -> None:
    """KeyboardInterrupt raised before one instruction of a linear head after the other."""
    random = np.random.default_rng(0)
    x, w, y = random.normal(size=(4, 3)), random.normal(size=(5, 3)), np.arange(4)

    def call() -> Any:
        return softgrad.linear_cross_entropy_with_grad(x, w, y, n_threads=2, max_memory=400)

    expected, before = call(), blas_limits()
    points = 0
    while True:
        left = 7 * points + 1  # every seventh, to save time

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if "softgrad" not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        outer = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # Python 3.12 looks at it when tracing begins
        sys.settrace(trace)
        try:
            call()
            where = None
        except KeyboardInterrupt as interrupt:
            where = traceback.extract_tb(interrupt.__traceback__)
            after = blas_limits()  # while the traceback keeps the frames
        finally:
            sys.settrace(outer)
        if where is None:
            break
        assert after == before, where
        points += 1
    assert points > 100
    loss, grads = call()
    assert loss == expected[0]
    assert grads.weight.tobytes() == expected[1].weight.tobytes()


@needs_native
def test_a_limit_that_is_never_left_ends_with_its_object() -> None:
    before = blas_limits()
    limit = single_threaded_blas()
    assert blas_limits() == before
    limit.__enter__()
    assert set(blas_limits()) == {1}
    del limit
    assert blas_limits() == before


def test_only_a_known_library_is_limited() -> None:
    native = backend.native()
    if native is None:
        with single_threaded_blas():
            return
    import ctypes.util

    for path in ("", "/nonexistent.so", ctypes.util.find_library("c") or "", native.__file__, "\0", "x" * 10_000):
        assert native.add_blas_library(path) is False
    with pytest.raises(TypeError):
        native.add_blas_library(1)


# --- the end of the interpreter --------------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize("early", [True, False], ids=["workers exist", "no worker yet"])
def test_calls_at_exit_and_from_late_threads(early: bool) -> None:
    code = f"""
import atexit
if {early}: assert loss(4) == expected
def at_exit(): print("at exit", loss(4) == expected, linear(4) == expected_linear, flush=True)
atexit.register(at_exit)
def late():
    while threading.main_thread().is_alive(): time.sleep(0.01)
    print("late", loss(4) == expected, linear(4) == expected_linear, flush=True)
threading.Thread(target=late).start()
class Last:
    def __del__(self):
        done = []
        self.run_blocks(done.append, 10, 4)
        print("last", len(done) == 10, self.finalizing(), flush=True)
last = Last()
last.run_blocks, last.finalizing, last.itself = threads.run_blocks, sys.is_finalizing, last
"""
    assert run(code).splitlines() == ["late True True", "at exit True True", "last True True"]


@needs_native
@pytest.mark.parametrize("n_threads", [1, 4])
def test_daemon_threads_inside_calls_at_exit(n_threads: int) -> None:
    code = f"""
def busy(call):
    while True: call({n_threads})
for call in (loss, linear, loss): threading.Thread(target=busy, args=(call,), daemon=True).start()
time.sleep(0.2)
"""
    for _ in range(4):
        assert run(code) == ""


# --- forks -----------------------------------------------------------------------------------------------------------


@needs_native
@needs_fork
def test_children_forked_from_a_thread_while_others_compute() -> None:
    """Every child computes, or says at once that it cannot: OpenBLAS may have been forked with a lock held."""
    code = """
stop = False
def busy(call):
    while not stop: call(3)
others = [threading.Thread(target=busy, args=(call,)) for call in (loss, linear, linear)]
for t in others: t.start()
codes = []
def fork():
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            try:
                right = loss(4) == expected and linear(4) == expected_linear and loss(3) == expected
            except RuntimeError as error:
                os._exit(4 if "forked while another thread was inside a matrix product" in str(error) else 5)
            os._exit(0 if right else 6)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
forker = threading.Thread(target=fork)
forker.start()
forker.join()
stop = True
for t in others: t.join()
assert loss(4) == expected and linear(4) == expected_linear
print(sorted(set(codes)), codes.count(0))
"""
    found, right = run(code, timeout=120).rsplit(maxsplit=1)
    assert found in ("[0]", "[0, 4]")
    assert int(right) > 30


@needs_native
@needs_fork
def test_a_child_whose_blas_hangs_says_so() -> None:
    code = """
from softgrad._core import blas
pid = os.fork()
if pid == 0:
    blas.PATIENCE = 0.2
    blas._multiply = lambda done: time.sleep(60)  # as OpenBLAS does where its lock is held by nobody who lives
    for _ in range(2):
        try: linear(2)
        except RuntimeError as error: print(error, flush=True)
    print(workers() <= 1, loss(2) == expected, flush=True)  # what multiplies nothing still works
    os._exit(0)
os.waitpid(pid, 0)
"""
    lines = run(code).splitlines()
    assert len(lines) == 3
    assert lines[0] == lines[1]
    assert re.search("forked while .* inside a matrix product.*'spawn'", lines[0])
    assert lines[2] == "True True"


@needs_native
@needs_fork
def test_a_child_of_a_limited_parent_is_limited_no_longer() -> None:
    """The users of the limit in other threads are not in the child; those of the forking thread are."""
    code = """
before = limits()
entered, leave = threading.Event(), threading.Event()
def other():
    with single_threaded_blas():
        entered.set()
        leave.wait(30)
thread = threading.Thread(target=other)
thread.start()
entered.wait(30)
def child(inside):
    pid = os.fork()
    if pid == 0:
        if inside: assert set(limits()) == {1}
        with single_threaded_blas(): assert set(limits()) == {1}
        if inside: assert set(limits()) == {1}
        else: assert limits() == before, (limits(), before)
        return True
    assert os.waitpid(pid, 0)[1] == 0
    return False
if child(False): os._exit(0)
mine = False
with single_threaded_blas():
    mine = child(True)
if mine:
    assert limits() == before, (limits(), before)
    os._exit(0)
leave.set()
thread.join()
assert limits() == before
print("right")
"""
    assert run(code, OPENBLAS_NUM_THREADS="2").strip() == "right"


@needs_native
@needs_fork
def test_a_call_that_is_forked_in_the_middle() -> None:
    """The child of a fork inside a block cannot finish the call, whose other threads it lacks, and can make others."""
    code = """
main, meet, children = threading.get_ident(), threading.Barrier(2), []
def work(i):
    meet.wait(30)
    if threading.get_ident() == main: children.append(os.fork())
    time.sleep(0.05)
try:
    threads.run_blocks(work, 2, 2)
    mine = "computed"
except RuntimeError as error:
    mine = str(error)
right = loss(4) == expected
if children[0] == 0:
    os._exit(0 if "forked inside a block" in mine and right and linear(4) == expected_linear else 1)
print(mine, right, os.waitpid(children[0], 0)[1])
"""
    assert run(code).strip() == "computed True 0"


@needs_fork
def test_a_fork_safe_lock_is_free_in_a_child() -> None:
    lock = threads.fork_safe_lock()
    with lock:
        pid = os.fork()
        if pid == 0:
            free = lock.acquire(timeout=1)
            os._exit(0 if free else 1)
        assert lock.locked()
    assert os.waitpid(pid, 0)[1] == 0


# --- hard limits -----------------------------------------------------------------------------------------------------

LIMITED = """
import resource
def tries():
    right = 0
    for _ in range(10):
        done = []
        threads.run_blocks(done.append, 100, 40)
        right += sorted(done) == list(range(100)) and loss(8) == expected
    return right
"""


@needs_native
@needs_proc
@pytest.mark.parametrize("spare", [1, 12, 30, 60, 100])  # MB: a thread's stack is 8, and a new worker wants 16 more
def test_few_threads_where_memory_is_limited(spare: int) -> None:
    code = f"""
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
resource.setrlimit(resource.RLIMIT_AS, (used + ({spare} << 20),) * 2)
print(tries(), workers())
"""
    right, workers = map(int, run(LIMITED + code).split())
    assert right == 10
    assert workers <= spare // 8
    if spare == 1:
        assert workers == 0


@needs_native
@needs_proc
def test_few_threads_where_their_number_is_limited() -> None:
    code = """
if os.geteuid() == 0: os.setresuid(65534, 65534, 65534)  # root has no such limit
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print("no thread", tries(), workers(), linear(8) == expected_linear)
"""
    assert run(LIMITED + code).strip() == "no thread 10 0 True"


# --- without the native module ---------------------------------------------------------------------------------------


def test_without_the_native_module_the_caller_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_native", None)
    callers: list[int] = []
    threads.run_blocks(lambda _: callers.append(threading.get_ident()), 20, 4)
    assert callers == [threading.get_ident()] * 20
    before = blas_limits()
    with single_threaded_blas():
        assert blas_limits() == before
    with pytest.raises(ZeroDivisionError):
        threads.run_blocks(lambda i: 1 // (3 - i), 20, 4)
