"""A cluster by its address: who may reach it, and what answers where there is none."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import psutil
import pytest

from softgrad.dask import _files


def test_a_cluster_of_this_machine_is_closed_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sockets are on the loopback interface, and answer only to the key of the run; no page is served."""
    with _files.connected("local", 1) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        me = psutil.Process()
        listening = {
            connection.laddr
            for process in (me, *me.children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert len(listening) >= 3
        for address in listening:
            assert address.ip == "127.0.0.1"
            assert answer_without_a_key(address) in (b"", b"HTTP/1.1 404 Not Found\r\n")
        monkeypatch.setattr(_files, "SECONDS", 0.3)
        with pytest.raises(TimeoutError):  # without TLS it says nothing
            _files.expect_scheduler(client.scheduler.address.replace("tls:", "tcp:"))


def answer_without_a_key(address: tuple[str, int]) -> bytes:
    """First line that a socket sends to a client that has no certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for secure in (True, False):
        try:
            plain = socket.create_connection(address, timeout=5)
            with plain, context.wrap_socket(plain) if secure else plain as connection:
                connection.sendall(b"GET /status HTTP/1.0\r\n\r\n")
                line = connection.makefile("rb").readline()
        except OSError:  # no TLS there, or no certificate here
            continue
        if line:
            return line
    return b""


@pytest.fixture(params=[b"", b"SSH-2.0-OpenSSH_9.2\r\n", None])
def stranger(request: pytest.FixtureRequest) -> Iterator[tuple[str, bytes | None]]:
    """Address of a server that says nothing, speaks another protocol, or hangs up."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if request.param is None:
                    connection.close()
                else:
                    connection.sendall(request.param)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", request.param
    for connection in held:
        connection.close()


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_what_is_no_scheduler(scheme: str, stranger: tuple[str, bytes | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "SECONDS", 0.3)
    address, says = stranger
    expected: type[Exception] = TimeoutError if says == b"" else OSError
    with pytest.raises(expected), _files.connected(f"{scheme}://{address}"):
        pass
