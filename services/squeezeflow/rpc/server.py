"""One gRPC server for every service: interceptor, health, reflection, message limits, orderly end.

A service is SERVING once its engine is up, NOT_SERVING as soon as it is told to stop; calls that run may end within the
shutdown time, then they are cut off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from squeezeflow.core.config import ServiceConfig
from squeezeflow.core.errors import SqueezeflowError
from squeezeflow.rpc.channels import METADATA_LIMIT
from squeezeflow.rpc.interceptor import ServerInterceptor

log = logging.getLogger(__name__)

# Requests carry digests and parameters, uploads come in chunks of 1 MiB: 16 MiB is far above what is meant.
RECEIVE_LIMIT = 16 << 20
SEND_LIMIT = 64 << 20
# The health name of the process itself, SERVING from the first moment: what a liveness probe asks for, so that a
# service whose engine is still starting is not killed for it.
LIVE = "live"


@dataclass(frozen=True)
class Mount:
    """A servicer and how it is put on a server.

    Attributes:
        name: full gRPC name, `squeezeflow.v1.Converter`.
        add: the generated `add_…Servicer_to_server`.
    """

    name: str
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: Any


class Server:
    """A running server; an async context manager that binds on entry and stops on exit."""

    def __init__(
        self,
        config: ServiceConfig,
        mounts: Sequence[Mount],
        *,
        foreign: Collection[str] = (),
        receive_limit: int = RECEIVE_LIMIT,
    ) -> None:
        self._config = config
        self._mounts = mounts
        self._options = (
            ("grpc.max_receive_message_length", receive_limit),
            ("grpc.max_send_message_length", SEND_LIMIT),
            ("grpc.max_metadata_size", METADATA_LIMIT),
            ("grpc.absolute_max_metadata_size", METADATA_LIMIT),
            ("grpc.so_reuseport", int(config.reuse_port)),
            # Clients reconnect now and then, and so see new replicas; streams that run are left to end.
            ("grpc.max_connection_age_ms", 10 * 60_000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        )
        self._foreign = foreign
        self._health = health.aio.HealthServicer()
        self.address = ""

    async def __aenter__(self) -> Server:
        self._server = grpc.aio.server(interceptors=[ServerInterceptor(self._foreign)], options=self._options)
        for mount in self._mounts:
            mount.add(mount.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [mount.name for mount in self._mounts]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self.address = self._bind()
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        await self.set_serving(False)
        await self._server.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.set_serving(False)
        await self._server.stop(self._config.shutdown_seconds)

    async def set_serving(self, serving: bool) -> None:
        """Tells health checkers whether calls are welcome."""
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ["", *(mount.name for mount in self._mounts)]:
            await self._health.set(name, state)

    def _bind(self) -> str:
        host, _, _ = self._config.listen.rpartition(":")
        try:
            port = self._server.add_insecure_port(self._config.listen)
        except RuntimeError as error:
            raise SqueezeflowError(
                "INVALID_PARAMETER",
                f"cannot listen on {self._config.listen}: is it taken by another process? ({error})",
            ) from error
        return f"{host}:{port}"


async def serve(
    config: ServiceConfig,
    mounts: Sequence[Mount],
    *,
    foreign: Collection[str] = (),
    receive_limit: int = RECEIVE_LIMIT,
    bound: Callable[[str], None] | None = None,
    ready: Awaitable[None] | None = None,
    close: Sequence[Callable[[], Awaitable[None]]] = (),
) -> None:
    """Serves until SIGTERM, SIGINT or, where configured, the end of standard input.

    Args:
        bound: told the address that was bound, before the first call.
        ready: awaited after binding; the service is SERVING once it is done, and ends when it fails.
        close: awaited in order when the service stops: before the last calls are cut off.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if config.stop_on_stdin_eof:
        _watch_stdin(loop, stop)
    async with Server(config, mounts, foreign=foreign, receive_limit=receive_limit) as server:
        log.info("%s listens on %s (pid %d)", config.service, server.address, os.getpid())
        if bound is not None:
            bound(server.address)
        try:
            await _serve_until(stop, server, ready)
        finally:
            log.info("%s stops", config.service)
            for action in close:
                await action()
    log.info("%s has stopped", config.service)


async def _serve_until(stop: asyncio.Event, server: Server, ready: Awaitable[None] | None) -> None:
    async def become_ready() -> None:
        if ready is not None:
            await ready
        await server.set_serving(True)
        log.info("serving")

    starting = asyncio.ensure_future(become_ready())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await stopping
    else:
        starting.cancel()
    await server.set_serving(False)


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Stops when the process that holds the other end of our standard input is gone."""

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    os.set_blocking(sys.stdin.fileno(), False)
    loop.add_reader(sys.stdin.fileno(), readable)


def configure_logging(service: str, level: str = "INFO") -> None:
    """Sends one readable line an event to standard error."""
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s",
        stream=sys.stderr,
    )
