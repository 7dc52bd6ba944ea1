"""Servers that do not behave: real sockets that are silent, slow, or speak something else than S3."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.servers.processes import free_ports

Behaviour = Callable[[socket.socket, threading.Event], None]


@contextmanager
def listening(behave: Behaviour) -> Iterator[str]:
    """Runs `behave(connection, ended)` in a thread for every connection, and gives HOST:PORT."""
    ended = threading.Event()
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def accept() -> None:
            while not ended.is_set():
                with suppress(TimeoutError):
                    connection, _ = server.accept()
                    threads.append(threading.Thread(target=serve, args=(connection,)))
                    threads[-1].start()

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                behave(connection, ended)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            ended.set()
            acceptor.join()
            for thread in threads:
                thread.join()


def silent(_: socket.socket, ended: threading.Event) -> None:
    """Takes the connection and never says a word."""
    ended.wait()


def dripping(connection: socket.socket, ended: threading.Event) -> None:
    """Sends a byte of an endless header now and then."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Endless: ")
    while not ended.wait(0.1):
        connection.sendall(b"x")


def answering(answer: bytes) -> Behaviour:
    """Gives the same answer to whatever is asked, then hangs up."""

    def behave(connection: socket.socket, _: threading.Event) -> None:
        connection.settimeout(5)
        if connection.recv(1 << 20):
            connection.sendall(answer)

    return behave


def nobody() -> str:
    """Gives HOST:PORT where nothing listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"
