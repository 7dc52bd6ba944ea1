"""Whether a service is there, told by its health service whenever it changes: nothing is asked twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from squeezeflow.rpc.channels import open_sync_channel


class HealthWatch:
    """Watches the service at HOST:PORT; `close` from another thread ends it."""

    def __init__(self, address: str) -> None:
        self._channel = open_sync_channel(address)

    def states(self) -> Iterator[bool]:
        """Gives whether calls are welcome, now and at every change; ends when the service is gone or this is closed."""
        try:
            stub: Any = health_pb2_grpc.HealthStub(self._channel)
            for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                yield answer.status == health_pb2.HealthCheckResponse.SERVING
        except (grpc.RpcError, ValueError):  # a closed channel is a ValueError
            return

    def close(self) -> None:
        """Ends the watching."""
        self._channel.close()
