"""The memory of softmax regression: peaks of dense float32 fits, and fits of an X on disk. See `regression --memory`.

The allowance of a dense fit, beyond X, is 100 MB and two floats for each row and class. An X on disk is written and
read a block at a time and must be fitted, with a quarter of its size in anonymous memory above that of the imports, to
the objective of the fit in memory. (Pages of a mapped file are the system's to drop; they are not counted.)
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import data
import harness
import optimum
from harness import Row
from solvers import METHODS

FEATURES, CLASSES, TOL = 512, 20, 1e-6


def run(options: argparse.Namespace, names: Sequence[str]) -> list[Row]:
    threads = max(int(part) for part in options.threads.split(","))
    common = {"kind": "memory", "threads": threads, "cap": options.cap, "cache": str(options.cache)}
    rows = []
    for name in options.data.split(",") if options.data else names:
        rows += dense(common | {"data": name}, options.rivals)
    return rows + on_disk(common, options)


# --- dense float32 ---------------------------------------------------------------------------------------------------


def dense(order: Row, rivals: str) -> list[Row]:
    print(f"\npeak MB beyond the inputs, {order['data']} in float32")
    rows = []
    for label, method in METHODS["memory"].items():
        if method.dtype != "float32":
            continue
        found = harness.spawn(order | {"mode": "peak", "method": label, "tol": 1e-4, "Cs": [1.0]}, {})[0]
        peak, allowed = found.get("peak_mb"), 100 + 2 * found["n"] * found["K"] * 4 / 1e6
        if method.family == "softgrad" and peak is not None and peak > allowed:
            found["note"] = f"WRONG: {label} on {order['data']} took {peak:.0f} MB of {allowed:.0f}"
        text = "–" if peak is None else f"{peak:.1f}"
        print(f"{label:40} {text:>8} of {allowed:.0f}  {found['note']}".rstrip(), flush=True)
        kept = {key: order[key] for key in ("kind", "data", "threads")} | {"what": "peak of a dense fit"}
        rows.append(kept | {"C": "1", "method": label, "tol": 1e-4, "allowed_mb": allowed} | found)
    return rows


# --- on disk ---------------------------------------------------------------------------------------------------------


def on_disk(order: Row, options: argparse.Namespace) -> list[Row]:
    features = 32 if options.smoke else FEATURES
    rows_wanted = int(options.gigabytes * 1e9 / (4 * features))
    rows: list[Row] = []
    # Not in the system's temporary folder, which may itself be in memory.
    with tempfile.TemporaryDirectory(dir=options.cache) as folder:
        started = time.perf_counter()
        _write(Path(folder), rows_wanted, features)
        print(f"\n{rows_wanted} x {features} on disk, written in {time.perf_counter() - started:.0f} s")
        for form in READERS:
            (found,) = harness.spawn(order | {"mode": "disk", "form": form, "folder": folder}, {})
            found = {"method": "softgrad float32", "what": f"X {form}", "n": rows_wanted, "p": features} | found
            rows.append({key: order[key] for key in ("kind", "threads")} | found | {"K": CLASSES, "C": "1", "tol": TOL})
    size, right = rows_wanted * features * 4 / 1e6, rows[-1]["objective"]
    for row in rows:
        row |= {"gap": row["objective"] / right - 1, "allowed_mb": size / 4, "note": ""}
        if abs(row["gap"]) > 2 * TOL:
            row["note"] = f"WRONG: X {row['what']}: objective {row['objective']!r}, in memory {right!r}"
        # What is fixed, some ten MB, only matters for the small X of a smoke run.
        elif row is not rows[-1] and not options.smoke and row["peak_mb"] > size / 4:
            row["note"] = f"WRONG: {row['what']} took {row['peak_mb']:.0f} MB, more than a quarter of {size:.0f} MB"
        print(
            f"{row['what']:22} {row['wall_s']:8.2f} s  {row['passes']:6.1f} passes  objective to {row['gap']:+.1e}"
            f"  anonymous {row['peak_mb']:7.1f} MB above the imports, {row['peak_mb'] / size:.3f} of X  {row['note']}"
        )
    return rows


def _write(folder: Path, n: int, p: int) -> None:
    """The same numbers as .npy and as Parquet, one column a feature."""
    import pyarrow as pa
    import pyarrow.parquet

    mapped = np.lib.format.open_memmap(folder / "X.npy", mode="w+", dtype=np.float32, shape=(n, p))
    labels = np.lib.format.open_memmap(folder / "y.npy", mode="w+", dtype=np.int64, shape=(n,))
    names = [f"x{column}" for column in range(p)]
    schema = pa.schema([*((name, pa.float32()) for name in names), ("label", pa.int64())])
    start = 0
    with pyarrow.parquet.ParquetWriter(folder / "X.parquet", schema, use_dictionary=False) as writer:
        for X, y in data.probe_blocks(n, p, CLASSES):
            mapped[start : start + len(y)], labels[start : start + len(y)] = X, y
            columns = [pa.array(column) for column in np.ascontiguousarray(X.T)]
            writer.write_table(pa.Table.from_arrays([*columns, pa.array(y)], schema=schema))
            start += len(y)
    mapped.flush()
    labels.flush()


def disk(order: Row) -> None:
    """One fit, with a thread that looks at this process's anonymous memory; the objective comes after it."""
    import pyarrow.dataset  # noqa: F401
    import scipy.optimize  # noqa: F401
    from threadpoolctl import threadpool_limits

    from softgrad.sklearn import SoftmaxRegression

    threadpool_limits(order["threads"])
    folder = Path(order["folder"])
    before = harness.status_kib("RssAnon")
    ended, highest = threading.Event(), [0]

    def look() -> None:
        while not ended.wait(0.002):
            highest[0] = max(highest[0], harness.status_kib("RssAnon") or 0)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    X, y = READERS[order["form"]](folder)
    wall, cpu = time.perf_counter(), time.process_time()
    model = SoftmaxRegression(tol=TOL, n_threads=order["threads"]).fit(X, y)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    ended.set()
    watcher.join()
    peak_mb = float("nan") if before is None else (highest[0] - before) * 1024 / 1e6
    mapped, labels = _mapped(folder)
    value = optimum.objective(mapped, np.asarray(labels), 1.0, model.coef_, model.intercept_)
    found = {"objective": value, "wall_s": wall, "cpu_s": cpu, "passes": model.n_passes_, "peak_mb": peak_mb}
    harness.report(order, found)


def _mapped(folder: Path) -> tuple[Any, Any]:
    return np.load(folder / "X.npy", mmap_mode="r"), np.load(folder / "y.npy")


def _parquet(folder: Path) -> tuple[Any, Any]:
    import pyarrow.dataset

    return pyarrow.dataset.dataset(folder / "X.parquet"), "label"


READERS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "as Parquet": _parquet,
    "as a mapped .npy": _mapped,
    "in memory": lambda folder: (np.load(folder / "X.npy"), np.load(folder / "y.npy")),
}
