"""softgrad.dask on a cluster of processes: workers die, run out of memory, are interrupted, and nothing changes."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from softgrad.dask import SoftmaxRegression
from softgrad.regression import Progress

MEMORY = 24 << 20  # of a worker, by what Dask counts: its blocks
SETTINGS = {
    # The process itself is larger than that: only what it was given counts.
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.target": 0.6,
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with dask.config.set(SETTINGS):
        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=MEMORY,
            silence_logs="ERROR",
        )  # fmt: skip
        with cluster, Client(cluster) as connected:
            yield connected


def data(n: int, p: int, k: int) -> tuple[Any, Any]:
    """Too large for float64 throughout, so that a fit takes few passes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, p), dtype=np.float32)
    y = (x @ rng.standard_normal((p, k)) + rng.gumbel(size=(n, k))).argmax(axis=1)
    return x, y


X, Y = data(15_000, 30, 5)
OPTIONS: dict[str, Any] = {"C": 1e-3, "tol": 1e-4}


def blocks(rows: int = 3900) -> tuple[Any, Any]:
    return da.from_array(X, chunks=(rows, -1)), da.from_array(Y, chunks=rows)


@pytest.fixture(scope="module")
def expected() -> SoftmaxRegression:
    """The fit in this process, without workers."""
    with dask.config.set(scheduler="synchronous"):
        return SoftmaxRegression(**OPTIONS).fit(*blocks())


def workers(client: Client) -> dict[str, int]:
    return dict(client.run(os.getpid))


def same(model: SoftmaxRegression, expected: SoftmaxRegression) -> None:
    np.testing.assert_array_equal(model.coef_, expected.coef_)
    np.testing.assert_array_equal(model.intercept_, expected.intercept_)
    assert (model.objective_, model.gap_, model.n_passes_) == (expected.objective_, expected.gap_, expected.n_passes_)


def test_the_bits_are_those_of_one_process(client: Client, expected: SoftmaxRegression) -> None:
    """One worker, then two; and the tasks can be told by their names."""
    one = next(iter(workers(client)))
    rows = blocks()
    with dask.annotate(workers=[one]):
        same(SoftmaxRegression(**OPTIONS).fit(*rows), expected)
    same(SoftmaxRegression(**OPTIONS).fit(*blocks()), expected)
    names = set(client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_prefixes)))
    assert {"softgrad-gradient", "softgrad-product", "softgrad-line", "softgrad-block"} <= names


@pytest.mark.parametrize("when", ["between passes", "in a pass"])
def test_a_worker_that_is_killed_changes_nothing(client: Client, expected: SoftmaxRegression, when: str) -> None:
    before = workers(client)
    victim = next(iter(before.values()))

    def kill(progress: Progress) -> None:
        if progress.iteration == 2 and when == "between passes":
            os.kill(victim, signal.SIGKILL)
        elif progress.iteration == 2:
            threading.Timer(0.01, os.kill, (victim, signal.SIGKILL)).start()

    same(SoftmaxRegression(**OPTIONS).fit(*blocks(), callback=kill), expected)
    gc.collect()  # the scheduler, in this process, may hold a graph
    assert not client.futures, "nothing is left among the workers"
    client.wait_for_workers(2, timeout=60)
    assert victim not in workers(client).values()


def test_blocks_that_do_not_fit_in_memory_go_to_disk(client: Client) -> None:
    """48 MB of rows in two workers that keep 14 MB each: the optimum is the same, and they did spill."""
    x, y = data(60_000, 200, 3)
    X, Y = da.from_array(x, chunks=(5000, -1)), da.from_array(y, chunks=5000)
    seen: list[int] = []

    def look(_: Progress) -> None:
        disk = client.run(lambda dask_worker: int(dask_worker.data.spilled_total.disk))
        seen.append(sum(disk.values()))

    model = SoftmaxRegression(C=1e-4, tol=1e-3).fit(X, Y, callback=look)
    assert max(seen) > 5_000_000
    with dask.config.set(scheduler="synchronous"):
        alone = SoftmaxRegression(C=1e-4, tol=1e-3).fit(X, Y)
    same(model, alone)


def test_an_error_on_a_worker_names_the_block_and_the_row(client: Client) -> None:
    wrong = X.copy()
    wrong[4000, 3] = np.nan
    with pytest.raises(ValueError, match=r"block 1, whose first row is row 3900 of X: .*NaN: row 100, column 3"):
        SoftmaxRegression().fit(da.from_array(wrong, chunks=(3900, -1)), blocks()[1])


def test_ctrl_c_leaves_the_model_so_far_and_a_cluster_that_works(client: Client, expected: SoftmaxRegression) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.iteration == 1:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()

    model = SoftmaxRegression(**{**OPTIONS, "tol": 1e-13}, warm_start=True)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*blocks(), callback=interrupt)
    assert model.n_iter_[0] >= 1
    assert model.score(*blocks()) > 0.5
    model.set_params(**OPTIONS).fit(*blocks())
    assert model.objective_ == pytest.approx(expected.objective_, rel=1e-4)
    lazy = model.predict(blocks()[0])
    np.testing.assert_array_equal(lazy.compute(), model.predict(X))
