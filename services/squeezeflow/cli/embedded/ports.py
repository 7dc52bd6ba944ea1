"""Ports that are held for a service before it runs, so that its address is known at once and stays over a restart.

The holder binds with SO_REUSEPORT and never listens: the service binds the same port beside it and gets every
connection, and nobody else is given the port in between.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from squeezeflow.core.config import PORTS
from squeezeflow.core.errors import SqueezeflowError

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Reservation:
    """A held port; `close` gives it up."""

    port: int
    holder: socket.socket

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    def close(self) -> None:
        """Gives the port up; a service that listens on it goes on."""
        self.holder.close()


def port_plan(base: int | None) -> dict[str, int]:
    """Gives each service its port: the known one where base is None, 0 (a free one) where it is 0, else from it on."""
    if base is None:
        return dict(PORTS)
    return {name: base and base + index for index, name in enumerate(PORTS)}


def reserve(ports: Mapping[str, int], names: Sequence[str] | None = None) -> dict[str, Reservation]:
    """Holds a port for every service; all or none.

    Raises:
        SqueezeflowError: INVALID_PARAMETER that names the port that is taken.
    """
    held: dict[str, Reservation] = {}
    try:
        for name in names if names is not None else ports:
            held[name] = _hold(name, ports[name])
    except BaseException:
        for reservation in held.values():
            reservation.close()
        raise
    return held


def _hold(name: str, port: int) -> Reservation:
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if port:
            # Without SO_REUSEPORT this fails on a port that another `up` shares with its own services.
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, port))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((HOST, port))
    except (OSError, OverflowError) as error:
        holder.close()
        raise SqueezeflowError(
            "INVALID_PARAMETER",
            f"port {port} for {name} cannot be had ({getattr(error, 'strerror', None) or error}): give another "
            "--port-base, or 0 for free ports",
        ) from error
    return Reservation(holder.getsockname()[1], holder)
