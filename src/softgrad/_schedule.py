"""Which thread computes which rows and columns.  No choice made here changes a bit of the result."""

from __future__ import annotations

from typing import Any

import numpy as np

from softgrad import _backend, _fallback
from softgrad._threads import INLINE_ELEMENTS, run_blocks

BLOCK_ELEMENTS = 100_000  # the least that a block of rows should hold
STREAM_BYTES = 8 << 20  # a fresh gradient larger than this leaves the cache before anyone reads it
STREAM_ROW_BYTES = 8 << 10  # shorter rows are still in the L1 cache, and are better written through it
BLOCKS_PER_THREAD = 8  # small enough that a thread which loses its processor does not hold up the others


def streams(grad: Any) -> bool:
    """Whether to write a gradient around the cache."""
    return bool(grad.nbytes > STREAM_BYTES and grad.shape[1] * grad.itemsize >= STREAM_ROW_BYTES)


def row_blocks(rows: int, cols: int, n_threads: int) -> int:
    """Return the number of blocks that rows are cut into."""
    if n_threads == 1 or rows * cols < INLINE_ELEMENTS:
        return 1
    return max(1, min(rows, n_threads * BLOCKS_PER_THREAD, rows * cols // BLOCK_ELEMENTS))


def run_rows(call: Any, rows: int, cols: int, n_threads: int) -> None:
    """``call(lo, hi)`` over blocks of rows."""
    blocks = row_blocks(rows, cols, n_threads)
    if blocks == 1:
        call(0, rows)
    else:
        run_blocks(lambda i: call(rows * i // blocks, rows * (i + 1) // blocks), blocks, n_threads)


def run_head(head: Any, results: Any, rows: int, cols: int, n_threads: int, *, by_products: bool, grad: bool) -> None:
    """Loss, by-products and gradient of the whole batch."""
    panel = _fallback.panel
    if rows >= 2 * n_threads or n_threads == 1 or cols < 2 * panel or _backend.kernels() is _fallback:
        run_rows(lambda lo, hi: head.rows(results, lo, hi), rows, cols, n_threads)
        return
    # A few very wide rows: each panel of columns is summarised by whoever is free, and the summaries merge from left
    # to right, as they do when one thread walks the row.
    panels = -(-cols // panel)
    size = _backend.kernels().statistics_size
    stats = [np.zeros(rows, dtype=f"V{size}") for _ in range(panels)]
    edges = [(i * panel, min((i + 1) * panel, cols)) for i in range(panels)]
    run_blocks(lambda i: head.statistics(0, rows, *edges[i], by_products, stats[i]), panels, n_threads)
    for other in stats[1:]:
        head.merge(stats[0], other)
    head.finish(results, stats[0], 0, rows)
    if grad:
        run_blocks(lambda i: head.gradient(results, stats[0], 0, rows, *edges[i]), panels, n_threads)
