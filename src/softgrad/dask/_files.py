"""A cluster by its address, and rows that its workers make themselves, one block for each file."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import dask
import dask.array
from dask.delayed import delayed
from dask.distributed import Client, LocalCluster
from distributed.security import Security

SECONDS = 10.0  # that a scheduler may take to answer
MOST_FRAMES = 1000  # of the message with which a scheduler greets: another protocol's bytes are a far larger number

__all__ = ["connected", "made_rows"]


@contextmanager
def connected(address: str, n_workers: int | None = None) -> Iterator[Any]:
    """Connect to the scheduler at ``tcp://…``, or to processes on this machine for ``local``, while the block lasts.

    The processes of ``local`` listen on the loopback interface alone, take connections with a key that is made for the
    block (TLS), and serve no pages: Dask's own defaults would let every user of the machine run code.

    Parameters
    ----------
    address : str
    n_workers : int, optional
        Of ``local``; as many as there are processors if not given. Each computes with one thread.

    Raises
    ------
    OSError, TimeoutError
        If nothing is at the address, or nothing that answers as a scheduler.
    """
    if address == "local":
        no_pages: dict[str, list[str]] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
        with (
            dask.config.set(no_pages),
            LocalCluster(
                n_workers=n_workers, threads_per_worker=1, silence_logs=logging.ERROR, host="127.0.0.1",
                protocol="tls", security=Security.temporary(), dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            ) as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            yield client
        return
    expect_scheduler(address)
    with Client(address, timeout=SECONDS) as client:
        yield client


def expect_scheduler(address: str) -> None:
    """Raise if nothing at a ``tcp://`` or ``tls://`` address greets as a scheduler does.

    `Client` would wait without end for a host that is silent, and take the bytes of another protocol for a length.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or parts.port is None:
        return
    with socket.create_connection((parts.hostname, parts.port), timeout=SECONDS) as connection:
        try:
            if parts.scheme == "tls":
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # `Client` verifies
                with context.wrap_socket(connection):
                    return
            greeting = connection.recv(8, socket.MSG_WAITALL)
        except TimeoutError:
            raise TimeoutError(f"no answer within {SECONDS:g} s; a Dask scheduler greets at once") from None
        except ssl.SSLError as error:
            raise OSError(f"what answers there does not speak TLS: {error.reason or error}") from None
    if len(greeting) < 8 or int.from_bytes(greeting, "little") > MOST_FRAMES:
        raise OSError(f"what answers there is not a Dask scheduler: it says {greeting!r}")


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
