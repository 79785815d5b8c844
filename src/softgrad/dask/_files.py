"""A cluster by its address, and rows that its workers make themselves, one block for each file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask.array
from dask.delayed import delayed
from dask.distributed import Client, LocalCluster

__all__ = ["connected", "made_rows"]


@contextmanager
def connected(address: str, n_workers: int | None = None) -> Iterator[Any]:
    """A client of the scheduler at ``tcp://…``, or of processes on this machine for ``local``, while the block lasts.

    Parameters
    ----------
    address : str
    n_workers : int, optional
        Of ``local``; as many as there are processors if not given. Each computes with one thread.
    """
    if address == "local":
        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, silence_logs=logging.ERROR) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    with Client(address, timeout=10) as client:
        yield client


def made_rows(makers: Sequence[Callable[[], Any]], counts: Sequence[int], width: int, dtype: Any, meta: Any) -> Any:
    """A Dask array of the blocks that functions make, each where it is needed, and again if it is lost.

    Parameters
    ----------
    makers : sequence of callables
        What they return has ``counts`` rows and ``width`` columns; ``meta`` is an empty block of its kind.
    """
    blocks = [
        dask.array.from_delayed(delayed(make, pure=False)(), (count, width), dtype=dtype, meta=meta)
        for make, count in zip(makers, counts, strict=True)
        if count
    ]
    return dask.array.concatenate(blocks, axis=0)
