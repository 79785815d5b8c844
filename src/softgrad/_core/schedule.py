"""Blocks of rows and panels of columns, and the threads that compute them.

No choice made here changes a bit of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from softgrad._core import backend, fallback
from softgrad._core.threads import INLINE_ELEMENTS, run_blocks

BLOCK_ELEMENTS = 100_000  # the least that a block of rows should hold
MOST_ELEMENTS = 2_000_000  # the most, where rows can be cut: Ctrl-C waits for the block in progress, milliseconds
STREAM_BYTES = 8 << 20  # a fresh gradient larger than this leaves the cache before anyone reads it
STREAM_ROW_BYTES = 8 << 10  # shorter rows are still in the L1 cache, and are better written through it
BLOCKS_PER_THREAD = 8  # small enough that a thread which loses its processor does not hold up the others


def streams(grad: Any) -> bool:
    """Whether to write a gradient around the cache."""
    return bool(grad.nbytes > STREAM_BYTES and grad.shape[1] * grad.itemsize >= STREAM_ROW_BYTES)


def row_blocks(rows: int, cols: int, n_threads: int) -> int:
    """Return the number of blocks that rows are cut into."""
    elements = rows * cols
    if elements < INLINE_ELEMENTS:
        return 1
    share = 1 if n_threads == 1 else min(n_threads * BLOCKS_PER_THREAD, elements // BLOCK_ELEMENTS)
    return max(1, min(rows, max(share, elements // MOST_ELEMENTS)))


def run_rows(call: Any, rows: int, cols: int, n_threads: int) -> None:
    """``call(lo, hi)`` over blocks of rows."""
    blocks = row_blocks(rows, cols, n_threads)
    if blocks == 1:
        call(0, rows)
    else:
        run_blocks(lambda i: call(rows * i // blocks, rows * (i + 1) // blocks), blocks, n_threads)


def run_head(head: Any, outputs: Any, rows: int, cols: int, n_threads: int, *, by_products: bool, grad: bool) -> None:
    """Compute loss, by-products and gradient of the whole batch."""
    if not _splits_columns(rows, cols, n_threads) or backend.kernels() is fallback:
        run_rows(lambda lo, hi: head.rows(outputs, lo, hi), rows, cols, n_threads)
        return
    stats = run_statistics(head, outputs, rows, cols, n_threads, by_products=by_products)
    if grad:
        run_gradient(head, outputs, stats, rows, cols, n_threads)


def statistics_dtype() -> np.dtype[Any]:
    """Return the type of the kernels' row statistics."""
    dtype: np.dtype[Any] = np.dtype(backend.kernels().statistics_fields())
    return dtype


def run_statistics(head: Any, outputs: Any, rows: int, cols: int, n_threads: int, *, by_products: bool = False) -> Any:
    """Compute loss and by-products of the whole batch; return the statistics, from which `run_gradient` continues."""
    stats = np.zeros(rows, statistics_dtype())
    if not _splits_columns(rows, cols, n_threads):

        def work(lo: int, hi: int) -> None:
            head.statistics(lo, hi, 0, cols, by_products, stats[lo:hi])
            head.finish(outputs, stats[lo:hi], lo, hi)

        run_rows(work, rows, cols, n_threads)
        return stats
    # Each panel of columns is summarised by whoever is free, and the summaries merge from left to right, as they do
    # when one thread walks the row.
    edges = _panels(cols)
    parts = [stats, *(np.zeros_like(stats) for _ in edges[1:])]
    run_blocks(lambda i: head.statistics(0, rows, *edges[i], by_products, parts[i]), len(edges), n_threads)
    for part in parts[1:]:
        head.merge(stats, part)
    head.finish(outputs, stats, 0, rows)
    return stats


def run_gradient(head: Any, outputs: Any, stats: Any, rows: int, cols: int, n_threads: int) -> None:
    """Compute the gradient of the whole batch, and the sums over it, from its statistics."""
    if outputs.sums or not _splits_columns(rows, cols, n_threads):  # sums over panels would overwrite each other
        run_rows(lambda lo, hi: head.gradient(outputs, stats[lo:hi], lo, hi, 0, cols), rows, cols, n_threads)
        return
    edges = _panels(cols)
    run_blocks(lambda i: head.gradient(outputs, stats, 0, rows, *edges[i]), len(edges), n_threads)


def run_distribution(head: Any, storage: Any, logarithm: bool, out: Any, rows: int, cols: int, n_threads: int) -> None:
    """Compute the softmax or log-softmax of the whole batch."""
    if not _splits_columns(rows, cols, n_threads) or backend.kernels() is fallback:
        run_rows(lambda lo, hi: head.distribution(logarithm, out, lo, hi), rows, cols, n_threads)
        return
    stats = run_statistics(head, backend.kernels().Outputs(rows, cols, storage), rows, cols, n_threads)
    edges = _panels(cols)
    run_blocks(lambda i: head.distribution(logarithm, out, 0, rows, stats, *edges[i]), len(edges), n_threads)


def _splits_columns(rows: int, cols: int, n_threads: int) -> bool:
    """Whether columns are cut into panels, because there are too few rows for the threads or a row is too long."""
    few = rows < 2 * n_threads and n_threads > 1 and cols >= 2 * backend.kernels().panel
    return few or cols > MOST_ELEMENTS


def _panels(cols: int) -> list[tuple[int, int]]:
    panel = backend.kernels().panel
    return [(c, min(c + panel, cols)) for c in range(0, cols, panel)]
