"""Softmax regression on Dask: what a pass costs as workers, rows and classes grow.

A pass is one Hessian product over all blocks, the unit that a fit is made of. Worker processes have one thread each.

* strong: the same rows for 1, 2 and 4 workers; weak: as many rows again for each worker;
* classes: as many rows, and more classes;
* wall and CPU time of a pass, the latter of the workers and of the client with the scheduler, beside each other: with
  more workers than processors only the CPU time says anything;
* bytes that the workers gave to each other and to the client, by Dask's own counter (what the client sends goes through
  the scheduler and is not in it);
* memory of a worker: resident after the passes less resident before the data came, beside what its blocks say they
  hold.

``python benchmarks/scale.py --csv scale.csv``; ``--smoke`` is a tiny run of it.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
from distributed import Client, LocalCluster

from softgrad.dask import SoftmaxRegression
from softgrad.dask._collections import parts_of
from softgrad.dask._graph import let_go
from softgrad.dask._read import read_blocks

Row = dict[str, Any]
BLOCK_ROWS = 10_000
PACKAGES = ("softgrad", "numpy", "dask", "distributed")


def made(lo: int, features: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """One block, the same whoever makes it."""
    weight = np.random.default_rng(0).standard_normal((features, classes), dtype=np.float32) / np.sqrt(features)
    rng = np.random.default_rng([1, lo])
    x = rng.standard_normal((BLOCK_ROWS, features), dtype=np.float32)
    return x, (2 * x @ weight + rng.gumbel(size=(BLOCK_ROWS, classes))).argmax(axis=1)


def collections(blocks: int, features: int, classes: int) -> tuple[Any, Any]:
    """X and y, made where they are needed."""
    parts = [dask.delayed(made, nout=2)(lo, features, classes) for lo in range(blocks)]
    x = [da.from_delayed(part[0], (BLOCK_ROWS, features), dtype=np.float32) for part in parts]
    y = [da.from_delayed(part[1], (BLOCK_ROWS,), dtype=np.int64) for part in parts]
    return da.concatenate(x), da.concatenate(y)


def counted(client: Client) -> tuple[float, float, int]:
    """CPU seconds of the workers and of this process, and bytes between workers and from them."""

    def of_worker(dask_worker: Any) -> tuple[float, int]:
        # What a worker gives includes what others take: both ends of a message would count it twice.
        return time.process_time(), int(dask_worker.transfer_outgoing_bytes_total)

    found = client.run(of_worker).values()
    return sum(cpu for cpu, _ in found), time.process_time(), sum(moved for _, moved in found)


def resident(client: Client) -> dict[str, int]:
    return dict(client.run(lambda: psutil.Process().memory_info().rss))


def held(client: Client) -> dict[str, int]:
    def of_worker(dask_worker: Any) -> int:
        return sum(sys.getsizeof(v) for k, v in dask_worker.data.items() if "softgrad-block" in str(k))

    return dict(client.run(of_worker))


def measure(client: Client, kind: str, workers: int, blocks: int, features: int, classes: int, passes: int) -> Row:
    """One row of the table."""
    x, y = collections(blocks, features, classes)
    client.run(made, 0, 8, 2)  # imports are no memory of the data
    client.run(lambda: __import__("softgrad.dask"))
    before = resident(client)
    read = read_blocks(SoftmaxRegression(max_memory=1 << 40), parts_of(x, y), None, None)
    problem = read.problem
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((classes, features)) / 10
    step = rng.standard_normal((classes, features)).astype(np.float32)
    problem.gradient(weight, np.zeros(classes))
    problem.product(step, np.zeros(classes))
    start, wall = counted(client), time.perf_counter()
    for _ in range(passes):
        problem.product(step, np.zeros(classes))
    wall, end = time.perf_counter() - wall, counted(client)
    holds, now = held(client), resident(client)
    most = max(holds, key=holds.__getitem__)
    grown, own = now[most] - before[most], holds[most]
    let_go(read.kept)
    problem.release()
    row: Row = {"fit_s": "", "fit_passes": "", "objective": ""}
    if kind != "classes":
        wall_fit = time.perf_counter()
        model = SoftmaxRegression(C=10 / (blocks * BLOCK_ROWS), tol=1e-4).fit(x, y)
        row = {"fit_s": round(time.perf_counter() - wall_fit, 2), "fit_passes": model.n_passes_}
        row["objective"] = repr(model.objective_)
    worker, here, moved = ((b - a) / passes for a, b in zip(start, end, strict=True))
    return {
        "kind": kind, "workers": workers, "rows": blocks * BLOCK_ROWS, "features": features, "classes": classes,
        "blocks": blocks, "passes": passes, "wall_ms": round(1e3 * wall / passes, 2),
        "worker_cpu_ms": round(1e3 * worker, 2), "client_cpu_ms": round(1e3 * here, 2), "moved_bytes": round(moved),
        "worker_mb": round(grown / 2**20, 1), "blocks_mb": round(own / 2**20, 1), **row,
        "load": harness.load_average(),
    }  # fmt: skip


def cases(smoke: bool) -> list[tuple[str, int, int, int, int, int]]:
    """Kind, workers, blocks, features, classes, passes."""
    if smoke:
        wide = [("classes", 2, 2, 16, classes, 2) for classes in (40, 300)]
        return [("strong", 1, 2, 16, 4, 2), ("weak", 1, 1, 16, 4, 2), ("strong", 2, 2, 16, 4, 2), *wide]
    strong = [("strong", workers, 16, 128, 64, 20) for workers in (1, 2, 4)]
    weak = [("weak", workers, 8 * workers, 128, 64, 20) for workers in (1, 2, 4)]
    return strong + weak + [("classes", 2, 4, 128, classes, 10) for classes in (8, 64, 512)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--smoke", action="store_true", help="a tiny run")
    options = parser.parse_args()
    rows: list[Row] = []
    wanted = cases(options.smoke)
    # A process that has had other data keeps some of their memory: a cluster of its own for each case that counts.
    groups = [[case for case in wanted if case[1] == w] for w in (1, 2)] if options.smoke else [[c] for c in wanted]
    for group in groups:
        local = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": 0, "silence_logs": "ERROR"}
        with LocalCluster(n_workers=group[0][1], **local) as cluster, Client(cluster) as client:
            for case in group:
                rows.append(measure(client, *case))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items() if key != "objective"), flush=True)
                if options.csv:  # what there is so far outlives an interruption
                    harness.write(options.csv, rows, harness.machine(PACKAGES))
    strong = {row["objective"] for row in rows if row["kind"] == "strong"}
    if len(strong) > 1:
        raise SystemExit(f"the number of workers changed the objective: {sorted(strong)}")


if __name__ == "__main__":
    main()
