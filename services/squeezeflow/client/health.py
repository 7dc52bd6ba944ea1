"""Whether a service is there: one question to its health service, over a connection that is kept."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from squeezeflow.rpc.channels import open_sync_channel


class HealthProbe:
    """Asks the service at HOST:PORT whether calls are welcome."""

    def __init__(self, address: str) -> None:
        self._channel = open_sync_channel(address)
        self._stub = health_pb2_grpc.HealthStub(self._channel)

    def serving(self, *, timeout: float = 1.0) -> bool:
        """Gives False where the service says no, or nothing answers in time."""
        try:
            answer = self._stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()
