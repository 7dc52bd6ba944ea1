"""HTTP connections that keep a deadline.

A socket's timeout bounds one wait, not an operation: a server that sends a byte now and then can hold a call for
hours, and one that takes a large body slowly but steadily is cut off. Here every wait of an operation ends at the
operation's deadline, and a transfer goes on as long as bytes move.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_CONNECT_SECONDS = 3.0
_STALL_SECONDS = 30.0  # longest wait without a byte that moves
_SEND_BYTES = 1 << 18
_RETRIES = 2
_POOL_CONNECTIONS = 16

_operation = threading.local()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Ends every wait of this thread's connections that is still going on after `seconds`, by TimeoutError."""
    before: float | None = getattr(_operation, "ends", None)
    _operation.ends = time.monotonic() + seconds
    try:
        yield
    finally:
        _operation.ends = before


def restart_deadline(seconds: float) -> None:
    """Gives the operation that this thread is in `seconds` from now: for the next part of a long one."""
    _operation.ends = time.monotonic() + seconds


def _patience() -> float:
    """Gives how long the next wait may take."""
    ends: float | None = getattr(_operation, "ends", None)
    if ends is None:
        return _STALL_SECONDS
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline of the operation has passed")
    return min(left, _STALL_SECONDS)


class _TimedSocket:
    """A socket, plain or TLS, whose reads and writes each wait as long as the operation may."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: Any) -> None:
        rest = memoryview(data).cast("B")
        while rest:
            self._socket.settimeout(_patience())
            rest = rest[self._socket.send(rest[:_SEND_BYTES]) :]

    def makefile(self, *_: Any) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._socket))


class _TimedReader(io.RawIOBase):
    def __init__(self, connected: socket.socket) -> None:
        super().__init__()
        self._socket = connected
        self._raw = connected.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_patience())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Connection(HTTPConnection):
    def connect(self) -> None:
        self.timeout = min(_CONNECT_SECONDS, _patience())
        super().connect()
        self.sock = cast(socket.socket, _TimedSocket(self.sock))


class _TlsConnection(HTTPSConnection):
    def connect(self) -> None:
        self.timeout = min(_CONNECT_SECONDS, _patience())
        super().connect()
        self.sock = cast(socket.socket, _TimedSocket(self.sock))


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def connection_pool() -> urllib3.PoolManager:
    """Makes a pool of connections that keep `deadline`; it retries what failed on the way, not what was refused."""
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_STALL_SECONDS),
        maxsize=_POOL_CONNECTIONS,
        retries=urllib3.Retry(total=_RETRIES, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
    )
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool
